"""Checks on the ModelProto before any other library sees it: hostile or broken files end here.

Each check is linear and reads no weights. What is checked: versions and domains, names and scopes, order
(cycles), tensors against their bytes, nesting, recursion and blow-up of functions, and parts of ONNX that
are refused rather than dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from ..errors import ModelError
from .source import MOST_NESTED, too_deep
from .tensor_guards import check_dims, check_tensor
from .text_guards import check_text

OLDEST_OPSET = 7
# What onnxruntime 1.31 runs; onnx 1.23 describes more.
NEWEST_OPSET = 26
_OLDEST_IR = 3

# A graph of this size is beyond every real model; function calls can multiply to it from a small file.
_MOST_NODES = 1_000_000

Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]


@dataclass
class _Scope:
    """Names visible in a graph, and the names of the graphs around it."""

    names: set[str]
    outer: _Scope | None = None
    depth: int = 0
    where: str = "the main graph"
    in_function: bool = False

    def sees(self, name: str) -> bool:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True
            scope = scope.outer
        return False


def check_proto(proto: onnx.ModelProto) -> None:
    """Refuse a model that cannot be taken in, with a reason code and the name of what is wrong.

    Raises:
        ModelError: see the helpers; the reason codes are in the tests of this module.
    """
    check_text(proto)
    _check_versions(proto)
    if proto.training_info:
        raise ModelError(
            "training-info",
            f"the model holds training information for {len(proto.training_info)} algorithm(s)",
            "export the model for inference",
        )
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise ModelError("duplicate-function", "two functions of the model have one name", "rename one")
    check_main(proto)
    for function in proto.functions:
        _check_function(function)
    _check_expansion(proto, functions)


def _check_versions(proto: onnx.ModelProto) -> None:
    newest_ir = onnx.IR_VERSION
    if not _OLDEST_IR <= proto.ir_version <= newest_ir:
        raise ModelError(
            "unsupported-ir-version",
            f"the model has IR version {proto.ir_version}; {_OLDEST_IR} to {newest_ir} can be read",
            "export it again with another version of onnx",
        )
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError("duplicate-opset", f"the model imports domain {domain!r} in two versions")
    if "" in versions or _uses_onnx_domain(proto):
        _check_opset(versions.get(""))


def _uses_onnx_domain(proto: onnx.ModelProto) -> bool:
    nodes = (proto.graph.node, *(function.node for function in proto.functions))
    return any(node.domain in ("", "ai.onnx") for part in nodes for node in _nested_nodes(part))


def _check_opset(version: int | None) -> None:
    newest = min(onnx.defs.onnx_opset_version(), NEWEST_OPSET)
    if version is None or not OLDEST_OPSET <= version <= newest:
        found = "no opset of the ONNX domain" if version is None else f"opset {version}"
        raise ModelError(
            "unsupported-opset",
            f"the model uses {found}; opsets {OLDEST_OPSET} to {newest} can be read",
            "export it again with opset 17, for example",
        )


def check_main(proto: onnx.ModelProto) -> None:
    """Check names, tensors, order and bodies of the main graph."""
    check_graph(proto.graph, _Scope(set()))


# --- one graph --------------------------------------------------------------------------------------


def check_graph(graph: onnx.GraphProto, scope: _Scope) -> None:
    """Check names, tensors, order and bodies of one graph; `scope.names` gets what it defines."""
    if scope.depth > MOST_NESTED:
        raise too_deep(scope.where)
    _declare_inputs(graph, scope)
    _declare_initializers(graph, scope)
    _declare_outputs_of(graph.node, scope)
    _check_nodes(graph.node, scope)
    _check_graph_outputs(graph, scope)
    _check_cycles(graph.node, scope)


def _declare(name: str, what: str, scope: _Scope) -> None:
    if scope.sees(name):
        raise ModelError(
            "duplicate-name",
            f"in {scope.where}, {what} {name!r} has the name of another value",
            "give every value its own name",
        )
    scope.names.add(name)


def _declare_inputs(graph: onnx.GraphProto, scope: _Scope) -> None:
    for info in graph.input:
        if not info.name:
            raise ModelError("unnamed-input", f"an input of {scope.where} has no name", "name it")
        _declare(info.name, "input", scope)
        _check_info(info, "input", scope.where)


def _check_info(info: onnx.ValueInfoProto, what: str, where: str) -> None:
    if info.type.WhichOneof("value") != "tensor_type" or not info.type.tensor_type.HasField("shape"):
        return
    dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    check_dims(dims, f"{what} {info.name!r} of {where}")


def _declare_initializers(graph: onnx.GraphProto, scope: _Scope) -> None:
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelError(
            "sparse-initializer",
            f"initializer {name!r} of {scope.where} is stored sparse",
            "store it dense; sparsity is found in the values",
        )
    inputs, seen = {info.name for info in graph.input}, set()
    for tensor in graph.initializer:
        if not tensor.name:
            raise ModelError("unnamed-initializer", f"an initializer of {scope.where} has no name", "name it")
        if tensor.name in seen:
            raise ModelError(
                "duplicate-initializer",
                f"{scope.where} has two initializers named {tensor.name!r}",
                "give every initializer its own name",
            )
        seen.add(tensor.name)
        if tensor.name not in inputs:
            _declare(tensor.name, "initializer", scope)
        check_tensor(tensor, f"initializer {tensor.name!r}")


def _declare_outputs_of(nodes: Sequence[onnx.NodeProto], scope: _Scope) -> None:
    for node in nodes:
        for name in node.output:
            if name:
                _declare(name, f"output of {label(node)}", scope)


def nested_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and every body in it, and the bodies inside functions."""
    yield proto.graph
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nested_nodes(nodes):
            for attr in node.attribute:
                yield from ([attr.g] if attr.HasField("g") else []) + list(attr.graphs)


