"""Operators on quantized tensors as integer layers: one rule per operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from ...compiler.ir.walk import attribute, int_attribute, ints_attribute
from ...compiler.ir.windows import pads_of
from ...compiler.ops.common import float_attribute
from ...compiler.ops.constants import constant_expression
from ..reference.integer import bias_steps
from .graph import Conv, Dense, Floats, Ints, Layer, Mix, Move, Pool, Wire
from .refuse import at
from .requant import Held, Region
from .submodel import constant_value
from .sums import find_factors
from .weights import Weights, weights_of

Number = TypeVar("Number", bound=np.generic)
Singles = npt.NDArray[np.float32]

_MOST_ACCUMULATOR = 2**31 - 1
_BYTES = 8
_MOST_RATIO = 1 << 16


@dataclass(frozen=True, eq=False)
class Place:
    """A node with its quantized operands.

    Attributes:
        append: adds a layer to the network and returns its wire.
    """

    node: ir.Node
    held: Sequence[Held]
    append: Callable[[Layer], Wire]

    @property
    def output(self) -> ir.Value:
        """What the node makes."""
        return self.node.outputs[0]

    @property
    def name(self) -> str:
        """Of the value that it makes."""
        return self.output.name or ""

    def wire(self, index: int = 0) -> Wire:
        """Return the integers of an operand; refuses floats that nothing quantized."""
        one = self.held[index]
        if one.source is not one.value:
            raise UnsupportedOp(
                "fpga-float-between",
                at(self.node, f"its operand {one.value.name!r} is not quantized"),
                "quantize the result of every operator in the circuit, or exclude this part",
            )
        return one.wire

    def is_codes(self, index: int = 0) -> bool:
        """Say whether an operand's reals are its integers times one unit, exactly, as a quantizer gives."""
        one = self.held[index]
        plain = one.region is None and one.error is None and not one.wire.offset.any()
        return one.source is one.value and one.wire.unit.size == 1 and plain


Rule = Callable[[Place], Held | None]


def _held(place: Place, wire: Wire, region: Region | None = None, error: Floats | None = None) -> Held:
    return Held(wire, place.output, place.output, region, error)


def _error(wire: Wire, exact: bool) -> Floats | None:
    """Return the bound of what the reference's float sum may be off: products of rounded float32 values."""
    if exact:
        return None
    reach = np.maximum(np.abs(wire.low), np.abs(wire.high))
    return np.asarray(reach * np.abs(wire.unit) * 2.0**-22 + np.abs(wire.offset) * 2.0**-23)


def _bounds(rows: Ints, x: Wire) -> tuple[Ints, Ints]:
    """Return the proven range of `rows @ (q - zero)`, per row, with the real 0 (padding) in the range."""
    low, high = min(x.least - x.zero, 0), max(x.most - x.zero, 0)
    up, down = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    return up * low + down * high, up * high + down * low


def _check(place: Place, low: Ints, high: Ints) -> None:
    most = max(int(np.abs(low).max(initial=0)), int(np.abs(high).max(initial=0)))
    if most > _MOST_ACCUMULATOR:
        raise UnsupportedOp(
            "fpga-overflow",
            at(place.node, f"an accumulator can reach {most}, over 32 bits"),
            "use fewer bits, or exclude it",
        )


def _linear(
    place: Place, weights: Weights, rows: Ints, bias: ir.Value | None, spatial: tuple[int, ...]
) -> Wire:
    x = place.wire()
    if not place.is_codes():
        raise UnsupportedOp(
            "fpga-float-between", at(place.node, "its operand is an accumulator"), "quantize the operand"
        )
    low, high = _bounds(rows, x)
    _check(place, low, high)
    column = (-1, *[1] * len(spatial))
    unit = np.asarray(weights.unit * float(x.unit))
    offset = _bias(place, bias, rows.shape[0])
    shape = (rows.shape[0], *spatial)
    return Wire(
        place.name, shape, low.reshape(column), high.reshape(column), unit.reshape(column),
    offset.reshape(column) )  # fmt: skip


def _bias(place: Place, bias: ir.Value | None, outputs: int) -> Floats:
    if bias is None:
        return np.zeros(outputs)
    real = constant_value(bias)
    if real is None or real.size not in (1, outputs):
        raise UnsupportedOp(
            "fpga-weights",
            at(place.node, "its bias is not constant, or not one per output"),
            "fold constants",
        )
    return np.ascontiguousarray(np.broadcast_to(real.astype(np.float64).reshape(-1), (outputs,)))


