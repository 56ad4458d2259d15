"""lava-dl's network files (`.net`, HDF5): layers in a row, integer weights, Loihi's CUBA neuron.

Layout: https://github.com/lava-nc/lava-dl (netx). Arithmetic of the neurons: `compiler/ops/neurons.py`.
Layers of type `dense` with spikes of one bit are read; input layers, which encode in software, and other
kinds are refused. A layer takes no step here; on Loihi and in lava each delays by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from ....compiler.errors import ModelError, UnsupportedOp
from ....compiler.ops.neurons import LAVA
from .hdf5 import Leaf, Tree, read_tree
from .records import Graph, Node

_UNITY = 4096
_MANTISSA = 17


def read_lava(path: Path) -> Graph:
    """Read a `.net` file.

    Raises:
        ModelError: `lava-malformed`, or what `hdf5.read_tree` raises.
        UnsupportedOp: `lava-layer`, a layer of another kind.
        MissingTool: h5py is not installed.
    """
    return from_tree(read_tree(path), path)


def from_tree(tree: Tree, path: Path) -> Graph:
    """Return the graph of a file's content; `path` is for errors, which are those of `read_lava`."""
    layers = tree.get("layer")
    if not isinstance(layers, Mapping) or not layers:
        raise _malformed(path, "it has no group `layer`")
    try:
        order = sorted(layers, key=int)
    except ValueError as err:
        raise _malformed(path, f"its layers are named {sorted(layers)}, numbers were needed") from err
    nodes: dict[str, Node | Graph] = {}
    chain = ["input"]
    for name in order:
        layer = layers[name]
        if not isinstance(layer, Mapping):
            raise _malformed(path, f"layer {name} is no group")
        nodes[f"dense{name}"], nodes[f"neuron{name}"] = _layer(layer, f"{path}: layer {name}", path)
        chain += [f"dense{name}", f"neuron{name}"]
    first, last = nodes[chain[1]], nodes[chain[-2]]
    assert isinstance(first, Node), "layers are nodes"
    assert isinstance(last, Node), "layers are nodes"
    nodes["input"] = Node("Input", {"shape": np.array(first.array("weight").shape[1:])})
    nodes["output"] = Node("Output", {"shape": np.array(last.array("weight").shape[:1])})
    chain.append("output")
    return Graph(nodes, tuple(pairwise(chain)), {"dt": 1.0})


def _malformed(path: Path, finding: str) -> ModelError:
    return ModelError("lava-malformed", f"{path}: {finding}", "export it again with lava-dl")


def _layer(layer: Tree, where: str, path: Path) -> tuple[Node, Node]:
    kind, neuron, weight = _word(layer.get("type")), layer.get("neuron"), layer.get("weight")
    if (
        kind != "dense"
        or not isinstance(neuron, Mapping)
        or _word(neuron.get("type")) not in ("CUBA", "LOIHI")
    ):
        found = _word(neuron.get("type")) if isinstance(neuron, Mapping) else "nothing"
        raise UnsupportedOp(
            "lava-layer", f"{where} is {kind or 'nothing'} with neurons {found}", "dense with CUBA is read"
        )
    if bool(neuron.get("gradedSpike", False)) or "delay" in layer or int(_number(neuron, "refDelay", 1)) != 1:
        raise UnsupportedOp(
            "lava-layer", f"{where} has graded spikes, delays or a refractory time", "dense with CUBA is read"
        )
    if not isinstance(weight, np.ndarray) or weight.ndim != 2 or not weight.size:
        raise _malformed(path, f"{where} has no matrix of weights")
    if not np.isfinite(weight).all() or not np.array_equal(weight, np.rint(weight)):
        raise _malformed(path, f"{where} has weights that are no integers")
    values = {key: int(_number(neuron, key, None)) for key in ("iDecay", "vDecay", "vThMant")}
    if not all(0 <= values[key] <= _UNITY for key in ("iDecay", "vDecay")) or values["vThMant"] >> _MANTISSA:
        need = f"decays of 0 to {_UNITY} and a threshold of {_MANTISSA} bits"
        raise _malformed(path, f"{where} has {values}, {need} were needed")
    dense = Node("Linear", {"weight": np.asarray(weight, np.float32)})
    return dense, Node(LAVA, {**values, "weight": np.ones(weight.shape[:1], np.float32)})


def _word(found: Leaf | Tree | None) -> str:
    if isinstance(found, np.ndarray) and found.dtype.kind == "U" and found.size == 1:
        return str(found.reshape(-1)[0])
    return found if isinstance(found, str) else ""


def _number(tree: Tree, name: str, default: int | None) -> int:
    found = tree.get(name, default)
    if isinstance(found, bool | int | np.ndarray) and np.asarray(found).size == 1:
        return int(np.asarray(found).reshape(-1)[0])
    raise ModelError("lava-malformed", f"neuron parameter {name} is {found}", "export it again with lava-dl")