def label(node: onnx.NodeProto) -> str:
    """Return how error texts name a node of the proto."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    name = node.name or (f"-> {node.output[0]}" if node.output else "")
    return f"node {name!r} ({kind})"


def _check_nodes(nodes: Sequence[onnx.NodeProto], scope: _Scope) -> None:
    for node in nodes:
        for name in node.input:
            if name and not scope.sees(name):
                raise ModelError(
                    "undefined-value",
                    f"{label(node)} in {scope.where} reads {name!r}, which nothing defines",
                    "the file is damaged or was cut out of a larger graph wrongly",
                )
        names = [attr.name for attr in node.attribute]
        if len(set(names)) != len(names):
            raise ModelError("duplicate-attribute", f"{label(node)} has two attributes of one name")
        for attr in node.attribute:
            _check_attribute(node, attr, scope)


def _check_attribute(node: onnx.NodeProto, attr: onnx.AttributeProto, scope: _Scope) -> None:
    where = f"attribute {attr.name!r} of {label(node)}"
    for text in (attr.s, *attr.strings):
        _check_utf8(text, where)
    _check_kind(attr, where, scope)
    if attr.HasField("sparse_tensor") or attr.sparse_tensors:
        raise ModelError("sparse-tensor", f"{where} is a sparse tensor", "store it dense")
    for tensor in ([attr.t] if attr.HasField("t") else []) + list(attr.tensors):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                "external-attribute", f"{where} keeps its tensor in another file", "store it in the model"
            )
        check_tensor(tensor, where)
    for body in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
        name = f"the body {body.name!r} in {label(node)}"
        inner = _Scope(set(), scope, scope.depth + 1, name, scope.in_function)
        check_graph(body, inner)


def _check_kind(attr: onnx.AttributeProto, where: str, scope: _Scope) -> None:
    """Refuse an attribute that says one kind and holds another, or refers to a function's attribute."""
    if attr.ref_attr_name:
        if not scope.in_function:
            raise ModelError(
                "bad-attribute", f"{where} refers to {attr.ref_attr_name!r} outside of a function"
            )
        return
    needed = _HOLDERS.get(attr.type)
    if (
        attr.type not in onnx.AttributeProto.AttributeType.values()
        or attr.type == onnx.AttributeProto.UNDEFINED
    ):
        raise ModelError("bad-attribute", f"{where} is of the unknown kind {attr.type}", "export it again")
    if needed is not None and not attr.HasField(needed):
        raise ModelError(
            "bad-attribute", f"{where} holds nothing of the kind that it says", "export it again"
        )


