"""Attention found in the graph and emitted as one function.

    MatMul(q, k^T) [-> what attention_scores.py takes] -> Softmax [-> 0 for NaN] [-> Cast] -> MatMul(., v)

with transpositions before and behind it taken in as strides, so that heads are read where they lie, and
factors of q and k as one of the scores. Sizes that the kernel does not take stay single operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute, only_user, producer, static_shape
from ....compiler.ops.constants import constant_expression
from ..schedules.lowbit_attention import Shape, takes
from .attention_op import write_out_attention
from .attention_scores import Scores, scores_of, unscaled
from .lowbit_written import DOMAIN, emit_written, put_for
from .walk import Emitter, Rule

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

OP = "FusedAttention"


@dataclass(frozen=True, eq=False)
class _Operand:
    """A value and which of its axes are batch, head, row and column; -1: it has none."""

    value: ir.Value
    axes: tuple[int, ...]

    def strides(self) -> tuple[int, ...]:
        """Return elements from one batch, head, row and column to the next."""
        sizes = static_shape(self.value)
        assert sizes is not None, "an operand without a shape"
        return tuple(0 if axis < 0 else prod(sizes[axis + 1 :]) for axis in self.axes)

    def size(self, role: int) -> int:
        """Return the size of batch (0), head (1), row (2) or column (3)."""
        sizes = static_shape(self.value)
        assert sizes is not None, "an operand without a shape"
        return 1 if self.axes[role] < 0 else sizes[self.axes[role]]


@dataclass(frozen=True, eq=False)
class _Found:
    """An attention: its operands (of k the rows are keys), what is behind it, and which axes that has."""

    q: _Operand
    k: _Operand
    v: _Operand
    scores: Scores
    scale: float
    safe: bool
    last: ir.Node
    out: tuple[int, ...]


def use_attention(model: ir.Model) -> int:
    """Replace attention in place; returns how many. The operator `Attention` is written out before."""
    write_out_attention(model)
    found = [node for node in model.graph if node.op_type == "Softmax" and node.domain == ""]
    replaced = sum(_replace(node) for node in found)
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


def _replace(softmax: ir.Node) -> bool:
    found = _around(softmax)
    shape = None if found is None else _shape(found)
    if found is None or shape is None or not takes(shape):
        return False
    scores, choice = found.scores, found.scores.choice
    condition = None if choice is None else choice.condition
    inputs = [found.q.value, found.k.value, found.v.value, scores.mask, condition]
    sizes = {key: value for key, value in asdict(shape).items() if value != ()}
    attributes = {key: int(value) if isinstance(value, bool) else value for key, value in sizes.items()}
    attributes |= {
        "q_axes": found.q.axes,
        "k_axes": found.k.axes,
        "v_axes": found.v.axes,
        "out_axes": found.out,
    }
    put_for(found.last, OP, inputs, attributes, softmax.name)
    return True


# --- recognition ------------------------------------------------------------------------------------


def _around(softmax: ir.Node) -> _Found | None:
    sizes, scores = static_shape(softmax.outputs[0]), scores_of(softmax.inputs[0])
    if sizes is None or len(sizes) not in (3, 4) or not all(sizes) or scores is None:
        return None
    if int_attribute(softmax, "axis", -1) not in (-1, len(sizes) - 1):
        return None
    weights, safe = _without_nan(softmax.outputs[0])
    weights = _narrowed(weights, scores.product.outputs[0].dtype)
    behind = only_user(weights)
    if behind is None or (behind.domain, behind.op_type) != ("", "MatMul") or behind.inputs[0] is not weights:
        return None
    rank = len(sizes)
    rows, columns = _identity(rank), (*_identity(rank)[:2], rank - 1, rank - 2)
    left, right = scores.product.inputs[:2]
    (q, first), (k, second), (v, _) = (
        _operand(value, axes, scaled=scaled)
        for value, axes, scaled in (
            (left, rows, True),
            (right, columns, True),
            (behind.inputs[1], rows, False),
        )
    )
    if q is None or k is None or v is None:
        return None
    last, out = _turned_back(behind, rows)
    return _Found(q, k, v, scores, scores.scale * first * second, safe, last, out)


def _without_nan(value: ir.Value) -> tuple[ir.Value, bool]:
    """Return weights behind Where(IsNaN(weights), 0, weights), and whether that is there."""
    users = {node.op_type: node for node in value.consumers() if node.domain == ""}
    test, choice = users.get("IsNaN"), users.get("Where")
    if len(value.uses()) != 2 or test is None or choice is None or value.is_graph_output():
        return value, False
    zero = constant_expression(choice.inputs[1])
    only = only_user(test.outputs[0]) is choice and choice.inputs[0] is test.outputs[0]
    plain = zero is not None and not zero.any() and static_shape(choice.outputs[0]) == static_shape(value)
    return (choice.outputs[0], True) if only and plain else (value, False)


def _narrowed(value: ir.Value, kind: ir.DataType | None) -> ir.Value:
    """Return weights behind a Cast from float32 to the type of the product."""
    cast = only_user(value)
    if cast is None or (cast.domain, cast.op_type) != ("", "Cast") or value.dtype != ir.DataType.FLOAT:
        return value
    return cast.outputs[0] if cast.outputs[0].dtype == kind else value


def _identity(rank: int) -> tuple[int, ...]:
    return (0, 1, 2, 3) if rank == 4 else (0, -1, 1, 2)


def _operand(value: ir.Value | None, axes: tuple[int, ...], *, scaled: bool) -> tuple[_Operand | None, float]:
    """Return an operand whose columns lie behind each other in memory, and the factor it comes with.

    It is from before a transposition if that is so there; if `scaled`, from before a product with a number.
    """
    plain, factor = unscaled(value) if scaled else (value, 1.0)
    rank = max(axes) + 1
    if plain is None or len(static_shape(plain) or ()) != rank:
        return None, factor
    node = producer(plain, "Transpose")
    if node is not None and node.inputs[0] is not None:
        order = ints_attribute(node, "perm", tuple(reversed(range(rank))))
        source, more = unscaled(node.inputs[0]) if scaled else (node.inputs[0], 1.0)
        assert source is not None, "a transposition of nothing"
        inner = _Operand(source, tuple(-1 if axis < 0 else order[axis] for axis in axes))
        if inner.strides()[3] == 1:
            return inner, factor * more
    own = _Operand(plain, axes)
    return (own if own.strides()[3] == 1 else None), factor


def _turned_back(behind: ir.Node, axes: tuple[int, ...]) -> tuple[ir.Node, tuple[int, ...]]:
    """Return the node whose result the kernel writes, and the axes of that: a transposition may follow."""
    after = only_user(behind.outputs[0])
    if after is None or after.op_type != "Transpose" or after.domain != "":
        return behind, axes
    order = list(ints_attribute(after, "perm", tuple(reversed(range(max(axes) + 1)))))
    turned = tuple(-1 if axis < 0 else order.index(axis) for axis in axes)
    return (after, turned) if turned[3] == max(axes) else (behind, axes)


def _shape(found: _Found) -> Shape | None:
    """Return the sizes; None where operands do not fit each other as they are."""
    q, k, v = found.q, found.k, found.v
    batch, heads, rows, depth = (q.size(role) for role in range(4))
    keys, width, kind = k.size(2), v.size(3), q.value.dtype
    out = _Operand(found.last.outputs[0], found.out)
    alike = all((x.size(0), x.size(1)) == (batch, heads) and x.value.dtype == kind for x in (k, v, out))
    if kind is None or not alike or k.size(3) != depth or v.size(2) != keys:
        return None
    full, has_heads, scores = (batch, heads, rows, keys), q.axes[1] >= 0, found.scores
    choice = scores.choice
    mask = _mask_strides(scores.mask, full, has_heads)
    chosen = _mask_strides(None if choice is None else choice.condition, full, has_heads)
    if mask is None or (scores.mask is not None and scores.mask.dtype != kind):
        return None
    if chosen is None or not np.isfinite(found.scale):
        return None
    lies = [_three(x.strides()) for x in (q, k, v, out)]
    return Shape(
        batch, heads, rows, keys, depth, width, found.scale, kind.numpy().name, lies[0], lies[1], lies[2],
        lies[3], mask, chosen, choice is None or choice.keep, 0.0 if choice is None else choice.fill,
        scores.late, found.safe,
    )  # fmt: skip


def _three(strides: Sequence[int]) -> tuple[int, int, int]:
    return strides[0], strides[1], strides[2]


def _mask_strides(mask: ir.Value | None, full: Sequence[int], has_heads: bool) -> tuple[int, ...] | None:
    """Return the strides of a mask that broadcasts, () without one, None for one that does not."""
    if mask is None:
        return ()
    sizes = static_shape(mask)
    rank = 4 if has_heads else 3
    if sizes is None or len(sizes) > rank:
        return None
    sizes = (1,) * (rank - len(sizes)) + sizes
    steps = [0 if size == 1 else prod(sizes[axis + 1 :]) for axis, size in enumerate(sizes)]
    if not has_heads:
        sizes, steps = (sizes[0], 1, *sizes[1:]), [steps[0], 0, *steps[1:]]
    fits = all(size in (1, wanted) for size, wanted in zip(sizes, full, strict=True))
    return tuple(steps) if fits else None


# --- emission ---------------------------------------------------------------------------------------


def _attention(emitter: Emitter, node: ir.Node) -> Expr:
    fields = Shape.__dataclass_fields__
    given = {name: attribute(node, name, ()) for name in fields}
    lists = {k: tuple(v) for k, v in given.items() if isinstance(v, Sequence) and k != "data"}
    truths = {name: bool(given[name]) for name in ("keep", "late", "safe")}
    shape = Shape(**{**given, **lists, **truths})  # type: ignore[arg-type]
    axes = [tuple(ints_attribute(node, f"{name}_axes")) for name in ("q", "k", "v", "out")]
    operands = [emitter.optional(node, index) for index in range(len(node.inputs))]
    there = [x for x in operands if x is not None]
    return emit_written(emitter, "attention", "attention", shape, _Formula(shape, axes), there)


@dataclass(frozen=True)
class _Formula:
    """What the kernel computes, as single steps in float32."""

    shape: Shape
    axes: Sequence[tuple[int, ...]]

    def __call__(self, q: te.Tensor, k: te.Tensor, v: te.Tensor, *more: te.Tensor) -> te.Tensor:
        from tvm import te, tirx

        shape = self.shape
        mask = more[0] if shape.mask else None
        choice = more[-1] if shape.choice else None
        lead = (shape.batch, shape.heads, shape.rows)
        d, s, s2, s3 = (
            te.reduce_axis((0, size), name)
            for size, name in ((shape.depth, "d"), *((shape.keys, f"s{i}") for i in range(3)))
        )

        def product(b: tirx.Var, h: tirx.Var, i: tirx.Var, j: tirx.Var) -> tirx.Expr:
            left, right = self._at(q, 0, b, h, i, d), self._at(k, 1, b, h, j, d)
            return te.sum(left.astype("float32") * right.astype("float32"), axis=d)

        scores = te.compute((*lead, shape.keys), product, name="scores")

        def masked(*at: tirx.Var) -> tirx.Expr:
            value = scores(*at) * tirx.const(shape.scale, "float32")
            added = None if mask is None else self._masked(mask, at).astype("float32")
            if added is not None and not shape.late:
                value = value + added
            if choice is not None:
                fill, chosen = tirx.const(shape.fill, "float32"), self._masked(choice, at)
                value = tirx.Select(chosen, *((value, fill) if shape.keep else (fill, value)))
            return value + added if added is not None and shape.late else value

        scaled = te.compute((*lead, shape.keys), masked, name="scaled")
        largest = te.compute(lead, lambda *at: te.max(scaled(*at, s), axis=s), name="largest")
        weights = te.compute(
            (*lead, shape.keys), lambda *at: tirx.exp(scaled(*at) - largest(*at[:-1])), name="weights"
        )
        total = te.compute(lead, lambda *at: te.sum(weights(*at, s2), axis=s2), name="total")
        mixed = te.compute(
            (*lead, shape.width),
            lambda b, h, i, j: te.sum(
                weights(b, h, i, s3) * self._at(v, 2, b, h, s3, j).astype("float32"), axis=s3
            ),
            name="mixed",
        )
        roles, sizes = self.axes[3], (*lead, shape.width)
        order = sorted((axis, role) for role, axis in enumerate(roles) if axis >= 0)

        def result(*at: tirx.Var) -> tirx.Expr:
            place = [at[axis] if axis >= 0 else 0 for axis in roles]
            whole = total(*place[:3])
            value = mixed(*place) / whole
            if shape.safe:
                value = tirx.Select(whole > tirx.const(0, "float32"), value, tirx.const(0, "float32"))
            return value.astype(shape.data)

        return te.compute([sizes[role] for _, role in order], result, name="attention")

    def _at(self, t: te.Tensor, operand: int, *place: tirx.Expr) -> tirx.Expr:
        """Return the element at batch, head, row and column."""
        roles = self.axes[operand]
        order = sorted((axis, role) for role, axis in enumerate(roles) if axis >= 0)
        return t(*(place[role] for _, role in order))

    def _masked(self, mask: te.Tensor, at: Sequence[tirx.Var]) -> tirx.Expr:
        places = list(at) if self.axes[0][1] >= 0 else [at[0], *at[2:]]
        steps = zip(mask.shape, places[len(places) - len(mask.shape) :], strict=True)
        return mask(*(0 if int(size) == 1 else place for size, place in steps))


RULES: dict[tuple[str, str], Rule] = {(DOMAIN, OP): _attention}
