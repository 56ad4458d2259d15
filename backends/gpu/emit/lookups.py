"""Operators whose places or order depend on values: gathers, scatters, selection, running sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute
from ....compiler.ops.common import string_attribute
from .elementwise import wide
from .walk import Emitter, Rule, dtype_of, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def _within(index: tirx.Expr, size: int) -> tirx.Expr:
    """Return a place in 0 .. size - 1: negative ones count from the end, others outside are the last."""
    from tvm import tirx

    found = index.astype("int64")
    found = tirx.if_then_else(found < 0, found + size, found)
    return tirx.max(tirx.min(found, tirx.const(size - 1, "int64")), tirx.const(0, "int64"))


def _gather(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te

    table, index = emitter.operand(node, 0), emitter.operand(node, 1)
    axis = int_attribute(node, "axis", 0) % len(shape_of(table))
    size, rank = shape_of(table)[axis], len(shape_of(index))
    shape = (*shape_of(table)[:axis], *shape_of(index), *shape_of(table)[axis + 1 :])

    def look_up(t: te.Tensor, at: te.Tensor) -> te.Tensor:
        def element(*place: tirx.Expr) -> tirx.Expr:
            found = _within(at(*place[axis : axis + rank]), size)
            return t(*place[:axis], found, *place[axis + rank :])

        return te.compute(shape, element, name="gather")

    return emitter.compute("gather", look_up, table, index)


def _gather_elements(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te

    table, index = emitter.operand(node, 0), emitter.operand(node, 1)
    axis = int_attribute(node, "axis", 0) % len(shape_of(table))
    size = shape_of(table)[axis]

    def look_up(t: te.Tensor, at: te.Tensor) -> te.Tensor:
        return te.compute(
            at.shape,
            lambda *place: t(*place[:axis], _within(at(*place), size), *place[axis + 1 :]),
            name="gather_elements",
        )

    return emitter.compute("gather_elements", look_up, table, index)


def _gather_nd(emitter: Emitter, node: ir.Node) -> Expr:
    """Leading axes that both share, then tuples of indices into the axes behind them."""
    from tvm import te

    table, index = emitter.operand(node, 0), emitter.operand(node, 1)
    shared, sizes = int_attribute(node, "batch_dims", 0), shape_of(table)
    *lead, depth = shape_of(index)
    shape = (*lead, *sizes[shared + depth :])

    def look_up(t: te.Tensor, at: te.Tensor) -> te.Tensor:
        def element(*place: tirx.Expr) -> tirx.Expr:
            outer, inner = place[: len(lead)], place[len(lead) :]
            found = [_within(at(*outer, k), sizes[shared + k]) for k in range(depth)]
            return t(*outer[:shared], *found, *inner)

        return te.compute(shape, element, name="gather_nd")

    return emitter.compute("gather_nd", look_up, table, index)


def _one_hot(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te, tirx

    index, depth = emitter.operand(node, 0), int(emitter.array(node, 1).reshape(()))
    off, on = emitter.array(node, 2).tolist()
    kind, sizes = emitter.array(node, 2).dtype.name, shape_of(index)
    axis = int_attribute(node, "axis", -1) % (len(sizes) + 1)
    if "int" not in dtype_of(index):
        raise refuse(node, f"indices of type {dtype_of(index)}")

    def mark(at: te.Tensor) -> te.Tensor:
        def element(*place: tirx.Expr) -> tirx.Expr:
            wanted = at(*place[:axis], *place[axis + 1 :]).astype("int64")
            wanted = tirx.Select(wanted < 0, wanted + depth, wanted)
            hit = wanted == place[axis].astype("int64")
            return tirx.Select(hit, tirx.const(on, kind), tirx.const(off, kind))

        return te.compute((*sizes[:axis], depth, *sizes[axis:]), element, name="one_hot")

    return emitter.compute("one_hot", mark, index)


def _scatter(emitter: Emitter, node: ir.Node) -> Expr:
    """ScatterND and ScatterElements at places known now: each element is one of `data` or of `updates`."""
    from tvm import relax, te, tirx

    if string_attribute(node, "reduction", "none") != "none":
        raise refuse(node, "a reduction")
    data, updates = emitter.operand(node, 0), emitter.operand(node, 2)
    sources = np.full(shape_of(data), -1, np.int32)
    counted = np.arange(np.prod(shape_of(updates)), dtype=np.int32).reshape(shape_of(updates))
    index = emitter.array(node, 1).astype(np.int64)
    if node.op_type == "ScatterND":
        sources[tuple(np.moveaxis(index, -1, 0))] = counted
    else:
        axis = int_attribute(node, "axis", 0)
        np.put_along_axis(sources, index % sources.shape[axis], counted, axis)
    flat = (int(counted.size),)

    def choose(d: te.Tensor, u: te.Tensor, s: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            return tirx.if_then_else(s(*at) < 0, d(*at), u(tirx.max(s(*at), 0)))

        return te.compute(d.shape, element, name="scatter")

    line = emitter.emit(relax.op.reshape(updates, flat))
    return emitter.compute("scatter", choose, data, line, emitter.constant(sources))


def _top_k(emitter: Emitter, node: ir.Node) -> list[Expr]:
    """Every element's place is how many come before it; then each place collects its element."""
    from tvm import te, tirx

    x, k = emitter.operand(node, 0), int(emitter.array(node, 1).reshape(-1)[0])
    sizes = shape_of(x)
    axis = int_attribute(node, "axis", -1) % len(sizes)
    largest, count = bool(int_attribute(node, "largest", 1)), sizes[axis]

    def at_axis(place: tuple[tirx.Expr, ...], i: tirx.Expr) -> list[tirx.Expr]:
        return [*place[:axis], i, *place[axis + 1 :]]

    def rank(t: te.Tensor, others: te.Tensor) -> te.Tensor:
        j = te.reduce_axis((0, count), name="j")

        def element(*at: tirx.Expr) -> tirx.Expr:
            mine, other = t(*at), others(*at_axis(at, j))
            before = other > mine if largest else other < mine
            tie = tirx.all(other == mine, j < at[axis])
            return te.sum(tirx.any(before, tie).astype("int32"), axis=j)

        return te.compute(t.shape, element, name="rank")

    def collect(r: te.Tensor, *source: te.Tensor) -> te.Tensor:
        i = te.reduce_axis((0, count), name="i")

        def element(*at: tirx.Expr) -> tirx.Expr:
            hit = r(*at_axis(at, i)) == at[axis].astype("int32")
            found = source[0](*at_axis(at, i)) if source else i.astype("int64")
            lowest = tirx.min_value(source[0].dtype if source else "int64")
            return te.max(tirx.Select(hit, found, lowest), axis=i)

        return te.compute((*sizes[:axis], k, *sizes[axis + 1 :]), element, name="collect")

    places = emitter.compute("rank", rank, x, x)
    return [emitter.compute("top_values", collect, places, x), emitter.compute("top_places", collect, places)]