def _check_utf8(text: bytes, where: str) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as err:
        raise ModelError("bad-name", f"{where} is not UTF-8", "the file is damaged; export it again") from err


def _check_graph_outputs(graph: onnx.GraphProto, scope: _Scope) -> None:
    seen: set[str] = set()
    for info in graph.output:
        if not scope.sees(info.name):
            raise ModelError(
                "undefined-output",
                f"nothing in {scope.where} makes its output {info.name!r}",
                "the file is damaged or was cut out of a larger graph wrongly",
            )
        if info.name in seen:
            raise ModelError(
                "duplicate-output",
                f"{scope.where} has the output {info.name!r} twice",
                "put an Identity node before the second",
            )
        seen.add(info.name)
        _check_info(info, "output", scope.where)


# Kind of attribute -> the field that must then be set; numbers have defaults, these have not.
_HOLDERS: Mapping[int, str] = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}


# --- order ------------------------------------------------------------------------------------------


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node and its bodies mention as inputs or body outputs."""
    yield from (name for name in node.input if name)
    for attr in node.attribute:
        for body in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
            for inner in body.node:
                yield from reads(inner)
            yield from (info.name for info in body.output)


def _check_cycles(nodes: Sequence[onnx.NodeProto], scope: _Scope) -> None:
    """Refuse a cycle (Kahn's algorithm); nodes that are merely unsorted are sorted later."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waiting = [0] * len(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        sources = {maker[name] for name in reads(node) if name in maker}
        waiting[index] = len(sources)
        for source in sources:
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    stuck = [label(nodes[index]) for index, count in enumerate(waiting) if count]
    if stuck:
        raise ModelError(
            "graph-cycle",
            f"{scope.where} has a cycle through {', '.join(stuck[:3])}",
            "a model is a graph without cycles; use Loop or Scan for recurrence",
        )


# --- functions --------------------------------------------------------------------------------------


def _check_function(function: onnx.FunctionProto) -> None:
    where = f"the function {function.domain}::{function.name}"
    scope = _Scope(set(), where=where, in_function=True)
    for name in function.input:
        _declare(name, "input", scope)
    _declare_outputs_of(function.node, scope)
    _check_nodes(function.node, scope)
    for name in function.output:
        if not scope.sees(name):
            raise ModelError("undefined-output", f"nothing in {where} makes its output {name!r}")
    _check_cycles(function.node, scope)


def _nested_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attr in node.attribute:
            for body in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
                yield from _nested_nodes(body.node)


def _check_expansion(proto: onnx.ModelProto, functions: Functions) -> None:
    """Refuse recursive functions and calls that multiply to a graph nobody can hold."""
    sizes: dict[tuple[str, str, str], int] = {}
    for key in functions:
        _expanded_size(key, functions, sizes)
    total = sum(sizes.get(_key(node), 1) for node in _nested_nodes(proto.graph.node))
    if total > _MOST_NODES:
        raise ModelError(
            "too-many-nodes",
            f"the model has {total} nodes once functions are inlined; at most {_MOST_NODES} are taken",
            "split the model",
        )


def _key(node: onnx.NodeProto) -> tuple[str, str, str]:
    return (node.domain, node.op_type, node.overload)


def _expanded_size(
    start: tuple[str, str, str], functions: Functions, sizes: dict[tuple[str, str, str], int]
) -> None:
    """Put the number of nodes of `start` after inlining into `sizes`, callees first, without recursion."""
    stack, active = [start], set()
    while stack:
        key = stack[-1]
        if key in sizes:
            active.discard(stack.pop())
            continue
        active.add(key)
        calls = [_key(node) for node in _nested_nodes(functions[key].node)]
        missing = [call for call in calls if call in functions and call not in sizes]
        if looped := [call for call in missing if call in active]:
            raise ModelError(
                "recursive-function",
                f"the function {looped[0][0]}::{looped[0][1]} calls itself, directly or not",
                "functions of a model must not be recursive",
            )
        if missing:
            stack.extend(dict.fromkeys(missing))
        else:
            sizes[key] = sum(sizes.get(call, 1) for call in calls)
            active.discard(stack.pop())
