"""Takes units out of a model: weights, biases, shapes, group counts, and the sizes of values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from .channels_graph import Array, Graph, Kept, Labels, Mask, Units
from .weights import replace_constant


def keeping(units: Units, gone: Mask) -> Kept:
    """Return which entries of an axis stay when units go."""

    def kept(labels: Labels) -> Mask:
        stay: Mask = ~gone[units.of[labels]]
        return stay

    return kept


def cut(graph: Graph, kept: Kept) -> dict[str, tuple[Mask | None, ...]]:
    """Rewrite the model.

    Returns:
        For each value that lost entries, which ones stayed along each axis.
    """
    edits = list(_edited(graph, kept))
    for node, key, change in graph.attribute_edits:
        node.attributes[key] = change(kept)
    for node, sizes in graph.spelled.items():
        if any(user is node for user, _, _ in edits):
            _give_sizes(graph.model, node, sizes)
    _store(graph.model, edits)
    for weight in graph.weights.values():
        array = walk.constant(weight.value)
        assert array is not None, weight.value
        new = _compressed(array, weight.axes, kept)
        if new.shape != array.shape:
            replace_constant(graph.model, weight.value, new)
    return _resize_values(graph, kept)


def _compressed(array: Array, axes: Iterable[Labels | None], kept: Kept) -> Array:
    for index, labels in enumerate(axes):
        if labels is not None:
            stay = kept(labels)
            array = array if stay.all() else np.compress(stay, array, axis=index)
    return array


Edit = tuple[ir.Node, int, Array]


def _edited(graph: Graph, kept: Kept) -> Iterable[Edit]:
    """Yield the operands that change."""
    for (node, port), changes in graph.constant_edits.items():
        old = graph.spelled[node] if node in graph.spelled else walk.constant(node.inputs[port])
        assert old is not None, (node, port)
        new = old
        for change in changes:
            new = change(new, kept)
        if new.shape != old.shape or not np.array_equal(new, old):
            yield node, port, new


def _give_sizes(model: ir.Model, node: ir.Node, sizes: Array) -> None:
    """Let a Split read the sizes of its parts."""
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    assert isinstance(node.graph, ir.Graph), node
    name = walk.unique_name(model, f"{node.name}_sizes")
    node.replace_input_with(1, walk.add_initializer(node.graph, name, sizes))


def _store(model: ir.Model, edits: Iterable[Edit]) -> None:
    """Exchange constants; readers that want the same new one share it, others keep the old one."""
    wanted: dict[ir.Value, dict[tuple[tuple[int, ...], bytes], list[Edit]]] = {}
    for edit in edits:
        node, port, array = edit
        value = node.inputs[port]
        assert value is not None, node
        wanted.setdefault(value, {}).setdefault((array.shape, array.tobytes()), []).append(edit)
    for value, results in wanted.items():
        for readers in results.values():
            if len(readers) == len(value.uses()) and not value.is_graph_output():
                replace_constant(model, value, readers[0][2])
            else:
                _own(model, value, readers)


def _own(model: ir.Model, value: ir.Value, readers: list[Edit]) -> None:
    assert isinstance(value.graph, ir.Graph), value
    name = walk.unique_name(model, f"{value.name}_cut")
    new = walk.add_initializer(value.graph, name, readers[0][2])
    for node, port, _ in readers:
        node.replace_input_with(port, new)
    walk.drop_unused_initializer(value)


def _resize_values(graph: Graph, kept: Kept) -> dict[str, tuple[Mask | None, ...]]:
    changed: dict[str, tuple[Mask | None, ...]] = {}
    for value, axes in graph.axes.items():
        stays = tuple(None if labels is None else kept(labels) for labels in axes)
        if all(stay is None or stay.all() for stay in stays):
            continue
        assert value.shape is not None, value
        value.shape = ir.Shape(
            [dim if stay is None else int(stay.sum()) for dim, stay in zip(value.shape, stays, strict=True)]
        )
        changed[str(value.name)] = stays
    return changed


def rename_cut(model: ir.Model, changed: Iterable[str]) -> None:
    """Give values that lost entries names of their own: they are no longer the original's."""
    names = set(changed)
    for node in model.graph:
        for output in node.outputs:
            if output.name in names:
                walk.rename(output, walk.unique_name(model, f"{output.name}_cut"))
