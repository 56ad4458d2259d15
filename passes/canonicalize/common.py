"""What the canonicalization passes share: visiting nodes that are still there, naming, provenance."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ...compiler.ir.walk import (
    Array,
    add_initializer,
    all_graphs,
    remove_chain,
    replace_value,
    scalar,
    unique_name,
)
from ...compiler.pass_api import Context

ORIGIN_KEY = "pared.origin"


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Say whether `node` is one of the standard ONNX operators `op_types`."""
    return node is not None and not node.domain and node.op_type in op_types


def live_nodes(model: ir.Model, ctx: Context, *op_types: str) -> Iterator[ir.Node]:
    """Yield the standard operators `op_types` (all nodes when none are named) of every graph, in order.

    The list is taken graph by graph before anything is yielded, and nodes that a rewrite has removed
    meanwhile are skipped, so callers may edit freely. Checks for cancellation on the way.
    """
    for graph in list(all_graphs(model)):
        for count, node in enumerate(list(graph)):
            if count % 256 == 0:
                ctx.check_cancelled()
            if node.graph is not None and (not op_types or is_op(node, *op_types)):
                yield node


def label(node: ir.Node) -> str:
    """Return the name under which refusals list `node`; never empty."""
    if node.name:
        return node.name
    return next((output.name for output in node.outputs if output.name), node.op_type)


def note_origin(kept: ir.Node, merged: ir.Node) -> None:
    """Record in `kept` that `merged` went into it (provenance only, no pass reads it)."""
    names = [name for name in kept.metadata_props.get(ORIGIN_KEY, "").split(",") if name]
    for name in (*merged.metadata_props.get(ORIGIN_KEY, "").split(","), merged.name):
        if name and name not in names and name != kept.name:
            names.append(name)
    if names:
        kept.metadata_props[ORIGIN_KEY] = ",".join(names)


def same_shape(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Say whether two values surely have the same shape: equal sizes and equal symbols, none unknown."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    one, other = list(first.shape), list(second.shape)
    known = all(isinstance(dim, int) or dim.value is not None for dim in one)
    return known and len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions of `value`, None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def forward(node: ir.Node, same: ir.Value) -> None:
    """Let `same` stand for the only used output of `node`, which equals it, and remove `node`.

    `same` keeps its name, unless the output is one of the graph: then that name, type and shape survive.
    """
    output = node.outputs[0]
    if output.is_graph_output() and can_be_output(same, output.graph):
        same.type = output.type
        same.shape = None if output.shape is None else output.shape.copy()
    replace_value(output, same, take_name=False)
    remove_chain(node)


def can_be_output(value: ir.Value, graph: ir.Graph | None) -> bool:
    """Say whether `value` can become an output of `graph` without an Identity that carries the name."""
    bound = value.is_graph_input() or value.is_graph_output() or value.is_initializer()
    return value.graph is graph and not bound


_NEVER_NEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp"}
_KEEPS_SIGN = {
    "MaxPool",
    "GlobalMaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
}
_SIGN_STEPS = 8


def is_nonnegative(value: ir.Value | None) -> bool:
    """Say whether no element of `value` can be below zero, as far as the few nodes before it tell."""
    for _ in range(_SIGN_STEPS):
        node = None if value is None else value.producer()
        if node is None or node.domain:
            return False
        if node.op_type in _NEVER_NEGATIVE:
            return True
        if node.op_type == "Clip":
            low = scalar(node.inputs[1]) if len(node.inputs) > 1 else None
            return low is not None and low >= 0
        if node.op_type not in _KEEPS_SIGN:
            return False
        value = node.inputs[0]
    return False


def replace_by_constant(model: ir.Model, old: ir.Value, array: Array) -> ir.Value:
    """Make every reader of `old` read a constant of the same name instead; return the constant.

    The node that makes `old` stays, for the caller to remove. `array` must be fresh.
    """
    assert old.graph is not None, "a value without a graph"
    assert old.name is not None, "a value without a name"
    new = add_initializer(old.graph, unique_name(model, f"{old.name}_folded"), array)
    replace_value(old, new)
    assert new.const_value is not None
    new.const_value.name = new.name  # this tensor is ours alone; no clone shares it yet
    return new
