"""Operators that move elements: reshapes, transposes, joins, slices, pads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute, static_shape
from ....compiler.ops.common import string_attribute
from .walk import Emitter, Last, Rule, axis_in_memory, in_memory, placed, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def _result_shape(emitter: Emitter, node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a Reshape, Flatten, Squeeze or Unsqueeze, also in a body nobody has inferred."""
    known = static_shape(node.outputs[0])
    if known is not None:
        return known
    size, op = shape_of(emitter.operand(node, 0)), node.op_type
    if op == "Flatten":
        axis = int_attribute(node, "axis", 1)
        return int(np.prod(size[:axis])), int(np.prod(size[axis:]))
    given = emitter.maybe_array(node, 1)
    wanted = [] if given is None else [int(n) for n in given.reshape(-1)]
    if op == "Squeeze":
        axes = (
            [a % len(size) for a in wanted]
            if given is not None
            else [i for i, n in enumerate(size) if n == 1]
        )
        return tuple(n for i, n in enumerate(size) if i not in axes)
    if op == "Unsqueeze":
        rank = len(size) + len(wanted)
        rest, ones = iter(size), {axis % rank for axis in wanted}
        return tuple(1 if axis in ones else next(rest) for axis in range(rank))
    if not int_attribute(node, "allowzero", 0):
        wanted = [size[i] if n == 0 else n for i, n in enumerate(wanted)]
    return np.empty(size, np.bool_).reshape(wanted).shape


def _to_known_shape(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    return relax.op.reshape(emitter.operand(node, 0), _result_shape(emitter, node))


def _shape(emitter: Emitter, node: ir.Node) -> Expr:
    shape = _input_shape(emitter, node)
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(shape))
    return emitter.constant(np.array(shape[start:end], np.int64))


def _size(emitter: Emitter, node: ir.Node) -> Expr:
    return emitter.constant(np.array(np.prod(_input_shape(emitter, node)), np.int64))


def _input_shape(emitter: Emitter, node: ir.Node) -> tuple[int, ...]:
    value = node.inputs[0]
    known = static_shape(value) if value is not None else None
    return shape_of(emitter.operand(node, 0)) if known is None else known


