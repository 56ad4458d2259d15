"""The graph as text with canonical names, for golden tests, and a fingerprint of graph and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .digest import tensor_digest
from .walk import named_bodies

# Constants up to this many elements are written out; larger ones as a digest.
_SHOWN = 16


def canonical_text(model: ir.Model) -> str:
    """Return the graph as text in which values and constants are numbered in order of appearance.

    Names of inputs and outputs of the main graph stay (they are the model's signature); node names and
    all other value names do not show, so they may change without changing the text.
    """
    opsets = ", ".join(
        f"{domain or 'onnx'}={version}" for domain, version in sorted(model.opset_imports.items())
    )
    printer = _Printer()
    return "\n".join([f"opsets: {opsets}", *printer.graph(model.graph, "", keep_names=True), ""])


class _Printer:
    def __init__(self) -> None:
        self._names: dict[ir.Value, str] = {}
        self._counts = {"v": 0, "c": 0, "b": 0}

    def graph(self, graph: ir.Graph, indent: str, *, keep_names: bool = False) -> Iterator[str]:
        """Yield the lines of a graph."""
        for value in graph.inputs:
            self._names[value] = f"${value.name}" if keep_names else self._new("b")
        yield indent + "inputs: " + ", ".join(f"{self._names[v]}: {_type(v)}" for v in graph.inputs)
        for node in graph:
            yield from self._node(node, indent)
        if keep_names:
            outputs = [f"${value.name} = {self._name(value)}: {_type(value)}" for value in graph.outputs]
        else:
            outputs = [f"{self._name(value)}: {_type(value)}" for value in graph.outputs]
        yield indent + "outputs: " + ", ".join(outputs)

    def _new(self, kind: str) -> str:
        self._counts[kind] += 1
        return f"{kind}{self._counts[kind] - 1}"

    def _name(self, value: ir.Value | None) -> str:
        if value is None:
            return "_"
        if value not in self._names:
            known = value.is_initializer() and value.const_value is not None
            self._names[value] = _literal(value.const_value) if known else self._new("v")
        return self._names[value]

    def _node(self, node: ir.Node, indent: str) -> Iterator[str]:
        inputs = ", ".join(self._name(value) for value in node.inputs)
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        attributes = [
            f"{key}={_attribute(attr)}"
            for key, attr in sorted(node.attributes.items())
            if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        ]
        outputs = ", ".join(
            f"{self._name(value)}: {_type(value)}" if value.name else "_" for value in node.outputs
        )
        suffix = f" {{{' '.join(attributes)}}}" if attributes else ""
        yield f"{indent}{outputs} = {kind}({inputs}){suffix}"
        for name, body in named_bodies(node):
            yield f"{indent}  {name}:"
            yield from self.graph(body, indent + "    ")


def _type(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name
    if value.shape is None:
        return f"{dtype}?"
    return dtype + "[" + ",".join(_dim(dim) for dim in value.shape.dims) + "]"


def _dim(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else dim.value or "?"


def _literal(tensor: ir.TensorProtocol | None) -> str:
    assert tensor is not None, "a constant without a tensor"
    shape = ",".join(str(dim) for dim in tensor.shape.numpy())
    if tensor.size > _SHOWN:
        return f"{tensor.dtype.name}[{shape}]#{tensor_digest(tensor)[:12]}"
    values = np.asarray(tensor.numpy()).reshape(-1).tolist()
    return f"{tensor.dtype.name}[{shape}]({','.join(str(value) for value in values)})"


def _attribute(attr: ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type == ir.AttributeType.TENSOR:
        return _literal(attr.as_tensor())
    return repr(attr.value)


# --- fingerprint ------------------------------------------------------------------------------------


def fingerprint(model: ir.Model) -> str:
    """Return a sha256 over graph, names, attributes, signature and weights.

    Inferred types of intermediate values do not count, nor do metadata and documentation. The digest
    of a tensor is computed once per tensor object, which clones share.
    """
    digest = hashlib.sha256()
    digest.update(repr(sorted(model.opset_imports.items())).encode())
    for line in _lines(model.graph):
        digest.update(line.encode("utf-8", "surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()


def _lines(graph: ir.Graph) -> Iterator[str]:
    yield "inputs " + repr([(value.name, _type(value)) for value in graph.inputs])
    for name, value in sorted(graph.initializers.items()):
        tensor = value.const_value
        yield f"constant {name!r} " + ("none" if tensor is None else tensor_digest(tensor))
    for node in graph:
        attributes = sorted(
            (key, _fixed(attr))
            for key, attr in node.attributes.items()
            if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        )
        names = [None if value is None else value.name for value in node.inputs]
        made = [value.name for value in node.outputs]
        yield repr((node.name, node.domain, node.op_type, names, made, attributes))
        for name, body in named_bodies(node):
            yield f"body {name}"
            yield from _lines(body)
    yield "outputs " + repr([(value.name, _type(value)) for value in graph.outputs])


def _fixed(attr: ir.Attr) -> str:
    if not attr.is_ref() and attr.type == ir.AttributeType.TENSOR:
        return tensor_digest(attr.as_tensor())
    return f"{attr.type.name} {attr.ref_attr_name!r} {attr.value!r}"
