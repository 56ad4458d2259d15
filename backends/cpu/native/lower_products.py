"""Kernels for products of rank-N tensors on integers."""

from __future__ import annotations

from dataclasses import replace

from . import layers as L
from . import layers_sequence as S
from .dense import batches, copied, made_for, operand, spread, view_of
from .kernels import matmul_int8
from .kernels.matmul_int8 import MatmulInt8Spec, Then
from .kernels.strided import Operand
from .place import Builder, Unfit, View, fits


def int_product(builder: Builder, layer: L.Layer) -> None:
    """Write a quantized product."""
    assert isinstance(layer, S.IntProduct), "the table says so"
    perm = layer.perm or tuple(range(len(layer.output.shape)))
    back = sorted(range(len(perm)), key=lambda axis: perm[axis])
    shape = tuple(layer.output.shape[axis] for axis in back)
    x = layer.inputs[0]
    left = _bytes(builder, x, layer.output.name)
    right = None if layer.weight is not None else _bytes(builder, layer.inputs[1], layer.output.name)
    written = made_for(builder, layer.output, image=False)
    made = replace(written, shape=shape, strides=tuple(written.strides[axis] for axis in back))
    more = [view_of(builder, layer.inputs[-1])] if layer.residual else []
    spec = _spec(layer, left, right, made, [spread(view, shape) for view in more])
    fits(matmul_int8.supports(spec, builder.isa))
    name = layer.output.name
    constants = builder.constants(
        name, lambda: matmul_int8.pack(spec, layer.weight, layer.bias, layer.factor, layer.addend)
    )
    inputs = [view.buffer for view in (left, right, *more) if view is not None]
    builder.step("matmul_int8", spec, inputs, constants, made.buffer, layer.covers)


def _bytes(builder: Builder, tensor: L.Tensor, name: str) -> View:
    """Return a quantized operand in memory of ours, its rows contiguous."""
    view = view_of(builder, tensor)
    if view.dtype != "uint8" or builder.is_port(view.buffer):
        raise Unfit("a product reads bytes of the caller's; quantize inside the model")
    if view.shape[-1] > 1 and 1 not in view.strides[-2:]:
        return copied(builder, view, f"{name}_bytes")
    return view


def _spec(
    layer: S.IntProduct, left: View, right: View | None, made: View, more: list[View]
) -> MatmulInt8Spec:
    rows, columns = made.shape[-2:]
    depth, batch = left.shape[-1], made.shape[:-2]
    sides = [operand(spread(left, (*batch, rows, depth))), operand(made, layer.output.quant)]
    if right is not None:
        sides.append(operand(spread(right, (*batch, depth, columns))))
    sides += [operand(view) for view in more]
    if right is None:
        # Weights are the same for all rows: outer axes are rows too where memory says so.
        outer, (one, made_at, *rest) = batches((*batch, rows), [_split(side) for side in sides])
        one, made_at, *rest = (_joined(side) for side in (one, made_at, *rest))
        if outer:
            batch, rows = outer[:-1], outer[-1]
        else:
            batch, rows = (), 1
            one, made_at, *rest = (
                replace(side, strides=(0, side.strides[-1])) for side in (one, made_at, *rest)
            )
        sides = [one, made_at, *rest]
    else:
        batch, sides = batches(batch, sides)
    if sides[0].last != 1 and depth > 1:
        raise Unfit("the rows of a quantized product are not contiguous")
    given, result = layer.inputs[0].quant, layer.whole
    assert given is not None, "the left side is quantized"
    second = layer.inputs[1].quant if right is not None else None
    other = None if right is None else _plain(sides[2])
    return MatmulInt8Spec(
        batch, rows, depth, columns, _plain(sides[0]), other, sides[1],
        given.zero, 128 if second is None else second.zero, result is None,
        0 if result is None else result.zero, layer.low, layer.high, layer.addend is not None,
        sides[-1] if more else None, layer.after,
        Then(result.scale, result.zero) if result is not None and layer.addend is not None else None,
    )  # fmt: skip


def _plain(side: Operand) -> Operand:
    return replace(side, quant=None)


def _split(side: Operand) -> Operand:
    """Return an operand with an axis of one element behind M, so that M is an outer axis."""
    return replace(side, strides=(*side.strides[:-1], 0, side.strides[-1]))


def _joined(side: Operand) -> Operand:
    return replace(side, strides=(*side.strides[:-2], side.strides[-1]))
