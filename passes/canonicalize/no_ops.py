"""Rules that tell when a node's output equals one of its inputs, bit for bit.

Each rule takes a node and returns that input, None when the node does something, or a reason (a string)
when it looks like a no-op but may not be treated as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import constant, constant_tensor, int_attribute, ints_attribute, scalar
from .common import is_nonnegative, is_op, rank, same_shape

Verdict: TypeAlias = ir.Value | str | None
# Reading a constant to compare it with 0 or 1 is for small ones; big ones are weights.
_SMALL_ELEMENTS = 65536


def same_as_input(node: ir.Node) -> Verdict:
    """Return the input that the first output of `node` equals, None, or a reason for leaving it."""
    rule = None if node.domain else RULES.get(node.op_type)
    return None if rule is None else rule(node)


def _input(node: ir.Node, index: int = 0) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _always(node: ir.Node) -> Verdict:
    return _input(node)


def _dropout(node: ir.Node) -> Verdict:
    training = _input(node, 2)
    if training is not None:
        flag = scalar(training)
        if flag is None:
            return "training_mode is not constant"
        if flag:
            return "training mode"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its mask is used"
    return _input(node)


def _cast(node: ir.Node) -> Verdict:
    source = _input(node)
    wanted = int_attribute(node, "to", 0)
    return source if source is not None and source.dtype is not None and source.dtype == wanted else None


def _cast_like(node: ir.Node) -> Verdict:
    source, like = node.inputs[:2]
    if source is None or like is None or source.dtype is None:
        return None
    return source if source.dtype == like.dtype else None


def _relu(node: ir.Node) -> Verdict:
    return _input(node) if is_nonnegative(_input(node)) else None


def _clip(node: ir.Node) -> Verdict:
    low, high = _input(node, 1), _input(node, 2)
    source = _input(node)
    before = None if source is None else source.producer()
    if before is not None and is_op(before, "Clip") and _same_bounds(before, node):
        return source
    open_low = low is None or scalar(low) == -np.inf
    open_high = high is None or scalar(high) == np.inf
    return source if open_low and open_high else None


def _same_bounds(first: ir.Node, second: ir.Node) -> bool:
    pairs = [(_input(first, index), _input(second, index)) for index in (1, 2)]
    return all(a is b or (scalar(a) is not None and scalar(a) == scalar(b)) for a, b in pairs)


def _keeps_shape(node: ir.Node) -> Verdict:
    source = _input(node)
    return source if same_shape(source, node.outputs[0]) else None


def _transpose(node: ir.Node) -> Verdict:
    axes = rank(_input(node))
    perm = ints_attribute(node, "perm", () if axes is None else tuple(reversed(range(axes))))
    return _input(node) if axes is not None and perm == tuple(range(axes)) else None


def _slice(node: ir.Node) -> Verdict:
    steps = _input(node, 4)
    values = None if steps is None else constant(steps)
    forward = steps is None or (values is not None and min(values.tolist(), default=1) > 0)
    return _keeps_shape(node) if forward else None


def _single(node: ir.Node) -> Verdict:
    return _input(node) if len(node.inputs) == 1 else None


def _pad(node: ir.Node) -> Verdict:
    pads = constant(_input(node, 1))
    return _input(node) if pads is not None and not pads.any() else None


def _tile(node: ir.Node) -> Verdict:
    repeats = constant(_input(node, 1))
    return _input(node) if repeats is not None and bool((repeats == 1).all()) else None


def _split(node: ir.Node) -> Verdict:
    return _keeps_shape(node) if len(node.outputs) == 1 else None


def _neutral(value: float, *, both_sides: bool) -> Callable[[ir.Node], Verdict]:
    """Return a rule: an operand that is `value` throughout (sign of zero included) leaves the other."""

    def rule(node: ir.Node) -> Verdict:
        for data, operand in ((0, 1), (1, 0)) if both_sides else ((0, 1),):
            if _is_all(node.inputs[operand], value) and same_shape(node.inputs[data], node.outputs[0]):
                return node.inputs[data]
        return None

    return rule


def _is_all(operand: ir.Value | None, value: float) -> bool:
    tensor = None if operand is None else constant_tensor(operand)
    if tensor is None or tensor.size > _SMALL_ELEMENTS:
        return False
    array = tensor.numpy()
    if array.dtype.kind not in "iuf":
        return False
    # x + 0.0 turns -0.0 into 0.0; x + -0.0 and x - 0.0 keep it. Integers have one zero.
    same_sign = array.dtype.kind != "f" or bool((np.signbit(array) == np.signbit(value)).all())
    return bool((array == value).all()) and same_sign


RULES: Mapping[str, Callable[[ir.Node], Verdict]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Relu": _relu,
    "Clip": _clip,
    "Reshape": _keeps_shape,
    "Flatten": _keeps_shape,
    "Squeeze": _keeps_shape,
    "Unsqueeze": _keeps_shape,
    "Expand": _keeps_shape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Concat": _single,
    "Sum": _single,
    "Mean": _single,
    "Max": _single,
    "Min": _single,
    "Pad": _pad,
    "Tile": _tile,
    "Split": _split,
    "Mul": _neutral(1.0, both_sides=True),
    "Div": _neutral(1.0, both_sides=False),
    "Add": _neutral(-0.0, both_sides=True),
    "Sub": _neutral(0.0, both_sides=False),
}