def _finish(place: Place, layer: Layer, bias: ir.Value | None, index: int) -> Held:
    wire = place.append(layer)
    exact = wire.power_of_two and place.held[0].wire.power_of_two
    return _held(place, wire, _region(place, wire, bias, index), _error(wire, exact))


def _region(place: Place, wire: Wire, bias: ir.Value | None, index: int) -> Region | None:
    """Return the integer semantics of a layer between DequantizeLinear nodes of at most 8 bits."""
    for value in (place.node.inputs[0], place.node.inputs[index]):
        node = None if value is None else value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return None
        q, scale = node.inputs[:2]
        if q is None or q.dtype is None or q.dtype.bitwidth > _BYTES or scale is None:
            return None
        if scale.dtype != ir.DataType.FLOAT or int_attribute(node, "block_size", 0):
            return None
    unit = wire.unit.reshape(-1).astype(np.float32)
    steps = _bias_steps(bias, wire.offset.reshape(-1).astype(np.float32), unit)
    return Region(unit.astype(np.float64), steps)


def _bias_steps(bias: ir.Value | None, real: Singles, unit: Singles) -> Ints:
    """Return docs/semantics.md, step 2."""
    node = None if bias is None else bias.producer()
    q = None if node is None or node.op_type != "DequantizeLinear" else constant_expression(node.inputs[0])
    if node is not None and q is not None and q.dtype == np.int32:
        scale = constant_expression(node.inputs[1])
        zero = constant_expression(node.inputs[2]) if len(node.inputs) > 2 else None
        plain = zero is None or not zero.any()
        if scale is not None and plain:
            return bias_steps(q, scale.astype(np.float32), unit).astype(np.int64)
    return bias_steps(real, None, unit).astype(np.int64)


def _gemm(place: Place) -> Held:
    node = place.node
    plain = float_attribute(node, "alpha", 1.0) == 1 and float_attribute(node, "beta", 1.0) == 1
    if int_attribute(node, "transA", 0) or not plain:
        raise UnsupportedOp(
            "fpga-op", at(node, "transA, alpha or beta is not the default"), "export a plain Gemm"
        )
    across = bool(int_attribute(node, "transB", 0))
    weights = weights_of(node, 1, 0 if across else 1)
    rows = weights.q if across else np.ascontiguousarray(weights.q.T)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return _dense(place, weights, rows, bias)


def _matmul(place: Place) -> Held | None:
    if len(place.held) != 1 or place.node.inputs[0] is not place.held[0].value:
        return None
    weights = weights_of(place.node, 1, 1)
    if weights.q.ndim != 2:
        raise UnsupportedOp("fpga-op", at(place.node, "weights of more than two axes"), "use one matrix")
    return _dense(place, weights, np.ascontiguousarray(weights.q.T), None)


def _dense(place: Place, weights: Weights, rows: Ints, bias: ir.Value | None) -> Held:
    x = place.wire()
    if x.shape != (rows.shape[1],):
        raise UnsupportedOp(
            "fpga-shape",
            at(place.node, f"data of shape {x.shape} beside the batch, one axis is taken"),
            "flatten before it",
        )
    wire = _linear(place, weights, rows, bias, ())
    return _finish(place, Dense(place.node.name or "", (x.name,), wire, rows), bias, 1)


