"""Rewrites of chains that only move data: Transposes, Reshapes and Slices, each after its like.

Each function rewrites `node` together with the node before it and says whether it did.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import (
    Array,
    add_initializer,
    constant,
    drop_unused_initializer,
    ints_attribute,
    remove_chain,
    replace_value,
    static_shape,
    unique_name,
)
from .common import forward, is_op, note_origin, rank, same_shape

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def merge(model: ir.Model, node: ir.Node) -> bool:
    """Merge `node` with the data-moving node before it where that leaves fewer nodes."""
    if is_op(node, "Transpose"):
        return _merge_transposes(node) or _transpose_of_ones(model, node)
    if is_op(node, *RESHAPES):
        return _merge_reshapes(model, node)
    return _merge_slices(model, node) if is_op(node, "Slice") else False


def _before(node: ir.Node, *op_types: str) -> ir.Node | None:
    source = node.inputs[0]
    maker = None if source is None else source.producer()
    return maker if is_op(maker, *op_types) else None


def _perm(node: ir.Node) -> tuple[int, ...] | None:
    axes = rank(node.inputs[0])
    default = () if axes is None else tuple(reversed(range(axes)))
    return ints_attribute(node, "perm", default) or None


def _merge_transposes(node: ir.Node) -> bool:
    inner = _before(node, "Transpose")
    source = None if inner is None else inner.inputs[0]
    if inner is None or source is None:
        return False
    first, second = _perm(inner), _perm(node)
    if first is None or second is None or inner.graph is not node.graph:
        return False
    perm = tuple(first[axis] for axis in second)
    if perm == tuple(range(len(perm))):
        forward(node, source)
        return True
    if len(inner.outputs[0].uses()) > 1 or inner.outputs[0].is_graph_output():
        return False
    node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    _bypass(node, inner, source)
    return True


def _bypass(node: ir.Node, inner: ir.Node, source: ir.Value) -> None:
    note_origin(node, inner)
    node.replace_input_with(0, source)
    remove_chain(inner)


def _transpose_of_ones(model: ir.Model, node: ir.Node) -> bool:
    """A transpose that keeps the order of all axes longer than one is a Reshape."""
    perm, sizes = _perm(node), static_shape(node.inputs[0])
    if perm is None or sizes is None or 0 in sizes:
        return False
    moved = [axis for axis in perm if sizes[axis] != 1]
    if moved != sorted(moved):
        return False
    _become_reshape(model, node, [sizes[axis] for axis in perm])
    return True


def _merge_reshapes(model: ir.Model, node: ir.Node) -> bool:
    inner = _before(node, *RESHAPES)
    source = None if inner is None else inner.inputs[0]
    if inner is None or source is None or inner.graph is not node.graph:
        return False
    if same_shape(source, node.outputs[0]):
        forward(node, source)
        return True
    target = _reshape_target(node.outputs[0])
    if target is None or len(inner.outputs[0].uses()) > 1 or inner.outputs[0].is_graph_output():
        return False
    _bypass(_become_reshape(model, node, target), inner, source)
    return True


def _reshape_target(output: ir.Value) -> list[int] | None:
    """Return the sizes of `output` with at most one unknown as -1; None when that says too little."""
    if output.shape is None:
        return None
    sizes = [dim if isinstance(dim, int) else -1 for dim in output.shape]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


def _become_reshape(model: ir.Model, node: ir.Node, sizes: Sequence[int]) -> ir.Node:
    """Put a Reshape to `sizes` in the place of `node`, with its names; return it."""
    assert node.graph is not None, "a node without a graph"
    shape = add_initializer(
        node.graph, unique_name(model, f"{node.outputs[0].name}_shape"), np.array(sizes, np.int64)
    )
    reshape = ir.node(
        "Reshape", [node.inputs[0], shape], name=node.name, metadata_props=dict(node.metadata_props)
    )
    old, new = node.outputs[0], reshape.outputs[0]
    new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
    node.graph.insert_before(node, reshape)
    replace_value(old, new)
    remove_chain(node)
    return reshape


def _merge_slices(model: ir.Model, node: ir.Node) -> bool:
    """Two slices with constant bounds along different axes are one."""
    inner = _before(node, "Slice")
    source = None if inner is None else inner.inputs[0]
    if inner is None or source is None or inner.graph is not node.graph:
        return False
    if len(inner.outputs[0].uses()) > 1 or inner.outputs[0].is_graph_output():
        return False
    first, second = _slice_bounds(inner), _slice_bounds(node)
    if first is None or second is None or set(first[2].tolist()) & set(second[2].tolist()):
        return False
    for index, (one, other) in enumerate(zip(first, second, strict=True), start=1):
        array = np.concatenate([one, other]).astype(np.int64)
        _set_input(model, node, index, array)
    _bypass(node, inner, source)
    return True


def _slice_bounds(node: ir.Node) -> tuple[Array, Array, Array, Array] | None:
    """Return starts, ends, axes (counted from the front) and steps of a Slice with constant bounds."""
    axes_known = rank(node.inputs[0])
    starts, ends = (constant(value) for value in node.inputs[1:3])
    if starts is None or ends is None or axes_known is None:
        return None
    axes = _optional(node, 3, np.arange(starts.size))
    steps = _optional(node, 4, np.ones(starts.size, np.int64))
    if axes is None or steps is None:
        return None
    return starts, ends, np.asarray(axes % axes_known), steps


def _optional(node: ir.Node, index: int, default: Array) -> Array | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return default if value is None else constant(value)


def _set_input(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    assert node.graph is not None, "a node without a graph"
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    name = unique_name(model, f"{node.outputs[0].name}_{('starts', 'ends', 'axes', 'steps')[index - 1]}")
    node.replace_input_with(index, add_initializer(node.graph, name, array))
    if old is not None:
        drop_unused_initializer(old)
