"""Reductions, with sums in float64; softmax in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ops.common import string_attribute
from .elementwise import wide
from .walk import Emitter, Last, Rule, axis_in_memory, dtype_of, placed, refuse, shape_of

if TYPE_CHECKING:
    from .walk import Expr


# What sums are accumulated in, as in the reference: one addition for each element that is read, so memory
# stays the bound, also on chips where float64 is slow.
SUMS = "float64"


def _summed(emitter: Emitter, x: Expr, axes: Sequence[int], *, keep: bool, mean: bool) -> Expr:
    """Emit a sum or mean; the conversion stands inside, so that nothing wide is written."""
    from tvm import relax, te, tirx

    def total(t: te.Tensor) -> te.Tensor:
        taps = {axis: te.reduce_axis((0, t.shape[axis]), name=f"k{axis}") for axis in axes}
        shape = [1 if axis in taps else size for axis, size in enumerate(t.shape) if keep or axis not in taps]

        def element(*at: tirx.Expr) -> tirx.Expr:
            kept = iter(at)
            places = []
            for axis in range(len(t.shape)):
                place = next(kept) if keep or axis not in taps else None
                places.append(taps.get(axis, place))
            return te.sum(t(*places).astype(SUMS), axis=list(taps.values()))

        return te.compute(shape, element, name="sum")

    found = emitter.compute("sum", total, x)
    if mean:
        count = math.prod(shape_of(x)[axis] for axis in axes)
        found = emitter.emit(relax.op.divide(found, emitter.constant(np.float64(count))))
    return emitter.emit(relax.op.astype(found, dtype_of(x)))


def _global(name: str) -> Rule:
    def rule(emitter: Emitter, node: ir.Node) -> Last:
        from tvm import relax

        image = emitter.image(node, 0)
        axes = list(range(1, len(shape_of(image)) - 1))
        if name == "mean":
            return Last(_summed(emitter, image, axes, keep=True, mean=True))
        return Last(getattr(relax.op, name)(image, axis=axes, keepdims=True))

    return rule


def _axes(emitter: Emitter, node: ir.Node, rank: int) -> list[int]:
    """Return the axes that are reduced, none where the node leaves its input alone."""
    given = emitter.maybe_array(node, 1)
    if given is None and "axes" in node.attributes:
        given = np.array(ints_attribute(node, "axes"))
    if (given is None or not given.size) and int_attribute(node, "noop_with_empty_axes", 0):
        return []
    return [int(axis) % rank for axis in given] if given is not None and given.size else list(range(rank))


def _reduce(name: str, before: str = "", after: str = "") -> Rule:
    """Return the rule of a reduction, with an elementwise operator in front of it or behind it."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        source, is_last = emitter.source(node)
        rank, keep = len(shape_of(source)), bool(int_attribute(node, "keepdims", 1))
        if is_last and not keep:
            source, is_last = emitter.operand(node, 0), False
        axes = [axis_in_memory(axis, max(rank, 1), is_last) for axis in _axes(emitter, node, rank)]

        def compute(emitter: Emitter, x: Expr) -> Expr:
            x = emitter.emit(getattr(relax.op, before)(x)) if before else x
            x = _reduced(emitter, x, name, axes, keep) if axes else x
            return getattr(relax.op, after)(x) if after else x

        return placed(wide(compute)(emitter, source), is_last)

    return rule


def _reduced(emitter: Emitter, x: Expr, name: str, axes: list[int], keep: bool) -> Expr:
    from tvm import relax

    if name in ("sum", "mean"):
        return _summed(emitter, x, axes, keep=keep, mean=name == "mean")
    return emitter.emit(getattr(relax.op, name)(x, axis=axes, keepdims=keep))


def _log_sum_exp(emitter: Emitter, node: ir.Node) -> Expr:
    """`m + log(sum(exp(x - m)))` with the largest element m, so that no exponential overflows."""
    from tvm import relax

    source = emitter.operand(node, 0)
    axes = _axes(emitter, node, len(shape_of(source)))
    keep = bool(int_attribute(node, "keepdims", 1))
    if not axes:
        raise refuse(node, "no axes")

    def compute(emitter: Emitter, x: Expr) -> Expr:
        most = emitter.emit(relax.op.max(x, axis=axes, keepdims=True))
        powers = emitter.emit(relax.op.exp(emitter.emit(relax.op.subtract(x, most))))
        total = emitter.emit(relax.op.log(emitter.emit(relax.op.sum(powers, axis=axes, keepdims=True))))
        result = emitter.emit(relax.op.add(total, most))
        return result if keep else emitter.emit(relax.op.squeeze(result, axes))

    return wide(compute)(emitter, source)


def _softmax(name: str) -> Rule:
    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        x, is_last = emitter.source(node)
        axis = axis_in_memory(int_attribute(node, "axis", -1), len(shape_of(x)), is_last)
        op: Callable[..., Expr] = getattr(relax.op.nn, name)
        return placed(wide(lambda emitter, x: op(x, axis=axis))(emitter, x), is_last)

    return rule


def _einsum(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax, topi

    equation = string_attribute(node, "equation", "").replace(" ", "")
    if "." in equation:
        raise refuse(node, f"equation {equation!r} with an ellipsis")
    operands = [emitter.operand(node, index) for index in range(len(node.inputs))]
    kind = node.outputs[0].dtype
    narrow = kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if narrow:
        operands = [emitter.emit(relax.op.astype(operand, "float32")) for operand in operands]
    total = emitter.compute("einsum", lambda *t: topi.einsum(equation, *t), *operands)
    return relax.op.astype(total, kind.numpy().name) if narrow and kind is not None else total


RULES: dict[str, Rule] = {
    "GlobalAveragePool": _global("mean"), "GlobalMaxPool": _global("max"),
    "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"), "ReduceMax": _reduce("max"),
    "ReduceMin": _reduce("min"), "ReduceSumSquare": _reduce("sum", before="square"),
    "ReduceProd": _reduce("prod"), "ReduceLogSum": _reduce("sum", after="log"),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceL1": _reduce("sum", before="abs"), "ReduceL2": _reduce("sum", before="square", after="sqrt"),
    "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"), "Einsum": _einsum,
}  # fmt: skip
