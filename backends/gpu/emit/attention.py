"""Attention found in the graph and emitted as one function.

    MatMul(q, k^T) [-> Mul | Div by a number] [-> Add a mask] -> Softmax -> MatMul(., v)

with transpositions before and behind it taken in as strides, so that heads are read where they lie. Sizes
that the kernel does not take stay single operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute, only_user, producer, static_shape
from ....compiler.ops.constants import constant_expression
from ..schedules.lowbit_attention import Shape, takes
from .attention_op import write_out_attention
from .lowbit_written import DOMAIN, emit_written, put_for
from .walk import Emitter, Rule

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

OP = "FusedAttention"

_REALS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


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
    mask: ir.Value | None
    scale: float
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
    inputs = [found.q.value, found.k.value, found.v.value, found.mask]
    attributes = {key: value for key, value in shape.__dict__.items() if value != ()}
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
    sizes = static_shape(softmax.outputs[0])
    if sizes is None or len(sizes) not in (3, 4) or not all(sizes) or softmax.outputs[0].dtype not in _REALS:
        return None
    if int_attribute(softmax, "axis", -1) not in (-1, len(sizes) - 1):
        return None
    behind = only_user(softmax.outputs[0])
    if behind is None or behind.op_type != "MatMul" or behind.inputs[0] is not softmax.outputs[0]:
        return None
    scores, mask = _unmasked(softmax.inputs[0])
    scores, scale = _unscaled(scores)
    product = producer(scores, "MatMul")
    if product is None or scores is None or only_user(scores) is None or scores.dtype not in _REALS:
        return None
    rank = len(sizes)
    rows, columns = _identity(rank), (*_identity(rank)[:2], rank - 1, rank - 2)
    q, k, v = (
        _operand(value, axes)
        for value, axes in ((product.inputs[0], rows), (product.inputs[1], columns), (behind.inputs[1], rows))
    )
    if q is None or k is None or v is None:
        return None
    last, out = _turned_back(behind, rows)
    return _Found(q, k, v, mask, scale, last, out)


def _identity(rank: int) -> tuple[int, ...]:
    return (0, 1, 2, 3) if rank == 4 else (0, -1, 1, 2)


def _unmasked(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """Return the scores before an Add of a mask, and the mask."""
    node = producer(value, "Add")
    if node is None or value is None or only_user(value) is None:
        return value, None
    for scores, mask in (node.inputs[:2], node.inputs[1::-1]):
        source = None if scores is None else scores.producer()
        if source is not None and mask is not None and source.op_type in ("MatMul", "Mul", "Div"):
            wide = static_shape(scores)
            if wide == static_shape(value) and _unscaled(scores)[0] is not None:
                return scores, mask
    return value, None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return the scores before they were multiplied with or divided by a number, and the factor."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type not in ("Mul", "Div") or only_user(value) is None:
        return value, 1.0
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        number, other = constant_expression(node.inputs[index]), node.inputs[1 - index]
        if number is not None and number.size == 1 and producer(other, "MatMul") is not None:
            factor = float(number.reshape(()))
            return other, factor if node.op_type == "Mul" else 1.0 / factor if factor else 0.0
    return value, 1.0


def _operand(value: ir.Value | None, axes: tuple[int, ...]) -> _Operand | None:
    """Return an operand, from before a transposition if columns lie behind each other there."""
    if value is None or static_shape(value) is None or len(static_shape(value) or ()) != max(axes) + 1:
        return None
    node = producer(value, "Transpose")
    if node is not None and node.inputs[0] is not None:
        order = ints_attribute(node, "perm", tuple(reversed(range(max(axes) + 1))))
        inner = _Operand(node.inputs[0], tuple(-1 if axis < 0 else order[axis] for axis in axes))
        if inner.strides()[3] == 1:
            return inner
    own = _Operand(value, axes)
    return own if own.strides()[3] == 1 else None


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
    mask = _mask_strides(found.mask, (batch, heads, rows, keys), found.q.axes[1] >= 0)
    if mask is None or (found.mask is not None and found.mask.dtype != kind) or not np.isfinite(found.scale):
        return None
    lies = [_three(x.strides()) for x in (q, k, v, out)]
    sizes = (batch, heads, rows, keys, depth, width)
    return Shape(*sizes, found.scale, kind.numpy().name, lies[0], lies[1], lies[2], lies[3], mask)


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
    values = {name: attribute(node, name) for name in Shape.__dataclass_fields__ if name != "mask"}
    masked = len(node.inputs) > 3 and node.inputs[3] is not None
    strides = tuple(ints_attribute(node, "mask")) if masked else ()
    fixed = {
        name: tuple(v) if isinstance(v, Sequence) and name != "data" else v for name, v in values.items()
    }
    shape = Shape(**fixed, mask=strides)  # type: ignore[arg-type]
    axes = [tuple(ints_attribute(node, f"{name}_axes")) for name in ("q", "k", "v", "out")]
    operands = [emitter.operand(node, index) for index in range(3 + masked)]
    return emit_written(emitter, "attention", "attention", shape, _Formula(shape, axes), operands)


@dataclass(frozen=True)
class _Formula:
    """What the kernel computes, as single steps in float32."""

    shape: Shape
    axes: Sequence[tuple[int, ...]]

    def __call__(self, q: te.Tensor, k: te.Tensor, v: te.Tensor, mask: te.Tensor | None = None) -> te.Tensor:
        from tvm import te, tirx

        shape = self.shape
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
            return value if mask is None else value + self._masked(mask, at).astype("float32")

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
            return (mixed(*place) / total(*place[:3])).astype(shape.data)

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
