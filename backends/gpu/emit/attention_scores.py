"""What stands between the product of an attention and its Softmax: a factor, a mask that is added, a choice.

    MatMul [-> Mul | Div by a number] [-> Add a mask] [-> Where(condition, ., number)] [-> Cast to float32]

Mask and choice come in either order, and so does the choice's number. The number is one that leaves what
Softmax makes of a row to the row: finite, or negative infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import only_user, producer, static_shape
from ....compiler.ops.constants import constant_expression

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class Choice:
    """Scores stay where `condition` is `keep`, the others become `fill`."""

    condition: ir.Value
    keep: bool
    fill: float


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores before Softmax.

    Attributes:
        product: the MatMul.
        scale: what its results are multiplied with.
        mask: what is added then.
        choice: which scores are replaced.
        late: the mask is added behind the choice.
    """

    product: ir.Node
    scale: float
    mask: ir.Value | None = None
    choice: Choice | None = None
    late: bool = False


def scores_of(value: ir.Value | None) -> Scores | None:
    """Return what a value is as the scores of attention; None where it is something else.

    Nobody else reads the product or what is behind it.
    """
    if value is None or only_user(value) is None:
        return None
    source, scale = unscaled(value)
    product = producer(source, "MatMul")
    if product is not None and source is not None and only_user(source) is not None:
        return Scores(product, scale)
    return _added(value) or _chosen(value) or _widened(value)


def unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return a value before it was multiplied with or divided by a number, and the factor."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.domain != "" or node.op_type not in ("Mul", "Div"):
        return value, 1.0
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        number, other = constant_expression(node.inputs[index]), node.inputs[1 - index]
        if number is not None and number.size == 1 and other is not None and _alike(other, value):
            factor = float(number.reshape(()))
            return other, factor if node.op_type == "Mul" else 1.0 / factor if factor else 0.0
    return value, 1.0


def _alike(one: ir.Value, other: ir.Value) -> bool:
    return static_shape(one) is not None and static_shape(one) == static_shape(other)


def _added(value: ir.Value) -> Scores | None:
    """Return the scores of an Add of a mask."""
    node = producer(value, "Add")
    for scores, mask in () if node is None else (node.inputs[:2], node.inputs[1::-1]):
        if scores is None or mask is None or not _alike(scores, value):
            continue
        found = scores_of(scores)
        if found is not None and found.mask is None:
            return replace(found, mask=mask, late=found.choice is not None)
    return None


def _chosen(value: ir.Value) -> Scores | None:
    """Return the scores of a Where between them and a number."""
    node = producer(value, "Where")
    if node is None or node.inputs[0] is None:
        return None
    for index in (1, 2):
        scores, fill = node.inputs[index], _number(node.inputs[3 - index])
        if scores is None or fill is None or not _alike(scores, value):
            continue
        found = scores_of(scores)
        if found is not None and found.choice is None:
            return replace(found, choice=Choice(node.inputs[0], index == 1, fill))
    return None


def _widened(value: ir.Value) -> Scores | None:
    """Return the scores of a Cast to float32, in which the kernel computes them anyway."""
    node = producer(value, "Cast")
    source = None if node is None else node.inputs[0]
    if source is None or source.dtype not in _HALVES or value.dtype != ir.DataType.FLOAT:
        return None
    return scores_of(source)


def _number(value: ir.Value | None) -> float | None:
    """Return the number that a constant consists of: finite or negative infinity."""
    array = constant_expression(value)
    if array is None or not array.size:
        return None
    first = float(array.flat[0])
    return first if bool((array == array.flat[0]).all()) and first < np.inf else None
