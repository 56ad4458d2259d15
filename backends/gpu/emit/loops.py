"""Scan, and Loop with a trip count that is known: the body's kernels once per step.

A step takes its number from memory, so that all steps share their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ops.constants import constant_expression
from .walk import Emitter, Rule, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

# Kernels of one step times this: what is recorded in a CUDA graph and read from the artifact.
MOST_STEPS = 2048
# Arguments of one kernel that joins; pointers take 8 of its 4096 bytes.
_JOINED = 32


def checked_steps(node: ir.Node, count: int) -> int:
    """Return a number of steps that is not beyond what is unrolled."""
    if not 0 < count <= MOST_STEPS:
        raise refuse(node, f"{count} steps; 1 to {MOST_STEPS} are taken")
    return count


def step_number(emitter: Emitter, step: int) -> Expr:
    """Return the number of a step as a buffer of one integer."""
    return emitter.constant(np.array([step], np.int32))


def taken(emitter: Emitter, sequence: Expr, step: int) -> Expr:
    """Emit element `step` along axis 0."""
    from tvm import te

    def take(t: te.Tensor, number: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            return t(number(0), *at)

        return te.compute(tuple(t.shape)[1:], element, name="taken")

    return emitter.compute("taken", take, sequence, step_number(emitter, step))


def stacked(emitter: Emitter, items: Sequence[Expr], axis: int = 0) -> Expr:
    """Join equal shapes along a new axis, by few kernels that all groups of items share."""
    from tvm import relax

    rank = len(shape_of(items[0])) + 1
    parts = [emitter.emit(relax.op.expand_dims(item, axis % rank)) for item in items]
    while len(parts) > 1:
        groups = [parts[start : start + _JOINED] for start in range(0, len(parts), _JOINED)]
        parts = [
            emitter.emit(relax.op.concat(group, axis=axis % rank)) if len(group) > 1 else group[0]
            for group in groups
        ]
    return parts[0]


def _scan(emitter: Emitter, node: ir.Node) -> list[Expr]:
    from tvm import relax

    body, count = _body(node), int_attribute(node, "num_scan_inputs", 1)
    operands = [emitter.operand(node, index) for index in range(len(node.inputs))]
    states, sequences = operands[: len(operands) - count], operands[len(operands) - count :]
    axes = ints_attribute(node, "scan_input_axes") or (0,) * count
    for index, axis in enumerate(axes):
        rank = len(shape_of(sequences[index]))
        if axis % rank:
            order = (axis % rank, *(a for a in range(rank) if a != axis % rank))
            sequences[index] = emitter.emit(relax.op.permute_dims(sequences[index], order))
    steps = checked_steps(node, shape_of(sequences[0])[0])
    backward = ints_attribute(node, "scan_input_directions") or (0,) * count
    kept: list[list[Expr]] = [[] for _ in range(len(body.outputs) - len(states))]
    for step in range(steps):
        items = [
            taken(emitter, sequence, steps - 1 - step if back else step)
            for sequence, back in zip(sequences, backward, strict=True)
        ]
        results = emitter.body(body, [*states, *items])
        states = results[: len(states)]
        for column, item in zip(kept, results[len(states) :], strict=True):
            column.append(item)
    outward = ints_attribute(node, "scan_output_axes") or (0,) * len(kept)
    turned = ints_attribute(node, "scan_output_directions") or (0,) * len(kept)
    joined = [
        stacked(emitter, column[::-1] if back else column, axis)
        for column, axis, back in zip(kept, outward, turned, strict=True)
    ]
    return [*states, *joined]


def _body(node: ir.Node) -> ir.Graph:
    return node.attributes["body"].as_graph()


def _loop(emitter: Emitter, node: ir.Node) -> list[Expr]:
    body, trips = _body(node), constant_expression(node.inputs[0])
    condition = node.inputs[1] if len(node.inputs) > 1 else None
    start = constant_expression(condition)
    if trips is None or (condition is not None and start is None) or not _goes_on(body):
        raise refuse(node, "a number of steps that depends on values")
    steps = checked_steps(node, int(trips.reshape(())) if start is None or bool(start.all()) else 0)
    states = [emitter.operand(node, index) for index in range(2, len(node.inputs))]
    kept: list[list[Expr]] = [[] for _ in range(len(body.outputs) - 1 - len(states))]
    going = emitter.constant(np.array(True))
    for step in range(steps):
        number = emitter.constant(np.array(step, np.int64))
        _, *results = emitter.body(body, [number, going, *states])
        states = results[: len(states)]
        for column, item in zip(kept, results[len(states) :], strict=True):
            column.append(item)
    return [*states, *(stacked(emitter, column) for column in kept)]


def _goes_on(body: ir.Graph) -> bool:
    """Whether a Loop's body passes its condition on, or says true."""
    value: ir.Value | None = body.outputs[0]
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    if value is body.inputs[1]:
        return True
    array = constant_expression(value)
    return array is not None and bool(array.all())


RULES: dict[str, Rule] = {"Scan": _scan, "Loop": _loop}
