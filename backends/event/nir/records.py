"""A NIR network in memory: named nodes with their parameters, and edges.

The format: https://neuroir.org/docs

Every kind of node that is known has a row in `KINDS`. Shapes are without batch and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from ....compiler.backend import Array
from ....compiler.ops.neurons import PARAMETERS

Value: TypeAlias = Array | int | float | str
Edge: TypeAlias = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Node:
    """A node.

    Attributes:
        kind: NIR's name of it.
        values: parameters by NIR's names.
        metadata: whatever its writer noted.
    """

    kind: str
    values: Mapping[str, Value]
    metadata: Mapping[str, Value] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """Return a parameter as an array."""
        return np.asarray(self.values[name])

    def pair(self, name: str) -> tuple[int, int]:
        """Return a parameter of one or two integers as two."""
        found = np.asarray(self.values[name]).reshape(-1)
        return int(found[0]), int(found[-1])


@dataclass(frozen=True, eq=False)
class Graph:
    """A network, or a part of one that stands where a node does.

    Attributes:
        nodes: by name, in the order of the file.
        edges: from, to; what arrives at one node adds up.
        metadata: as of a node; `dt` is the time step in seconds.
    """

    nodes: Mapping[str, Node | Graph]
    edges: tuple[Edge, ...]
    metadata: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Parameter:
    """What a parameter of a kind must be.

    Attributes:
        ranks: ranks allowed; empty: any.
        integer: whole numbers.
        optional: may be missing.
        text: words that may stand for it.
        neuron: has the shape of the neurons, all such parameters of a node alike.
    """

    ranks: tuple[int, ...] = ()
    integer: bool = False
    optional: bool = False
    text: tuple[str, ...] = ()
    neuron: bool = False


_NEURON = Parameter(neuron=True)
_RESET = Parameter(neuron=True, optional=True)
_SIZES = Parameter((0, 1), integer=True)
_SHAPE = Parameter((1,), integer=True)
_PADDING = Parameter((0, 1), integer=True, text=("same", "valid"))


def _convolution(rank: int) -> dict[str, Parameter]:
    return {
        "input_shape": Parameter((0, 1), integer=True, optional=True),
        "weight": Parameter((rank + 2,)),
        "stride": _SIZES,
        "padding": _PADDING,
        "dilation": _SIZES,
        "groups": Parameter((0,), integer=True),
        "bias": Parameter((1,)),
    }


_POOL: Final = {"kernel_size": _SIZES, "stride": _SIZES, "padding": _SIZES}
_LEAKY: Final = {"r": _NEURON, "v_leak": _NEURON}
_FIRING: Final = {"v_threshold": _NEURON, "v_reset": _RESET}
_CURRENT: Final = {"tau_syn": _NEURON, "tau_mem": _NEURON, **_LEAKY}
_W_IN: Final = {"w_in": Parameter(optional=True)}

KINDS: Final[Mapping[str, Mapping[str, Parameter]]] = {
    "Input": {"shape": _SHAPE},
    "Output": {"shape": _SHAPE},
    "Affine": {"weight": Parameter((2,)), "bias": Parameter((1,))},
    "Linear": {"weight": Parameter((2,))},
    "Scale": {"scale": _NEURON},
    "Conv1d": _convolution(1),
    "Conv2d": _convolution(2),
    "SumPool2d": _POOL,
    "AvgPool2d": _POOL,
    "Flatten": {
        "start_dim": Parameter((0,), integer=True),
        "end_dim": Parameter((0,), integer=True),
        "input_type": Parameter((1,), integer=True, optional=True),
    },
    "Delay": {"delay": _NEURON},
    "Threshold": {"threshold": _NEURON},
    "I": {"r": _NEURON},
    "IF": {"r": _NEURON, **_FIRING},
    "LI": {"tau": _NEURON, **_LEAKY},
    "LIF": {"tau": _NEURON, **_LEAKY, **_FIRING},
    "CubaLI": {**_CURRENT, **_W_IN},
    "CubaLIF": {**_CURRENT, **_FIRING, **_W_IN},
}

# Kinds that keep something between steps.
STATEFUL: Final = frozenset(PARAMETERS)


def same(left: Graph, right: Graph) -> bool:
    """Tell whether two graphs hold the same nodes, parameters to the bit, and edges."""
    if set(left.nodes) != set(right.nodes) or set(left.edges) != set(right.edges):
        return False
    pairs = ((left.nodes[name], right.nodes[name]) for name in left.nodes)
    return _same_values(left.metadata, right.metadata) and all(_same_node(a, b) for a, b in pairs)


def _same_node(left: Node | Graph, right: Node | Graph) -> bool:
    if isinstance(left, Graph) or isinstance(right, Graph):
        return isinstance(left, Graph) and isinstance(right, Graph) and same(left, right)
    known = left.kind == right.kind and _same_values(left.metadata, right.metadata)
    return known and _same_values(left.values, right.values)


def _same_values(left: Mapping[str, Value], right: Mapping[str, Value]) -> bool:
    if set(left) != set(right):
        return False
    pairs = [(np.asarray(left[key]), np.asarray(right[key])) for key in left]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
