"""Inlining of model-local functions on the ModelProto, linear in the size of the result.

Each call becomes a copy of the function's nodes; inner names get the call's name in front. Functions are
acyclic and their expansion is bounded (see the guards).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from ..errors import ModelError
from .guards import check_main, label

Key = tuple[str, str, str]
Names = Mapping[str, str]
Attributes = Mapping[str, onnx.AttributeProto]


def inline_functions(proto: onnx.ModelProto) -> int:
    """Replace every call by the function's body, in place; returns the number of calls.

    Raises:
        ModelError: `function-opset`, a function imports another version of a domain than the model;
            `function-call`, a call has more inputs or outputs than the function.
    """
    if not proto.functions:
        return 0
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    for function in proto.functions:
        _separate_outputs(function)
    inliner = _Inliner(functions)
    _merge_opsets(proto)
    inliner.graph(proto.graph)
    del proto.functions[:]
    check_main(proto)
    return inliner.calls


def _separate_outputs(function: onnx.FunctionProto) -> None:
    """Put an Identity behind inputs that a function returns as they are: a call names its outputs."""
    inputs = set(function.input)
    for index, name in enumerate(function.output):
        if name in inputs:
            function.output[index] = f"{name}_returned_{index}"
            function.node.add(op_type="Identity", input=[name], output=[function.output[index]])


def _merge_opsets(proto: onnx.ModelProto) -> None:
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    for function in proto.functions:
        for entry in function.opset_import:
            if imports.setdefault(entry.domain, entry.version) != entry.version:
                raise ModelError(
                    "function-opset",
                    f"the function {function.domain}::{function.name} uses version {entry.version} of domain "
                    f"{entry.domain!r}, the model {imports[entry.domain]}",
                    "export with one opset, or inline functions at export",
                )
    del proto.opset_import[:]
    for domain, version in imports.items():
        proto.opset_import.add(domain=domain, version=version)


@dataclass
class _Inliner:
    functions: Mapping[Key, onnx.FunctionProto]
    calls: int = 0
    _scopes: dict[str, int] = field(default_factory=dict)

    def graph(self, graph: onnx.GraphProto) -> None:
        """Inline the calls of a graph and of its bodies."""
        if not any(self._concerns(node) for node in graph.node):
            return
        nodes = list(graph.node)
        made = onnx.GraphProto()
        self._expand(nodes, made)
        del graph.node[:]
        graph.node.extend(made.node)

    def _concerns(self, node: onnx.NodeProto) -> bool:
        return self._function(node) is not None or any(attr.HasField("g") for attr in node.attribute)

    def _function(self, node: onnx.NodeProto) -> onnx.FunctionProto | None:
        return self.functions.get((node.domain, node.op_type, node.overload))

    def _expand(self, nodes: Iterable[onnx.NodeProto], made: onnx.GraphProto) -> None:
        """Append `nodes` to `made`, calls replaced by bodies, without recursion over calls."""
        pending = list(nodes)[::-1]
        while pending:
            node = pending.pop()
            function = self._function(node)
            if function is not None:
                pending.extend(self._body(node, function)[::-1])
                continue
            for attr in node.attribute:
                for body in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
                    self.graph(body)
            made.node.append(node)

    def _body(self, call: onnx.NodeProto, function: onnx.FunctionProto) -> list[onnx.NodeProto]:
        """Return the function's nodes with the call's names and attributes."""
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise ModelError("function-call", f"{label(call)} has more inputs or outputs than the function")
        self.calls += 1
        prefix = self._prefix(call)
        names = dict.fromkeys(function.input, "")
        names |= dict(zip(function.input, call.input, strict=False))
        names |= {f: c for f, c in zip(function.output, call.output, strict=False) if c}
        given = {attr.name: attr for attr in function.attribute_proto} | {a.name: a for a in call.attribute}
        made = []
        for node in function.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            _substitute(copy, names, prefix, given)
            made.append(copy)
        return made

    def _prefix(self, call: onnx.NodeProto) -> str:
        """Return a prefix that no other call has."""
        base = call.name or (call.output[0] if call.output else call.op_type)
        count = self._scopes.get(base, 0)
        self._scopes[base] = count + 1
        return f"{base}/" if count == 0 else f"{base}_{count}/"


def _rename(name: str, names: Names, prefix: str) -> str:
    return names[name] if name in names else (prefix + name if name else "")


def _substitute(node: onnx.NodeProto, names: Names, prefix: str, given: Attributes) -> None:
    """Put actual names and attributes into a copy of a function's node and its bodies."""
    node.name = prefix + (node.name or node.op_type)
    for index, name in enumerate(node.input):
        node.input[index] = _rename(name, names, prefix)
    for index, name in enumerate(node.output):
        node.output[index] = _rename(name, names, prefix)
    for index in reversed(range(len(node.attribute))):
        attr = node.attribute[index]
        if attr.ref_attr_name:
            _resolve(node, index, given)
        for body in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
            _substitute_body(body, names, prefix, given)


def _resolve(node: onnx.NodeProto, index: int, given: Attributes) -> None:
    """Replace a reference by the call's attribute; without one the attribute is left out."""
    reference = node.attribute[index]
    actual, name = given.get(reference.ref_attr_name), reference.name
    if actual is None:
        del node.attribute[index]
    else:
        reference.CopyFrom(actual)
        reference.name = name


def _substitute_body(body: onnx.GraphProto, names: Names, prefix: str, given: Attributes) -> None:
    for node in body.node:
        _substitute(node, names, prefix, given)
    for info in (*body.input, *body.output):
        info.name = _rename(info.name, names, prefix)
    for tensor in body.initializer:
        tensor.name = _rename(tensor.name, names, prefix)
    del body.value_info[:]
    del body.quantization_annotation[:]
