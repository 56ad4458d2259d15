"""Kernels for layers of rank-N tensors; where their operands lie is said by `dense.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from . import layers as L
from . import layers_sequence as S
from .dense import (
    as_rows,
    batches,
    copied,
    copy,
    made_for,
    operand,
    reshaped,
    spread,
    view_of,
)
from .kernels import (
    chain_f32,
    gemm_f32,
    indices,
    join_f32,
    matmul_f32,
    reduce_f32,
    resize_f32,
    rows_f32,
    take_f32,
)
from .kernels.chain_f32 import ChainF32Spec
from .kernels.gemm_f32 import GemmF32Spec
from .kernels.indices import IndicesSpec
from .kernels.join_f32 import JoinF32Spec, Part
from .kernels.matmul_f32 import MatmulF32Spec
from .kernels.reduce_f32 import ReduceF32Spec
from .kernels.resize_f32 import ResizeF32Spec
from .kernels.rows_f32 import RowsF32Spec
from .kernels.strided import LANES, Operand, merged
from .kernels.take_f32 import TakeF32Spec
from .lower_products import int_product
from .place import Builder, Unfit, View, fits, row_major
from .program import padded

LayerRule = Callable[[Builder, L.Layer], None]


def _in_order(made: View) -> list[int]:
    """Return the axes of a result as its memory has them, outermost first."""
    return sorted(range(len(made.shape)), key=lambda axis: (-made.strides[axis], axis))


def _lanes(view: View) -> int:
    """Return the elements of a pixel of an image, padding included; 0 where there is no padding to fill."""
    if len(view.shape) not in (2, 4) or view.strides[1] != 1:
        return 0
    pitch = padded(view.shape[1])
    return pitch if pitch != view.shape[1] and view.strides[-1 if len(view.shape) == 4 else 0] == pitch else 0


def _constant(
    builder: Builder, name: str, array: L.Floats, shape: Sequence[int]
) -> tuple[View, tuple[str, ...]]:
    """Pack an array that broadcasts to `shape`."""
    view = View("", "float32", array.size, array.shape, row_major(array.shape))
    return spread(view, shape), builder.constants(name, lambda: [np.ascontiguousarray(array)])


def _chain(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Chain), "the table says so"
    shape = layer.output.shape
    views = [spread(view_of(builder, x), shape) for x in layer.inputs]
    packed = [
        _constant(builder, f"{layer.output.name}_c{i}", a, shape) for i, a in enumerate(layer.constants)
    ]
    made = made_for(builder, layer.output, layer.image)
    order = _in_order(made)
    given = [operand(v, x.quant) for v, x in zip(views, layer.inputs, strict=True)]
    given += [operand(view) for view, _ in packed]
    last = operand(made, layer.output.quant)
    sizes, (*inputs, output) = merged(
        [shape[axis] for axis in order], [one.axes(order) for one in (*given, last)]
    )
    lanes = _lanes(made) if layer.image else 0
    spec = ChainF32Spec(sizes, tuple(inputs), output, layer.ops, lanes)
    fits(chain_f32.supports(spec, builder.isa))
    names = [name for _, constants in packed for name in constants]
    in_place = next((i for i, one in enumerate(inputs[: len(views)]) if one == output), None)
    builder.step("chain_f32", spec, [v.buffer for v in views], names, made.buffer, layer.covers, in_place)


def _dense(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Dense), "the table says so"
    x, name = layer.inputs[0], layer.output.name
    data = as_rows(builder, view_of(builder, x), f"{name}_x")
    second = [as_rows(builder, view_of(builder, r), f"{name}_r") for r in layer.inputs[1:]]
    rows, (depth, columns) = data.shape[0], layer.weight.shape
    after = replace(layer.after, bias=layer.bias is not None, residual=bool(second))
    spec = GemmF32Spec(rows, depth, columns, after)
    fits(gemm_f32.supports(spec, builder.isa))
    pitch = padded(columns)
    buffer = builder.dense(name, "float32", (rows, pitch))
    whole = View(buffer, "float32", rows * pitch, (rows, columns), (pitch, 1))
    made = reshaped(whole, layer.output.shape)
    assert made is not None, "rows of any outer shape"
    builder.where[name] = made
    constants = builder.constants(name, lambda: gemm_f32.pack(spec, layer.weight, layer.bias))
    inputs = [data.buffer, *(view.buffer for view in second)]
    builder.step("gemm_f32", spec, inputs, constants, buffer, layer.covers, 1 if second else None)


def _matmul(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.MatMul), "the table says so"
    perm = layer.perm or tuple(range(len(layer.output.shape)))
    back = sorted(range(len(perm)), key=lambda axis: perm[axis])
    shape = tuple(layer.output.shape[axis] for axis in back)
    left, right, *added = (view_of(builder, x) for x in layer.inputs)
    rows, depth, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    batch = shape[:-2]
    sides = [operand(spread(left, (*batch, rows, depth))), operand(spread(right, (*batch, depth, columns)))]
    written = made_for(builder, layer.output, image=False)
    made = replace(written, shape=shape, strides=tuple(written.strides[axis] for axis in back))
    views = [spread(view, shape) for view in added]
    packed: tuple[str, ...] = ()
    if layer.added is not None:
        view, packed = _constant(builder, f"{layer.output.name}_added", layer.added, shape)
        views.append(view)
    more = [operand(view) for view in views]
    outer, joined = batches(batch, [*sides, operand(made, layer.output.quant), *more])
    spec = MatmulF32Spec(
        outer, rows, depth, columns, joined[0], joined[1], joined[2], layer.alpha, joined[3] if more else None
    )
    fits(matmul_f32.supports(spec, builder.isa))
    inputs = [left.buffer, right.buffer, *(view.buffer for view in added)]
    builder.step("matmul_f32", spec, inputs, packed, made.buffer, layer.covers)


def _rows(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Rows), "the table says so"
    (x,), y = layer.inputs, layer.output
    view = view_of(builder, x)
    if y.shape[-1] > 1 and view.strides[-1] != 1:
        view = copied(builder, view, f"{y.name}_x")
    made = made_for(builder, y, image=False)
    length = y.shape[-1]
    outer, (data, output) = _rows_of(y.shape, [operand(view, x.quant), operand(made, y.quant)])
    spec = RowsF32Spec(
        (*outer, length), data, output, cast(rows_f32.Kind, layer.kind), layer.epsilon,
        layer.scale is not None, layer.shift is not None,
    )  # fmt: skip
    fits(rows_f32.supports(spec, builder.isa))
    constants = builder.constants(y.name, lambda: rows_f32.pack(spec, layer.scale, layer.shift))
    in_place = 0 if data == output else None
    builder.step("rows_f32", spec, [view.buffer], constants, made.buffer, layer.covers, in_place)


def _rows_of(shape: Sequence[int], operands: Sequence[Operand]) -> tuple[tuple[int, ...], list[Operand]]:
    """Join the outer axes; there is at least one, and the last axis stays."""
    outer, joined = merged(shape[:-1], [replace(one, strides=one.strides[:-1]) for one in operands])
    alone = not outer
    return outer or (1,), [
        replace(one, strides=(*((0,) if alone else some.strides), one.strides[-1]))
        for one, some in zip(operands, joined, strict=True)
    ]


def _reduce(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Reduce), "the table says so"
    (x,), y = layer.inputs, layer.output
    view = view_of(builder, x)
    kept = [axis for axis in range(len(x.shape)) if axis not in layer.axes]
    made = made_for(builder, y, image=False)
    squeezed = reshaped(made, [x.shape[axis] for axis in kept])
    assert squeezed is not None, "only ones are added or removed"
    data, output = operand(view, x.quant), operand(squeezed, y.quant)
    sizes, (outer, out) = merged([x.shape[a] for a in kept], [data.axes(kept), output])
    by_memory = sorted(layer.axes, key=lambda axis: -view.strides[axis])
    inner_sizes, (inner,) = merged([x.shape[a] for a in by_memory], [data.axes(by_memory)])
    both = replace(outer, strides=(*outer.strides, *(inner.strides or (0,))))
    spec = ReduceF32Spec(sizes, inner_sizes or (1,), both, out, cast(reduce_f32.Kind, layer.kind))
    fits(reduce_f32.supports(spec, builder.isa))
    builder.step("reduce_f32", spec, [view.buffer], (), made.buffer, layer.covers)


# --- moves ------------------------------------------------------------------------------------------------


def _slice(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Slice), "the table says so"
    view = view_of(builder, layer.inputs[0])
    offset = view.offset + sum(s * n for s, n in zip(layer.starts, view.strides, strict=True))
    strides = tuple(view.strides[axis] * layer.steps[axis] for axis in layer.kept)
    builder.where[layer.output.name] = replace(view, offset=offset, shape=layer.output.shape, strides=strides)


def _expand(builder: Builder, layer: L.Layer) -> None:
    view = view_of(builder, layer.inputs[0])
    builder.where[layer.output.name] = spread(view, layer.output.shape)


def _repeat(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Repeat), "the table says so"
    view = view_of(builder, layer.inputs[0])
    shape: list[int] = []
    strides: list[int] = []
    for size, stride, factor in zip(view.shape, view.strides, layer.factors, strict=True):
        pairs = [(size, stride), (factor, 0)]
        for one in reversed(pairs) if layer.whole else pairs:
            shape.append(one[0])
            strides.append(one[1])
    wide = replace(view, shape=tuple(shape), strides=tuple(strides))
    images = len(view.shape) == 4 and view.strides[1] == 1 and layer.output.quant is None
    made = made_for(builder, layer.output, images)
    target = reshaped(made, shape)
    assert target is not None, "axes are only split"
    order = _in_order(target)
    turned = [replace(v, shape=tuple(shape[a] for a in order), strides=tuple(v.strides[a] for a in order))
              for v in (wide, target)]  # fmt: skip
    if images and _lanes(made):
        _fill(builder, turned[0], turned[1], layer)
        return
    copy(builder, turned[0], turned[1], layer.covers)


def _fill(builder: Builder, source: View, target: View, layer: L.Layer) -> None:
    """Copy into an image whose padding lanes are filled too."""
    part = Part(source.shape, operand(source), operand(target))
    spec = JoinF32Spec((part,), 0.0)
    fits(join_f32.supports(spec, builder.isa))
    builder.step("join_f32", spec, [source.buffer], (), target.buffer, layer.covers)


def _part(source: Operand, target: Operand, sizes: Sequence[int], order: Sequence[int]) -> Part:
    lengths, (one, other) = merged([sizes[a] for a in order], [source.axes(order), target.axes(order)])
    return Part(lengths, one, other)


def _join(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Join), "the table says so"
    y = layer.output
    views = [view_of(builder, x) for x in layer.inputs]
    made = made_for(builder, y, layer.image)
    order, at = _in_order(made), 0
    parts: list[Part] = []
    buffers: list[str] = []
    late: list[tuple[Part, tuple[str, ...]]] = []
    for number, given in enumerate(layer.parts):
        if isinstance(given, int):
            source, quant = views[given], layer.inputs[given].quant
        else:
            source, names = _constant(builder, f"{y.name}_p{number}", given, given.shape)
            quant = None
        target = replace(made, offset=made.offset + at * made.strides[layer.axis], shape=source.shape)
        part = _part(operand(source, quant), operand(target, y.quant), source.shape, order)
        if isinstance(given, int):
            parts.append(part)
            buffers.append(source.buffer)
        else:
            late.append((part, names))
        at += source.shape[layer.axis]
    fill = 0.0 if layer.image and _lanes(made) else None
    spec = JoinF32Spec((*parts, *(part for part, _ in late)), fill)
    fits(join_f32.supports(spec, builder.isa))
    constants = [name for _, names in late for name in names]
    builder.step("join_f32", spec, buffers, constants, made.buffer, layer.covers)


def _pad(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Pad), "the table says so"
    (x,), y = layer.inputs, layer.output
    view = view_of(builder, x)
    made = made_for(builder, y, layer.image)
    inner = [n + min(0, b) + min(0, a) for n, b, a in zip(x.shape, layer.before, layer.after, strict=True)]
    if min(inner, default=1) < 1:
        raise Unfit(f"crops {x.shape} to nothing")
    skip = sum(max(0, -b) * s for b, s in zip(layer.before, view.strides, strict=True))
    start = sum(max(0, b) * s for b, s in zip(layer.before, made.strides, strict=True))
    source = replace(operand(view, x.quant), offset=view.offset + skip)
    target = replace(operand(made, y.quant), offset=made.offset + start)
    part = _part(source, target, inner, _in_order(made))
    fill = layer.value if y.quant is None else float(y.quant.zero)
    spec = JoinF32Spec((part,), fill)
    fits(join_f32.supports(spec, builder.isa))
    builder.step("join_f32", spec, [view.buffer], (), made.buffer, layer.covers)


def _resize(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Resize), "the table says so"
    held = builder.image_of(layer.inputs[0])
    n, c, h, w = layer.inputs[0].image
    spec = ResizeF32Spec(n, h, w, c, *layer.output.image[2:])
    fits(resize_f32.supports(spec, builder.isa))
    made = builder.floats_for(layer.output)
    tables = builder.constants(layer.output.name, lambda: resize_f32.pack(spec, layer.rows, layer.columns))
    builder.step("resize_f32", spec, [held.buffer], tables, made.buffer, layer.covers)


def _take(builder: Builder, layer: L.Layer) -> None:
    assert isinstance(layer, S.Take), "the table says so"
    y, axis = layer.output, layer.axis
    table: tuple[str, ...] = ()
    if layer.table is None:
        view = view_of(builder, layer.inputs[0])
    else:
        view, table = _constant(builder, f"{y.name}_table", layer.table, layer.table.shape)
    before, behind = view.shape[:axis], view.shape[axis + 1 :]
    numbers, constants, count = _numbers(builder, layer, view.shape[axis])
    made = made_for(builder, y, image=False)
    flat = reshaped(made, (*before, count, *behind))
    if flat is None:
        raise Unfit(f"gathers rows of {y.shape} that do not lie one behind the other")
    spec = TakeF32Spec(before, count, behind, operand(view), operand(flat))
    fits(take_f32.supports(spec, builder.isa))
    data = [view.buffer] if layer.table is None else []
    if layer.table is not None and numbers:
        # parameters are inputs before constants: the numbers come first, and the spec says so
        spec = replace(spec, numbers_first=True)
    builder.step("take_f32", spec, [*data, *numbers], [*table, *constants], made.buffer, layer.covers)


def _numbers(builder: Builder, layer: S.Take, limit: int) -> tuple[list[str], tuple[str, ...], int]:
    """Return the buffer of checked indices, or the constant, and how many there are."""
    name = f"{layer.output.name}_indices"
    if layer.indices is not None:
        array = np.array(layer.indices, np.int32)
        return [], builder.constants(name, lambda: [array]), len(array)
    tensor = layer.inputs[-1]
    view = view_of(builder, tensor)
    if not view.contiguous:
        view = copied(builder, view, f"{name}_in_a_row")
    count = view.size
    spec = IndicesSpec(count, limit, view.dtype)
    fits(indices.supports(spec, builder.isa))
    made = builder.dense(name, "int32", (count,))
    status = builder.scratch(f"{name}_status", "int32", (LANES,))
    builder.step("indices", spec, [view.buffer], (), made, layer.covers, scratch=(status,))
    return [made], (), count


SEQUENCE_RULES: Mapping[type[L.Layer], LayerRule] = {
    S.Chain: _chain,
    S.Dense: _dense,
    S.Expand: _expand,
    S.IntProduct: int_product,
    S.Join: _join,
    S.MatMul: _matmul,
    S.Pad: _pad,
    S.Reduce: _reduce,
    S.Repeat: _repeat,
    S.Resize: _resize,
    S.Rows: _rows,
    S.Slice: _slice,
    S.Take: _take,
}