def _transpose(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    x, is_last = emitter.source(node)
    rank = len(shape_of(x))
    order = ints_attribute(node, "perm", range(rank)[::-1])
    if is_last and order == (0, *range(2, rank), 1):
        return x  # as it lies already
    x = emitter.operand(node, 0)
    if rank > 2 and order == (0, rank - 1, *range(1, rank - 1)):
        return Last(x)
    return relax.op.permute_dims(x, list(order))


def _concat(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    operands, is_last = emitter.alike(node)
    rank = len(shape_of(operands[0]))
    axis = axis_in_memory(int_attribute(node, "axis", 0), rank, is_last)
    return placed(relax.op.concat(operands, axis=axis), is_last)


def _split(emitter: Emitter, node: ir.Node) -> list[Expr | Last]:
    from tvm import relax

    x, is_last = emitter.source(node)
    axis = axis_in_memory(int_attribute(node, "axis", 0), len(shape_of(x)), is_last)
    starts = np.cumsum([0, *_parts(emitter, node, shape_of(x)[axis])]).tolist()
    return [
        placed(emitter.emit(relax.op.strided_slice(x, [axis], [begin], [end])), is_last)
        for begin, end in pairwise(starts)
    ]


def _parts(emitter: Emitter, node: ir.Node, size: int) -> list[int]:
    given = emitter.maybe_array(node, 1)
    if given is not None:
        return [int(part) for part in given]
    count = int_attribute(node, "num_outputs", len(node.outputs))
    part = -(-size // count)
    return [min(part, size - i * part) for i in range(count)]


def _slice(emitter: Emitter, node: ir.Node) -> Expr | Last:
    x, is_last = emitter.source(node)
    sizes = _in_onnx_order(shape_of(x), is_last)
    starts, ends = emitter.array(node, 1).tolist(), emitter.array(node, 2).tolist()
    axes, steps = emitter.maybe_array(node, 3), emitter.maybe_array(node, 4)
    ranges = [range(size) for size in sizes]
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = int(axes[index]) % len(sizes) if axes is not None else index
        step = int(steps[index]) if steps is not None else 1
        ranges[axis] = range(*slice(start, end, step).indices(sizes[axis]))
    taken = in_memory(ranges, is_last)
    if any(len(part) == 0 for part in taken):
        raise refuse(node, "an empty slice")

    def place(*at: tirx.Expr) -> list[tirx.Expr]:
        return [part.start + i * part.step for part, i in zip(taken, at, strict=True)]

    return placed(moved(emitter, "slice", x, [len(part) for part in taken], place), is_last)


def _in_onnx_order(sizes: tuple[int, ...], is_last: bool) -> tuple[int, ...]:
    return (sizes[0], sizes[-1], *sizes[1:-1]) if is_last else sizes


def moved(
    emitter: Emitter,
    name: str,
    x: Expr,
    shape: Sequence[int],
    place: Callable[..., Sequence[tirx.Expr]],
) -> Expr:
    """Emit a result of `shape` each of whose elements is the one of `x` at `place(*index)`."""
    from tvm import te

    return emitter.compute(name, lambda t: te.compute(tuple(shape), lambda *at: t(*place(*at)), name=name), x)


def _pad(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import te, tirx

    x, is_last = emitter.source(node)
    mode, fill = string_attribute(node, "mode", "constant"), emitter.maybe_array(node, 2)
    sizes = shape_of(x)
    widths = in_memory(_widths(emitter, node, len(sizes)), is_last)
    kept = [(max(-b, 0), n + min(b, 0) + min(e, 0)) for n, (b, e) in zip(sizes, widths, strict=True)]
    shape = tuple(n + b + e for n, (b, e) in zip(sizes, widths, strict=True))
    if mode not in ("constant", "edge", "reflect", "wrap") or min(n for _, n in kept) < 1 or min(shape) < 1:
        raise refuse(node, f"mode {mode!r}, or nothing left by negative pads")
    value = 0.0 if fill is None else fill.reshape(()).item()

    def element(t: te.Tensor, *at: tirx.Expr) -> tirx.Expr:
        places = [i - max(b, 0) for i, (b, _) in zip(at, widths, strict=True)]
        inner = [_reached(mode, p, n) for p, (_, n) in zip(places, kept, strict=True)]
        found = t(*(p + first for p, (first, _) in zip(inner, kept, strict=True)))
        outside = [
            tirx.any(p < 0, p >= n)
            for p, (_, n), (b, e) in zip(places, kept, widths, strict=True) if b > 0 or e > 0
        ]  # fmt: skip
        if mode != "constant" or not outside:
            return found
        return tirx.if_then_else(tirx.any(*outside), tirx.const(value, t.dtype), found)

    result = emitter.compute("pad", lambda t: te.compute(shape, lambda *at: element(t, *at), name="pad"), x)
    return placed(result, is_last)


def _widths(emitter: Emitter, node: ir.Node, rank: int) -> list[tuple[int, int]]:
    """Return what is added before and behind every axis; negative numbers take away."""
    pads, axes = emitter.array(node, 1).tolist(), emitter.maybe_array(node, 3)
    where = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    widths = [(0, 0)] * rank
    for index, axis in enumerate(where):
        widths[axis] = (pads[index], pads[index + len(where)])
    return widths


def _reached(mode: str, p: tirx.Expr, size: int) -> tirx.Expr:
    """Return which of `size` elements a place beyond them shows."""
    from tvm import tirx

    if mode == "edge" or (mode == "reflect" and size == 1):
        return tirx.max(tirx.min(p, size - 1), 0)
    if mode == "wrap":
        return tirx.floormod(p, size)
    if mode == "reflect":
        turn = tirx.floormod(p, 2 * size - 2)
        return tirx.min(turn, 2 * size - 2 - turn)
    return p


def _tile(emitter: Emitter, node: ir.Node) -> Expr:
    x, repeats = emitter.operand(node, 0), emitter.array(node, 1).tolist()
    sizes = shape_of(x)
    shape = [n * int(r) for n, r in zip(sizes, repeats, strict=True)]
    return moved(emitter, "tile", x, shape, lambda *at: [i % n for i, n in zip(at, sizes, strict=True)])


def _trilu(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te, tirx

    x, k = emitter.operand(node, 0), emitter.maybe_array(node, 1)
    shift, upper = 0 if k is None else int(k.reshape(())), bool(int_attribute(node, "upper", 1))

    def element(t: te.Tensor, *at: tirx.Expr) -> tirx.Expr:
        row, column = at[-2], at[-1]
        keeps = column >= row + shift if upper else column <= row + shift
        return tirx.if_then_else(keeps, t(*at), tirx.const(0, t.dtype))

    return emitter.compute(
        "trilu", lambda t: te.compute(t.shape, lambda *at: element(t, *at), name="trilu"), x
    )


def _depth_to_space(emitter: Emitter, node: ir.Node) -> Last:
    """With the channels last: block rows, block columns and channels are parts of the last axis."""
    from tvm import relax

    x, b = emitter.image(node, 0), int_attribute(node, "blocksize", 1)
    n, h, w, c = shape_of(x)
    dcr = string_attribute(node, "mode", "DCR") == "DCR"
    split = (n, h, w, b, b, c // b**2) if dcr else (n, h, w, c // b**2, b, b)
    order = (0, 1, 3, 2, 4, 5) if dcr else (0, 1, 4, 2, 5, 3)
    turned = emitter.emit(relax.op.permute_dims(emitter.emit(relax.op.reshape(x, split)), order))
    return Last(relax.op.reshape(turned, (n, h * b, w * b, c // b**2)))


def _space_to_depth(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import relax

    x, b = emitter.image(node, 0), int_attribute(node, "blocksize", 1)
    n, h, w, c = shape_of(x)
    split = emitter.emit(relax.op.reshape(x, (n, h // b, b, w // b, b, c)))
    turned = emitter.emit(relax.op.permute_dims(split, (0, 1, 3, 2, 4, 5)))
    return Last(relax.op.reshape(turned, (n, h // b, w // b, c * b * b)))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _to_known_shape),
    "Shape": _shape, "Size": _size, "Transpose": _transpose, "Concat": _concat, "Split": _split,
    "Slice": _slice, "Pad": _pad, "Tile": _tile, "Trilu": _trilu,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
}  # fmt: skip
