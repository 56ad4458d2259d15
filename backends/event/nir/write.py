"""From a graph to a NIR file, as nir 1.0.8 reads and writes it."""

from __future__ import annotations

from typing import Final

import numpy as np

from .hdf5 import Leaf, Tree, write_tree
from .records import Graph, Node

VERSION: Final = "1.0.8"


def write_nir(graph: Graph) -> bytes:
    """Return the bytes of a NIR file; equal graphs give equal bytes.

    Raises:
        MissingTool: h5py is not installed.
    """
    return write_tree({"version": VERSION, "node": _graph(graph)})


def _graph(graph: Graph) -> Tree:
    edges: Leaf = np.array([list(edge) for edge in graph.edges], dtype=str).reshape(-1, 2)
    nodes = {name: _graph(n) if isinstance(n, Graph) else _node(n) for name, n in graph.nodes.items()}
    tree: dict[str, Leaf | Tree] = {"edges": edges, "nodes": nodes, "type": "NIRGraph"}
    return tree | ({"metadata": dict(graph.metadata)} if graph.metadata else {})


def _node(node: Node) -> Tree:
    tree: dict[str, Leaf | Tree] = {"type": node.kind, **node.values}
    return tree | ({"metadata": dict(node.metadata)} if node.metadata else {})
