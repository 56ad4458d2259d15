"""lava-dl's network files (`.net`, HDF5): layers in a row, integer weights, Loihi's CUBA neuron.

Layout and arithmetic: https://github.com/lava-nc/lava-dl (netx) and https://github.com/lava-nc/lava (LIF,
fixed point). Integers throughout, weights and thresholds shifted by 6 bits:

    u = decay(u, iDecay) + (weights @ spikes << 6),   v = decay(v, vDecay) + u + bias
    fires where v >= vThMant << 6; v goes to 0 there
    decay(x, d) = sign(x) * (|x| * (4096 - d) >> 12), rounding towards zero

Layers of type `dense` with spikes of one bit are read; input layers, which encode in software, and other
kinds are refused. A layer takes no step here; on Loihi and in lava each delays by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....compiler.errors import ModelError, UnsupportedOp
from .hdf5 import Leaf, Tree, read_tree
from .records import LAVA, Graph, Node

_SHIFT = 6
_UNITY = 1 << 12
# Loihi's voltage has 24 bits and its current too; both saturate here as lava's voltage does.
_LIMIT = 2**23 - 1


class LavaNeuron:
    """Neurons of one layer with their state."""

    def __init__(self, node: Node, shape: tuple[int, ...]) -> None:
        self._decays = int(node.values["iDecay"]), int(node.values["vDecay"])
        self._threshold = int(node.values["vThMant"]) << _SHIFT
        self._bias = np.asarray(node.values.get("bias", 0), np.int64) << _SHIFT
        self.u, self.v = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def advance(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Take a step; x: whole sums of weights."""
        arrived = np.rint(x).astype(np.int64) << _SHIFT
        self.u = _wrapped(_decayed(self.u, self._decays[0]) + arrived)
        self.v = np.clip(_decayed(self.v, self._decays[1]) + self.u + self._bias, -_LIMIT, _LIMIT)
        fired = self.v >= self._threshold
        self.v[fired] = 0
        return fired.astype(np.float32)


def _decayed(x: npt.NDArray[np.int64], decay: int) -> npt.NDArray[np.int64]:
    return np.asarray(np.sign(x) * ((np.abs(x) * (_UNITY - decay)) >> 12), np.int64)


def _wrapped(u: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Let currents overflow as 24 bits do."""
    return np.asarray((u + _LIMIT + 1) % (2 * (_LIMIT + 1)) - _LIMIT - 1, np.int64)


def read_lava(path: Path) -> Graph:
    """Read a `.net` file.

    Raises:
        ModelError: `lava-malformed`, or what `hdf5.read_tree` raises.
        UnsupportedOp: `lava-layer`, a layer of another kind.
        MissingTool: h5py is not installed.
    """
    layers = read_tree(path).get("layer")
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
    if not all(0 <= values[key] <= _UNITY for key in ("iDecay", "vDecay")):
        raise _malformed(path, f"{where} has decays {values}, 0 to {_UNITY} were needed")
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