def _window(place: Place, kernel: tuple[int, ...], size: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return strides, dilations, pads and output sizes of a convolution or pooling."""
    node, rank = place.node, len(kernel)
    strides = ints_attribute(node, "strides") or (1,) * rank
    dilations = ints_attribute(node, "dilations") or (1,) * rank
    pads = pads_of(node, kernel, strides, dilations, size)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if rank > 2 or int_attribute(node, "ceil_mode", 0):
        raise UnsupportedOp(
            "fpga-op", at(node, "more than two spatial axes, or ceil_mode"), "export without them"
        )
    out = tuple(
        (n + pads[i] + pads[i + rank] - reach[i]) // strides[i] + 1 for i, n in enumerate(size)
    )  # fmt: skip
    return strides, dilations, pads, out


def _conv(place: Place) -> Held:
    node, x = place.node, place.wire()
    weights = weights_of(node, 1, 0)
    kernel = tuple(int(n) for n in weights.q.shape[2:])
    strides, dilations, pads, out = _window(place, kernel, x.shape[1:])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    rows = weights.q.reshape(weights.q.shape[0], -1)
    wire = _linear(place, weights, rows, bias, out)
    group = int_attribute(node, "group", 1)
    layer = Conv(node.name or "", (x.name,), wire, weights.q, strides, pads, dilations, group)
    return _finish(place, layer, bias, 1)


def _max_pool(place: Place) -> Held:
    node, x = place.node, place.wire()
    kernel = ints_attribute(node, "kernel_shape") if node.op_type == "MaxPool" else x.shape[1:]
    strides, dilations, pads, out = _window(place, kernel, x.shape[1:])
    if any(d != 1 for d in dilations) or len(node.outputs) > 1 or not place.is_codes():
        raise UnsupportedOp(
            "fpga-op",
            at(node, "dilations, indices, or an operand that is not quantized"),
            "export without them",
        )
    wire = Wire(place.name, (x.shape[0], *out), x.low, x.high, x.unit, x.offset, x.zero, x.step)
    layer = Pool(node.name or "", (x.name,), wire, "max", tuple(kernel), strides, pads)
    return _held(place, place.append(layer))


def _average(place: Place) -> Held:
    node, x = place.node, place.wire()
    kernel = ints_attribute(node, "kernel_shape") if node.op_type == "AveragePool" else x.shape[1:]
    strides, dilations, pads, out = _window(place, kernel, x.shape[1:])
    if any(pads) or any(d != 1 for d in dilations) or not place.is_codes():
        raise UnsupportedOp(
            "fpga-op", at(node, "padding, dilations, or an operand that is not quantized"), "pad before it"
        )
    count = int(np.prod(kernel))
    low, high = np.asarray((x.least - x.zero) * count), np.asarray((x.most - x.zero) * count)
    wire = Wire(place.name, (x.shape[0], *out), low, high, x.unit / count, x.offset)
    place.append(Pool(node.name or "", (x.name,), wire, "sum", tuple(kernel), strides, pads))
    return _held(place, wire, None, _error(wire, wire.power_of_two))


def _reduce_mean(place: Place) -> Held | None:
    """ReduceMean over all spatial axes is a global average."""
    node, x = place.node, place.wire()
    axes = constant_expression(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    wanted = set(range(1, len(x.shape)))
    given = (
        {int(a) % (len(x.shape) + 1) - 1 for a in np.asarray(axes).reshape(-1)} if axes is not None else set()
    )
    return _average(place) if given == wanted and int_attribute(node, "keepdims", 1) else None


def _add(place: Place) -> Held | None:
    """A sum of two quantized tensors; see sums.py."""
    if len(place.held) != 2:
        return None
    left, right = place.wire(0), place.wire(1)
    if left.shape != right.shape or not (place.is_codes(0) and place.is_codes(1)):
        raise UnsupportedOp(
            "fpga-op", at(place.node, "operands of different shapes, or accumulators"), "quantize both"
        )
    tried = find_factors(left, right, place.output)
    factors = _whole_ratios(place, left, right) if tried is None else tried[0]
    low, high = (
        np.asarray(sum(f * (end - w.zero) for f, w, end in zip(factors, (left, right), ends, strict=True)))
        for ends in ((left.least, right.least), (left.most, right.most))
    )
    unit = np.asarray(min(float(left.unit), float(right.unit)) / min(factors))
    wire = Wire(place.name, left.shape, low, high, unit, np.zeros(()))
    place.append(Mix(place.node.name or "", (left.name, right.name), wire, factors))
    exact = tried is not None or (left.power_of_two and right.power_of_two)
    return Held(
        wire, place.output, place.output, None, _error(wire, exact), None if tried is None else tried[1]
    )


def _whole_ratios(place: Place, left: Wire, right: Wire) -> tuple[int, int]:
    """Return factors of scales that are whole multiples of the smaller one."""
    unit = min(float(left.unit), float(right.unit))
    ratios = [float(w.unit) / unit for w in (left, right)]
    if any(r != round(r) or r > _MOST_RATIO for r in ratios):
        raise UnsupportedOp(
            "fpga-scale",
            at(
                place.node,
                f"operands with scales {float(left.unit):g} and {float(right.unit):g}, and no whole factors "
                "give "
                "the quantized sum",
            ),
            "quantize with powers of two: quantize{scale=pow2}",
        )
    return round(ratios[0]), round(ratios[1])


def _reorder(place: Place) -> Held:
    """Flatten, Reshape, Transpose and the like, whatever they do: tried on the numbers of the elements."""
    node, x = place.node, place.wire()
    count = int(np.prod(x.shape, dtype=np.int64))
    wide = np.arange(count, dtype=np.int64).reshape(1, *x.shape)
    moved = _moved(place, wide)
    if moved is None or moved.shape[:1] != (1,) or moved.size != count:
        raise UnsupportedOp(
            "fpga-shape",
            at(node, "moves values across the batch axis, or its shape is computed"),
            "use fixed shapes",
        )
    shape = moved.shape[1:]
    if len(shape) > 1 and not place.is_codes():
        raise UnsupportedOp("fpga-shape", at(node, "moves accumulators"), "quantize before it")
    order = moved.reshape(-1)

    def follow(a: npt.NDArray[Number]) -> npt.NDArray[Number]:
        return a if a.size == 1 else np.broadcast_to(a, x.shape).reshape(-1)[order].reshape(shape)

    wire = Wire(
        place.name, shape, follow(x.low), follow(x.high), follow(x.unit), follow(x.offset), x.zero, x.step
    )
    return _held(place, place.append(Move(node.name or "", (x.name,), wire, order)))


def _concat(place: Place) -> Held:
    """Join quantized tensors; along the channels each keeps its scale until the quantizer behind."""
    node, wires = place.node, [place.wire(index) for index in range(len(place.held))]
    axis = int_attribute(node, "axis", 1) % (len(wires[0].shape) + 1) - 1
    alike = all((w.unit, w.zero, w.step) == (wires[0].unit, wires[0].zero, wires[0].step) for w in wires)
    quantized = len(wires) == len(node.inputs) and all(map(place.is_codes, range(len(wires))))
    if not quantized or axis < 0 or not (alike or (axis == 0 and all(w.step == 1 for w in wires))):
        raise UnsupportedOp(
            "fpga-op",
            at(node, "joins constants, samples, or tensors of unlike scales along another axis than 1"),
            "quantize its operands alike",
        )
    starts = np.cumsum([0, *(int(np.prod(w.shape, dtype=np.int64)) for w in wires)])
    numbered = [np.arange(a, b).reshape(w.shape) for a, b, w in zip(starts, starts[1:], wires, strict=False)]
    order = np.concatenate(numbered, axis=axis)
    wire = _joined(place.name, order.shape, wires, alike)
    return _held(
        place, place.append(Move(node.name or "", tuple(w.name for w in wires), wire, order.reshape(-1)))
    )


def _joined(name: str, shape: tuple[int, ...], wires: Sequence[Wire], alike: bool) -> Wire:
    """Return the wire of joined ones: of one unit, or of one unit, offset and range per channel."""
    if alike:
        ends = min(w.least for w in wires), max(w.most for w in wires)
        return replace(wires[0], name=name, shape=shape, low=np.asarray(ends[0]), high=np.asarray(ends[1]))

    def column(of: Callable[[Wire], npt.ArrayLike]) -> npt.NDArray[np.generic]:
        parts = [np.broadcast_to(np.asarray(of(w)), (w.shape[0],)) for w in wires]
        return np.concatenate(parts).reshape(-1, *[1] * (len(shape) - 1))

    low, high = (column(end).astype(np.int64) for end in (lambda w: w.least, lambda w: w.most))
    unit, offset = (column(of).astype(np.float64) for of in (lambda w: w.unit, lambda w: -w.unit * w.zero))
    return Wire(name, shape, low, high, unit, offset)


def _moved(place: Place, wide: Ints) -> Ints | None:
    node = place.node
    if node.op_type == "Transpose":
        perm = ints_attribute(node, "perm") or tuple(reversed(range(wide.ndim)))
        return wide.transpose(perm)
    if node.op_type == "Flatten":
        return wide.reshape(1, -1) if int_attribute(node, "axis", 1) == 1 else None
    shape = place.output.shape
    if shape is None or any(not isinstance(n, int) for n in list(shape)[1:]):
        return None
    return wide.reshape(1, *[int(n) for n in list(shape)[1:] if isinstance(n, int)])


LAYERS: Mapping[str, Rule] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _max_pool,
    "AveragePool": _average,
    "GlobalAveragePool": _average,
    "ReduceMean": _reduce_mean,
    "Add": _add,
    "Concat": _concat,
    "Flatten": _reorder,
    "Reshape": _reorder,
    "Transpose": _reorder,
}