def _running_sum(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import te, tirx

    x, sizes = emitter.operand(node, 0), shape_of(emitter.operand(node, 0))
    axis = int(emitter.array(node, 1).reshape(())) % len(sizes)
    exclusive, reverse = (bool(int_attribute(node, name, 0)) for name in ("exclusive", "reverse"))

    def total(t: te.Tensor) -> te.Tensor:
        j = te.reduce_axis((0, sizes[axis]), name="j")

        def element(*at: tirx.Expr) -> tirx.Expr:
            first, second = (j, at[axis]) if not reverse else (at[axis], j)
            taken = first < second if exclusive else first <= second
            item = t(*at[:axis], j, *at[axis + 1 :])
            return te.sum(tirx.Select(taken, item, tirx.const(0, t.dtype)), axis=j)

        return te.compute(t.shape, element, name="running_sum")

    return wide(lambda emitter, source: emitter.compute("running_sum", total, source))(emitter, x)


def _extreme(name: str) -> Rule:
    """Return the rule of ArgMax or ArgMin."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr:
        from tvm import relax

        if int_attribute(node, "select_last_index", 0):
            raise refuse(node, "select_last_index")
        x = emitter.operand(node, 0)
        if dtype_of(x) in ("float16", "bfloat16"):
            x = emitter.emit(relax.op.astype(x, "float32"))
        keep = bool(int_attribute(node, "keepdims", 1))
        return getattr(relax.op, name)(x, int_attribute(node, "axis", 0), keep)

    return rule


RULES: dict[str, Rule] = {
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "OneHot": _one_hot,
    "ScatterElements": _scatter, "ScatterND": _scatter, "TopK": _top_k, "CumSum": _running_sum,
    "ArgMax": _extreme("argmax"), "ArgMin": _extreme("argmin"),
}  # fmt: skip
