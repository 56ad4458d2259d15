"""Shape arithmetic on known sizes becomes constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.shapes import infer_shapes
from ...compiler.ir.walk import (
    add_initializer,
    drop_unused_initializer,
    int_attribute,
    is_constant,
    remove_chain,
    static_shape,
    unique_name,
)
from ...compiler.pass_api import Context, Effect, PassStats
from .common import is_op, live_nodes, replace_by_constant
from .sizes import Size, Sizes, evaluate, look_up, shape_sizes

# Each round can make shapes known that the next one folds; models need one or two.
_ROUNDS = 4
_TARGET_INPUT = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}


@dataclass(frozen=True)
class FoldShapes:
    """Replace Shape, Gather, Concat, ... on known sizes by constants, and simplify what Reshape is told.

    Exact. Sizes that are symbolic are carried along: `Reshape(x, Concat(Shape(x)[0], [784]))` becomes
    `Reshape(x, [0, 784])`. Where a shape is known although its computation is not (inference saw more),
    Reshape, Expand and ConstantOfShape get that shape as a constant.
    """

    name: ClassVar[str] = "fold-shapes"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        for _ in range(_ROUNDS):
            changed = _sweep(model, ctx)
            stats.changed += changed
            if not changed:
                break
            infer_shapes(model)
        return stats


def _sweep(model: ir.Model, ctx: Context) -> int:
    table: dict[ir.Value, Sizes] = {}
    changed = 0
    for node in live_nodes(model, ctx):
        if is_op(node, *_TARGET_INPUT):
            changed += _simplify_target(model, node, table)
        sizes = evaluate(node, table)
        if sizes is None:
            continue
        if sizes.numbers is None or node.outputs[0].is_graph_output():
            table[node.outputs[0]] = sizes
        elif not is_constant(node.outputs[0]):
            _become_constant(model, node, sizes.numbers, sizes.is_scalar)
            changed += 1
    return changed


def _become_constant(model: ir.Model, node: ir.Node, numbers: Sequence[int], is_scalar: bool) -> None:
    output = node.outputs[0]
    dtype = np.int32 if output.dtype == ir.DataType.INT32 else np.int64
    array = np.array(numbers[0] if is_scalar else numbers, dtype)
    replace_by_constant(model, output, array)
    remove_chain(node)


def _simplify_target(model: ir.Model, node: ir.Node, table: dict[ir.Value, Sizes]) -> bool:
    """Replace a computed target shape by a constant one that yields the same."""
    index = _TARGET_INPUT[node.op_type]
    target = node.inputs[index]
    if target is None or is_constant(target):
        return False
    sizes = static_shape(node.outputs[0])
    wanted = None if sizes is None or 0 in sizes else list(sizes)
    if wanted is None and node.op_type == "Reshape" and not int_attribute(node, "allowzero", 0):
        wanted = _reshape_target(node, look_up(target, table))
    if wanted is None:
        return False
    _set_target(model, node, index, wanted)
    return True


def _reshape_target(node: ir.Node, target: Sizes | None) -> list[int] | None:
    """Write a partly known target with 0 for sizes copied from the input and at most one -1."""
    source, output = shape_sizes(node.inputs[0]) or (), shape_sizes(node.outputs[0])
    if target is None or (output is not None and len(output) != len(target.items)):
        return None
    known = output or (None,) * len(target.items)
    wanted = [
        _written(asked, found, source[axis] if axis < len(source) else None)
        for axis, (asked, found) in enumerate(zip(target.items, known, strict=True))
    ]
    simple = wanted.count(-1) <= 1 and not (-1 in wanted and 0 in _true_zeros(wanted, source))
    return wanted if simple else None


def _written(asked: Size, found: Size, source: Size) -> int:
    if isinstance(asked, int):
        return asked
    if asked is not None and asked == source:
        return 0
    return found if isinstance(found, int) and found > 0 else -1


def _true_zeros(wanted: Sequence[int], source: Sequence[Size]) -> list[int]:
    """Return the zeros of a target that copy a size of zero, with which a -1 would be ambiguous."""
    return [size for size, copied in zip(wanted, source, strict=False) if size == 0 and copied == 0]


def _set_target(model: ir.Model, node: ir.Node, index: int, sizes: Sequence[int]) -> None:
    assert node.graph is not None, "a node without a graph"
    old = node.inputs[index]
    name = unique_name(model, f"{node.outputs[0].name}_shape")
    node.replace_input_with(index, add_initializer(node.graph, name, np.array(sizes, np.int64)))
    maker = None if old is None else old.producer()
    if maker is not None:
        remove_chain(maker)
    elif old is not None:
        drop_unused_initializer(old)
