"""Ways through the IR and small safe edits: visit every graph, read constants, name, replace, remove.

Everything here is linear in what it touches; nothing reads weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[np.generic]
AttrValue: TypeAlias = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.TensorProtocol

_CONSTANT_DTYPES: Mapping[str, type[np.generic]] = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


# Looked up once: the walk is done a hundred times per compilation.
_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


# --- visiting ---------------------------------------------------------------------------------------


def bodies(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs that are attributes of `node` (If, Loop and Scan bodies), in attribute order."""
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        kind = attr.type
        if (kind is _GRAPH or kind is _GRAPHS) and not attr.is_ref():
            found.extend([attr.as_graph()] if kind is _GRAPH else attr.as_graphs())
    return found


def named_bodies(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """Return the bodies of `node` with their attribute names, sorted by name."""
    return [
        (name, body)
        for name, attr in sorted(node.attributes.items())
        if not attr.is_ref() and attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for body in (attr.as_graphs() if attr.type == ir.AttributeType.GRAPHS else [attr.as_graph()])
    ]


def graphs_in(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield `graph` and every graph nested in it, outer before inner."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        nested = [body for node in current if node.attributes for body in bodies(node)]
        pending.extend(reversed(nested))


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every If/Loop/Scan body, outer before inner."""
    yield from graphs_in(model.graph)


def all_nodes(where: ir.Model | ir.Graph) -> Iterator[ir.Node]:
    """Yield every node of every graph, graph by graph (bodies come after the graph that holds them)."""
    for graph in graphs_in(where.graph if isinstance(where, ir.Model) else where):
        yield from graph


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values that `graph` itself defines: inputs, initializers, node outputs; each once."""
    yield from graph.inputs
    for value in graph.initializers.values():
        if not value.is_graph_input():
            yield value
    for node in graph:
        yield from node.outputs


def all_values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every defined value of every graph."""
    for graph in all_graphs(model):
        yield from values_of(graph)


def node_label(node: ir.Node) -> str:
    """Return how error texts name a node: `node 'conv1' (Conv)`."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"node {node.name!r} ({kind})"


# --- reading ----------------------------------------------------------------------------------------


def read_only(array: Array) -> Array:
    """Return `array` itself when it cannot be written to, else a read-only view (no copy)."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def is_constant(value: ir.Value | None) -> bool:
    """Say whether `constant(value)` would return an array, without reading it."""
    return value is not None and constant_tensor(value) is not None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor behind an initializer or a Constant node, or None. Reads no weights."""
    if value.is_graph_input():
        return None
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type != "Constant" or node.domain:
        return None
    return _constant_node_tensor(node)


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for key, attr in node.attributes.items():
        if attr.is_ref():
            return None
        if key == "value":
            return attr.as_tensor()
        if key in _CONSTANT_DTYPES:
            return ir.tensor(np.asarray(attr.value, dtype=_CONSTANT_DTYPES[key]))
        if key in ("value_string", "value_strings"):
            return ir.tensor(np.asarray(attr.value, dtype=np.str_))
    return None


def constant(value: ir.Value | None) -> Array | None:
    """Return the array behind an initializer or a Constant node's output, else None.

    The array is read-only; a big external weight comes memory-mapped. Arrays of sub-byte types have
    the `ml_dtypes` dtype. A graph input is never constant, even with a default.
    """
    if value is None:
        return None
    tensor = constant_tensor(value)
    return None if tensor is None else read_only(tensor.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """Return a one-element constant as a Python number, else None."""
    array = constant(value)
    if array is None or array.size != 1:
        return None
    return float(array.reshape(-1)[0])


def attribute(node: ir.Node, name: str, default: AttrValue | None = None) -> AttrValue | None:
    """Return the value of a node's attribute (ints as tuples), or `default`."""
    attr = node.attributes.get(name)
    if attr is None or attr.value is None:
        return default
    value: AttrValue = attr.value
    return value


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an INT attribute or `default`."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def ints_attribute(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """Return an INTS attribute or `default`, as a tuple."""
    attr = node.attributes.get(name)
    return tuple(default) if attr is None else tuple(attr.as_ints())


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of a fully known shape, else None."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


# --- links ------------------------------------------------------------------------------------------


def producer(value: ir.Value | None, op_type: str | None = None, domain: str = "") -> ir.Node | None:
    """Return the node that makes `value`; with `op_type`, only when it is that operator."""
    node = None if value is None else value.producer()
    if node is None or op_type is None:
        return node
    return node if node.op_type == op_type and node.domain == domain else None


def users(value: ir.Value) -> list[ir.Node]:
    """Return the distinct nodes that read `value`, those inside bodies included."""
    return list(value.consumers())


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`; None when it is a graph output or has several readers."""
    nodes = value.consumers()
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def is_unused(value: ir.Value) -> bool:
    """Say whether nothing reads `value` and it is no graph output."""
    return not value.uses() and not value.is_graph_output()


# --- naming -----------------------------------------------------------------------------------------


class Names:
    """The names taken in a model; hands out new ones in constant time.

    Build one per pass when many names are needed; `unique_name` keeps one per graph object.
    """

    def __init__(self, where: ir.Model | ir.Graph) -> None:
        root = where.graph if isinstance(where, ir.Model) else where
        self._taken: set[str] = set()
        for graph in graphs_in(root):
            self._taken.update(value.name for value in values_of(graph) if value.name)
            self._taken.update(node.name for node in graph if node.name)
        self._next: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        """Return `base`, or `base_1`, `base_2`, ... whichever is free first, and take it."""
        name, count = base, self._next.get(base, 0)
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._next[base] = count
        self._taken.add(name)
        return name

    def take(self, name: str) -> None:
        """Note a name that was given without `fresh`."""
        self._taken.add(name)


# One table of names per graph object: passes work on a fresh clone, so a table lives for one pass.
_NAMES: weakref.WeakKeyDictionary[ir.Graph, Names] = weakref.WeakKeyDictionary()


def unique_name(where: ir.Model | ir.Graph, base: str) -> str:
    """Return a value or node name that nothing in the model has; `base` itself when it is free.

    Give the model (or its main graph), not a body: names must be unique across all graphs. The first
    call on a graph object looks at all names, later calls cost constant time; they do not see names
    that were made in between by other means than this module.
    """
    graph = where.graph if isinstance(where, ir.Model) else where
    if graph not in _NAMES:
        _NAMES[graph] = Names(graph)
    return _NAMES[graph].fresh(base)


# --- editing ----------------------------------------------------------------------------------------


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register `array` as a constant of `graph` under a free `name` and return its value.

    The array must not be changed afterwards; pass a fresh one.
    """
    tensor = ir.tensor(read_only(array), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(array.shape)), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def replace_value(old: ir.Value, new: ir.Value, *, take_name: bool = True) -> ir.Value:
    """Make every reader of `old` (in bodies and as graph output too) read `new`; return what they read.

    With `take_name`, `new` gets the name of `old` (a value's name is its provenance) and `old` becomes
    `<name>_replaced`; remove the node that makes `old`, or name it anew. Without, `new` keeps its
    name, except that the name of a graph output always survives. Where `new` cannot itself be that
    graph output (it is an input, a constant, another output, or of an outer graph), an Identity node
    carries the name.
    Only uses of `old` other than by the producer of `new` change: `new` may be computed from `old`.
    """
    graph, maker, name = old.graph, new.producer(), old.name
    was_output = old.is_graph_output()
    if was_output and not _can_be_output(new, graph):
        assert graph is not None
        _output_by_identity(graph, old, new)
        was_output = False
        take_name = False
    elif was_output:
        _swap_outputs(graph, old, new)
    for user, index in old.uses():
        if user is not maker:
            user.replace_input_with(index, new)
    if (take_name or was_output) and name is not None:
        _retire(old)
        rename(new, name)
    return new


def _retire(value: ir.Value) -> None:
    """Free the name of a value that was replaced."""
    graph, name = value.graph, f"{value.name}_replaced"
    rename(value, name if graph is None else unique_name(graph, name))


def _can_be_output(value: ir.Value, graph: ir.Graph | None) -> bool:
    return value.graph in (graph, None) and not (
        value.is_graph_input() or value.is_graph_output() or value.is_initializer()
    )


def _swap_outputs(graph: ir.Graph | None, old: ir.Value, new: ir.Value) -> None:
    assert graph is not None, "a graph output without its graph"
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new


def _output_by_identity(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    node = ir.node("Identity", [new], name=unique_name(graph, f"{old.name}_identity"))
    carrier = node.outputs[0]
    carrier.type, carrier.shape = old.type, None if old.shape is None else old.shape.copy()
    _swap_outputs(graph, old, carrier)
    name = old.name
    _retire(old)
    carrier.name = name
    graph.append(node)


def rename(value: ir.Value, name: str | None) -> None:
    """Give `value` a name without touching the tensor behind it, which clones share."""
    tensor, value.const_value = value.const_value, None
    try:
        value.name = name
    finally:
        value.const_value = tensor


def remove_if_dead(node: ir.Node) -> bool:
    """Remove `node` when nothing uses its outputs; say whether it went. Its inputs stay.

    The uses that its bodies made of outer values go with it.
    """
    graph = node.graph
    if graph is None or any(not is_unused(output) for output in node.outputs):
        return False
    for body in bodies(node):
        for nested in all_nodes(body):
            for index in range(len(nested.inputs)):
                nested.replace_input_with(index, None)
    graph.remove(node, safe=True)
    return True


def _reads(node: ir.Node) -> list[ir.Value]:
    """Return the values that `node` and its bodies read, each once."""
    nodes = [node, *(nested for body in bodies(node) for nested in all_nodes(body))]
    return list({value: None for one in nodes for value in one.inputs if value is not None})


def remove_chain(node: ir.Node) -> int:
    """Remove `node` when dead, then whatever only it used, constants included; return nodes removed."""
    removed, pending = 0, [node]
    while pending:
        current = pending.pop()
        sources = _reads(current)
        if not remove_if_dead(current):
            continue
        removed += 1
        pending.extend(maker for value in sources if (maker := value.producer()) is not None)
        for value in sources:
            drop_unused_initializer(value)
    return removed


def drop_unused_initializer(value: ir.Value) -> None:
    """Remove a constant that nothing reads from its graph."""
    graph = value.graph
    if graph is not None and value.is_initializer() and not value.is_graph_input() and is_unused(value):
        assert value.name is not None
        graph.initializers.pop(value.name)
