"""From a NIR file to a graph that was checked: kinds, parameters, shapes of neurons, edges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....compiler.errors import ModelError, UnsupportedOp
from .hdf5 import Leaf, Tree, read_tree
from .records import KINDS, Edge, Graph, Node, Parameter, Value

# Written by nir 0.1 to 1.x: the layout has stayed, fields and nodes were added.
_VERSIONS = re.compile(r"(0|1)\.\d+([.+-].*)?")


def read_nir(path: Path) -> Graph:
    """Read a NIR file.

    Raises:
        ModelError: `nir-malformed`, `nir-version`, or what `hdf5.read_tree` raises.
        UnsupportedOp: `nir-node`, a node of an unknown kind.
        MissingTool: h5py is not installed.
    """
    return from_tree(read_tree(path), str(path))


def from_tree(tree: Tree, path: str) -> Graph:
    """Return the graph of a file's content; `path` is for errors, which are those of `read_nir`."""
    version = tree.get("version")
    if "node" not in tree:
        raise malformed(path, "it has no group `node`")
    if not isinstance(version, str) or not _VERSIONS.fullmatch(version):
        raise ModelError(
            "nir-version",
            f"{path} says version {version if isinstance(version, str) else 'nothing'}, "
            "this pared reads NIR 0.x and 1.x",
            "write it again with nir 1.0.8",
        )
    found = _node(tree["node"], path)
    if not isinstance(found, Graph):
        raise malformed(path, f"its root is a {found.kind}, a NIRGraph was needed")
    return found


def malformed(where: str, finding: str) -> ModelError:
    """Return the refusal of what is no NIR."""
    return ModelError("nir-malformed", f"{where}: {finding}", "export it again")


def _node(tree: Leaf | Tree, where: str) -> Node | Graph:
    if not isinstance(tree, Mapping) or not isinstance(tree.get("type"), str):
        raise malformed(where, "a node without a type")
    kind = str(tree["type"])
    metadata = _metadata(tree.get("metadata", {}), where)
    if kind == "NIRGraph":
        return _graph(tree, metadata, where)
    if kind not in KINDS:
        raise UnsupportedOp(
            "nir-node", f"{where} is a {kind}, which is not known", f"known: {', '.join(sorted(KINDS))}"
        )
    values: dict[str, Value] = {}
    for key, value in tree.items():
        if key in ("type", "metadata"):
            continue
        if isinstance(value, Mapping) or key not in KINDS[kind]:
            raise malformed(where, f"a {kind} has no parameter {key!r}")
        values[key] = value
    node = Node(kind, values, metadata)
    check_node(node, where)
    return node


def _graph(tree: Tree, metadata: Mapping[str, Value], where: str) -> Graph:
    parts = tree.get("nodes", {})
    if not isinstance(parts, Mapping):
        raise malformed(where, "`nodes` is no group")
    nodes = {name: _node(part, f"{where}: node {name!r}") for name, part in parts.items()}
    edges = _edges(tree.get("edges"), where)
    for edge in edges:
        for end in edge:
            if end not in nodes:
                raise malformed(where, f"edge {edge[0]!r} -> {edge[1]!r}: there is no node {end!r}")
    return Graph(nodes, edges, metadata)


def _edges(found: object, where: str) -> tuple[Edge, ...]:
    if isinstance(found, np.ndarray) and found.size == 0:
        return ()
    if not isinstance(found, np.ndarray) or found.dtype.kind != "U" or found.ndim != 2 or found.shape[1] != 2:
        raise malformed(where, "`edges` is no list of pairs of names")
    # Some writers list an edge twice; it means the same once.
    return tuple(dict.fromkeys((str(a), str(b)) for a, b in found))


def _metadata(found: Leaf | Tree, where: str) -> dict[str, Value]:
    if not isinstance(found, Mapping):
        raise malformed(where, "`metadata` is no group")
    return {key: value for key, value in found.items() if not isinstance(value, Mapping)}


def check_node(node: Node, where: str) -> None:
    """Check the parameters of a node.

    Raises:
        ModelError: `nir-malformed`.
    """
    rules = KINDS[node.kind]
    missing = [name for name, rule in rules.items() if name not in node.values and not rule.optional]
    if missing:
        raise malformed(where, f"a {node.kind} needs {', '.join(missing)}")
    for name, value in node.values.items():
        problem = _problem(rules[name], value)
        if problem:
            raise malformed(where, f"{name} of {node.kind} {problem}")
    shapes = {name: node.array(name).shape for name in node.values if rules[name].neuron}
    if len(set(shapes.values())) > 1:
        raise malformed(where, f"parameters of {node.kind} differ in shape: {shapes}")


def _problem(rule: Parameter, value: Value) -> str:
    """Say what is wrong with a parameter; empty: nothing."""
    if isinstance(value, str):
        return "" if value in rule.text else f"is the text {value!r}"
    array = np.asarray(value)
    if array.dtype.kind not in ("iu" if rule.integer else "iuf"):
        return f"has type {array.dtype}"
    if rule.ranks and array.ndim not in rule.ranks:
        return f"has {array.ndim} dimensions"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "has values that are not finite"
    if array.size == 0:
        return "is empty"
    return ""
