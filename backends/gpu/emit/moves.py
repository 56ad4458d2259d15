"""Operators that move elements: reshapes, transposes, joins, slices, pads, lookups."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute, static_shape
from ....compiler.ops.common import string_attribute
from .walk import Emitter, Last, Rule, dtype_of, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def _to_known_shape(emitter: Emitter, node: ir.Node) -> Expr:
    """Reshape, Flatten, Squeeze, Unsqueeze: shape inference knows the result."""
    from tvm import relax

    shape = static_shape(node.outputs[0])
    if shape is None:
        raise refuse(node, "the result's shape is open")
    return relax.op.reshape(emitter.operand(node, 0), shape)


def _shape(emitter: Emitter, node: ir.Node) -> Expr:
    source = node.inputs[0]
    shape = static_shape(source) if source is not None else None
    if shape is None:
        raise refuse(node, "the shape is open")
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(shape))
    return emitter.constant(np.array(shape[start:end], np.int64))


def _transpose(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    x = emitter.operand(node, 0)
    rank = len(shape_of(x))
    return relax.op.permute_dims(x, list(ints_attribute(node, "perm", range(rank)[::-1])))


def _concat(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    axis, images = int_attribute(node, "axis", 0), [value in emitter.last for value in node.inputs]
    rank = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
    if all(images) and axis % rank == 1:
        return Last(relax.op.concat([emitter.image(node, index) for index in range(len(images))], axis=-1))
    return relax.op.concat([emitter.operand(node, index) for index in range(len(images))], axis=axis)


def _split(emitter: Emitter, node: ir.Node) -> list[Expr]:
    from tvm import relax

    x = emitter.operand(node, 0)
    axis = int_attribute(node, "axis", 0) % len(shape_of(x))
    sizes = [shape[axis] for shape in map(static_shape, node.outputs) if shape is not None]
    if len(sizes) != len(node.outputs):
        raise refuse(node, "the parts' sizes are open")
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        emitter.emit(relax.op.strided_slice(x, [axis], [begin], [end])) for begin, end in pairwise(starts)
    ]


def _slice(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te

    x = emitter.operand(node, 0)
    shape, result = shape_of(x), static_shape(node.outputs[0])
    starts, ends = emitter.array(node, 1).tolist(), emitter.array(node, 2).tolist()
    axes, steps = emitter.maybe_array(node, 3), emitter.maybe_array(node, 4)
    begin, stride = [0] * len(shape), [1] * len(shape)
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = int(axes[index]) % len(shape) if axes is not None else index
        step = int(steps[index]) if steps is not None else 1
        begin[axis], _, stride[axis] = slice(start, end, step).indices(shape[axis])
    if result is None:
        raise refuse(node, "the result's shape is open")
    return emitter.compute(
        "slice",
        lambda t: te.compute(
            result,
            lambda *at: t(*(b + i * s for b, i, s in zip(begin, at, stride, strict=True))),
            name="slice",
        ),
        x,
    )


def _pad(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import topi

    x, pads = emitter.operand(node, 0), emitter.array(node, 1).tolist()
    fill, axes, mode = (
        emitter.maybe_array(node, 2),
        emitter.maybe_array(node, 3),
        string_attribute(node, "mode", "constant"),
    )
    if mode != "constant" or axes is not None or min(pads) < 0:
        raise refuse(node, f"mode {mode!r}, axes or negative pads")
    rank, value = len(pads) // 2, 0.0 if fill is None else float(fill.reshape(()))
    return emitter.compute("pad", lambda t: topi.nn.pad(t, pads[:rank], pads[rank:], _typed(value, t)), x)


def _typed(value: float, like: te.Tensor) -> tirx.Expr:
    from tvm import tirx

    return tirx.const(value, like.dtype)


def _gather(emitter: Emitter, node: ir.Node) -> Expr:
    """Look up along an axis; negative indices count from the end, others outside it read the last entry."""
    from tvm import te, tirx

    table, index = emitter.operand(node, 0), emitter.operand(node, 1)
    axis = int_attribute(node, "axis", 0) % len(shape_of(table))
    size, rank = shape_of(table)[axis], len(shape_of(index))
    shape = (*shape_of(table)[:axis], *shape_of(index), *shape_of(table)[axis + 1 :])

    def look_up(t: te.Tensor, at: te.Tensor) -> te.Tensor:
        def element(*place: tirx.Expr) -> tirx.Expr:
            found = at(*place[axis : axis + rank]).astype("int64")
            found = tirx.if_then_else(found < 0, found + size, found)
            found = tirx.max(tirx.min(found, tirx.const(size - 1, "int64")), tirx.const(0, "int64"))
            return t(*place[:axis], found, *place[axis + rank :])

        return te.compute(shape, element, name="gather")

    return emitter.compute("gather", look_up, table, index)


def _depth_to_space(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    x, b = emitter.operand(node, 0), int_attribute(node, "blocksize", 1)
    n, c, h, w = shape_of(x)
    dcr = string_attribute(node, "mode", "DCR") == "DCR"
    split = (n, b, b, c // b**2, h, w) if dcr else (n, c // b**2, b, b, h, w)
    order = (0, 3, 4, 1, 5, 2) if dcr else (0, 1, 4, 2, 5, 3)
    moved = emitter.emit(relax.op.permute_dims(emitter.emit(relax.op.reshape(x, split)), order))
    return relax.op.reshape(moved, (n, c // b**2, h * b, w * b))


def _resize(emitter: Emitter, node: ir.Node) -> Last:
    """Nearest neighbours with whole factors, as upsampling does it."""
    from tvm import te

    x, result = emitter.image(node, 0), static_shape(node.outputs[0])
    result = None if result is None else (result[0], *result[2:], result[1])
    mode, where = (
        string_attribute(node, "mode", "nearest"),
        string_attribute(node, "coordinate_transformation_mode", "half_pixel"),
    )
    rounding = string_attribute(node, "nearest_mode", "round_prefer_floor")
    whole = result is not None and all(to % size == 0 for to, size in zip(result, shape_of(x), strict=True))
    floors = (where, rounding) in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
    if result is None or mode != "nearest" or not whole or not floors:
        raise refuse(node, f"mode {mode}, {where}, {rounding}; whole factors of nearest neighbours are taken")
    factors = [to // size for to, size in zip(result, shape_of(x), strict=True)]
    return Last(
        emitter.compute(
            "resize",
            lambda t: te.compute(
                result, lambda *at: t(*(i // f for i, f in zip(at, factors, strict=True))), name="resize"
            ),
            x,
        )
    )


def _argmax(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    if int_attribute(node, "select_last_index", 0):
        raise refuse(node, "select_last_index")
    x = emitter.operand(node, 0)
    if dtype_of(x) == "float16":
        x = emitter.emit(relax.op.astype(x, "float32"))
    return relax.op.argmax(x, int_attribute(node, "axis", 0), bool(int_attribute(node, "keepdims", 1)))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _to_known_shape),
    "Shape": _shape, "Transpose": _transpose, "Concat": _concat, "Split": _split, "Slice": _slice,
    "Pad": _pad, "Gather": _gather, "DepthToSpace": _depth_to_space, "Resize": _resize, "ArgMax": _argmax,
}  # fmt: skip
