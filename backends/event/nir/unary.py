"""From an event graph to NIR that simulators run to the same integers: one step, neurons that fire once.

A neuron of `n` thresholds becomes `n` neurons, neuron k of which fires when the accumulator is at threshold k
or above; how many fire is the count. One simulation step, from rest, so that it does not matter how a
simulator resets or leaks. Nodes are Affine, Conv2d and IF only, on which simulators agree:

    v = accumulator - threshold_k + 1/2 + theta,   fires where v is above theta

theta is a power of two per layer, larger than any accumulator less any threshold, so that a simulator with
several spikes per step sends one; 1/2 settles whether equal is above. All sums are halves below 2^23, which
float32 holds. Dense layers behind images are convolutions over the whole image, as simulators disagree on
Flatten. A maximum is where any neuron of the window fires. A kernel with uneven padding grows by zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ....compiler.errors import UnsupportedOp
from .. import graph as G
from .coarse import coarsen
from .kernels import Kernel, kernel_of, max_kernel, one_to_one
from .records import Graph, Node

# Sums are halves, so they need one bit below the point: float32 has 24.
_EXACT = 2**23
# Weights of one node: 256 MB in the file.
_LARGEST = 1 << 26


@dataclass(frozen=True)
class Units:
    """The neurons that stand for a population.

    Attributes:
        node: NIR node that they are.
        shape: of the population; an image wherever the network has images.
        copies: neurons per count; neuron `k` of channel `c` is channel `c * copies + k`. None: the node
            carries the counts themselves.
        low: count when no copy fires.
    """

    node: str
    shape: tuple[int, ...]
    copies: int | None = None
    low: int = 0

    @property
    def sends(self) -> tuple[int, ...]:
        """Return the shape of what the node sends."""
        return (self.shape[0] * (self.copies or 1), *self.shape[1:])


@dataclass(frozen=True)
class Unrolled:
    """The network, and per layer how many neurons stand for it."""

    graph: Graph
    neurons: dict[str, int]


def unroll(graph: G.EventGraph) -> Unrolled:
    """Write an event graph in NIR's portable nodes.

    Its input takes the counts of the event graph's input, its output gives the counts or accumulators of the
    layer that leaves.

    Raises:
        UnsupportedOp: `nir-export`, the first layer that cannot be written, and why.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedOp(
            "nir-export",
            f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, simulators of NIR "
            "take one of each",
            "split the model, or use target event-cpu",
        )
    return _Builder(coarsen(graph)).build()


def _refuse(layer: str, why: str, way_out: str = "use fewer bits, or target event-cpu") -> UnsupportedOp:
    return UnsupportedOp("nir-export", f"layer {layer!r} {why}", way_out)


@dataclass
class _Builder:
    source: G.EventGraph
    nodes: dict[str, Node | Graph] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    units: dict[str, Units] = field(default_factory=dict)

    def build(self) -> Unrolled:
        entry, leaving = self.source.inputs[0], self.source.outputs[0].layer
        shape = self._shape(entry.shape)
        self.nodes["input"] = Node("Input", {"shape": np.array(shape)})
        self.units[entry.population] = Units("input", shape)
        neurons = {x.name: self._layer(f"{index}", x) for index, x in enumerate(self.source.layers)}
        last = self._counted(self.units[leaving], leaving)
        self.nodes["output"] = Node("Output", {"shape": np.array(last.shape)})
        self.edges.append((last.node, "output"))
        return Unrolled(Graph(self.nodes, tuple(self.edges)), neurons)

    def _shape(self, shape: G.Shape) -> tuple[int, ...]:
        """Return a shape as NIR has it: all vectors, or all images."""
        populations = [self.source.inputs[0].shape, *(layer.shape for layer in self.source.layers)]
        if all(len(shape) == 1 for shape in populations):
            return shape
        return (*shape, *[1] * (3 - len(shape)))

    def _layer(self, name: str, layer: G.Layer) -> int:
        """Add a layer; returns how many neurons stand for it."""
        if len(layer.connections) == 1 and isinstance(layer.connections[0].synapses, G.MaxPool):
            return self._maximum(name, layer, layer.connections[0].synapses)
        shape, ladder = self._shape(layer.shape), layer.ladder
        kernels, bias = self._sum(layer)
        rows = None if ladder is None else _reachable(layer, ladder.thresholds)
        if rows is None or ladder is None:
            arrivals = self._connect(name, layer, kernels, bias)
            self.units[layer.name] = self._joined(f"join{name}", layer, arrivals, shape)
            return 0
        span = layer.bounds[1] - layer.bounds[0] + 1
        theta = 2.0 ** int(span).bit_length()
        offsets = (bias[:, None] - rows).reshape(-1) + 0.5 + theta
        if rows.shape[1] == 1 and len(kernels) == 1:
            arrivals = self._connect(name, layer, kernels, offsets)
        else:
            sums = self._connect(name, layer, kernels, np.zeros_like(bias))
            arrivals = [self._spread(f"spread{name}", layer, sums, shape, offsets)]
        return self._fire(name, layer, arrivals, Units(f"if{name}", shape, rows.shape[1], ladder.low), theta)

    def _fire(self, name: str, layer: G.Layer, arrivals: list[str], units: Units, theta: float) -> int:
        """Add the neurons of a layer; returns how many."""
        sizes = units.sends
        self._add(f"if{name}", _integrate_and_fire(sizes, theta, layer.name), arrivals)
        self.units[layer.name] = units
        return int(np.prod(sizes))

    def _maximum(self, name: str, layer: G.Layer, synapses: G.MaxPool) -> int:
        """Add a maximum: a copy fires where any of the window does."""
        units = self.units[layer.connections[0].source]
        if units.copies is None:
            raise _refuse(layer.name, "takes maxima of the input, which are no spikes")
        channels = units.sends[0]
        kernel = max_kernel(synapses.window, channels)
        if channels * kernel.weights.size > _LARGEST:
            raise _refuse(layer.name, f"needs {channels} by {channels} kernels, as simulators take no groups")
        theta = 2.0 ** int(kernel.reach()[0] + 1).bit_length()
        node = kernel.node(units.sends, np.full(channels, theta - 0.5), layer.name)
        arrivals = [self._add(f"sum{name}_0", node, [units.node])]
        shape = self._shape(layer.shape)
        return self._fire(name, layer, arrivals, Units(f"if{name}", shape, units.copies, units.low), theta)

    def _sum(self, layer: G.Layer) -> tuple[list[Kernel], G.Reals]:
        """Return what each connection adds up, and the bias per channel."""
        shape = self._shape(layer.shape)
        bias = np.zeros(shape[0]) + layer.bias
        kernels = []
        for connection in layer.connections:
            units = self.units[connection.source]
            if isinstance(connection.synapses, G.MaxPool):
                raise _refuse(layer.name, "adds a maximum to something else")
            kernel = kernel_of(connection.synapses, units.shape, shape)
            if kernel is None:
                raise _refuse(layer.name, f"takes {units.shape} where {shape} is needed")
            base, steps = self._worth(layer, connection, units)
            if base:
                if kernel.pads_anything:
                    raise _refuse(layer.name, f"pads counts that rest at {units.low}, not at 0")
                bias = bias + base * kernel.sum_of_weights()
            kernels.append(kernel.with_copies(steps))
        return kernels, bias

    def _worth(self, layer: G.Layer, connection: G.Connection, units: Units) -> tuple[int, G.Integers]:
        """Return what a source is worth at rest, and what each of its copies adds."""
        low, high = self.source.range(connection.source)
        counts = np.arange(low, high + 1)
        values = counts if connection.values is None else connection.values
        steps = np.diff(values)
        if units.copies is not None:
            return int(values[0]), steps[: units.copies]
        if len(set(steps.tolist())) > 1:
            raise _refuse(layer.name, "takes an input whose values are not evenly spaced")
        step = int(steps[0]) if steps.size else 1
        return int(values[0]) - step * low, np.array([step])

    def _connect(self, name: str, layer: G.Layer, kernels: list[Kernel], bias: G.Reals) -> list[str]:
        """Add a node per connection, the first with the bias; returns their names."""
        arrivals = []
        reach = np.abs(bias)
        for number, (connection, kernel) in enumerate(zip(layer.connections, kernels, strict=True)):
            units = self.units[connection.source]
            if kernel.dense_size > _LARGEST:
                raise _refuse(layer.name, f"needs {kernel.dense_size} weights, zeros of groups included")
            low, high = self.source.range(connection.source)
            reach = reach + kernel.reach() * (1 if units.copies is not None else max(abs(low), abs(high)))
            node = kernel.node(units.sends, bias if not number else np.zeros_like(bias), layer.name)
            arrivals.append(self._add(f"sum{name}_{number}", node, [units.node]))
        self._check_exact(layer, reach)
        return arrivals

    def _check_exact(self, layer: G.Layer, reach: G.Reals) -> None:
        if float(reach.max()) >= _EXACT:
            raise _refuse(layer.name, f"may reach {int(reach.max())}, simulators compute in float32: 2^23")

    def _spread(
        self, name: str, layer: G.Layer, sums: list[str], shape: tuple[int, ...], offsets: G.Reals
    ) -> str:
        """Add a node that gives each sum to its copies, each with its own offset."""
        kernel = _identity(shape).for_copies(offsets.size // shape[0])
        self._check_exact(layer, np.abs(offsets) + max(abs(bound) for bound in layer.bounds))
        return self._add(name, kernel.node(shape, offsets, layer.name), sums)

    def _joined(self, name: str, layer: G.Layer, arrivals: list[str], shape: tuple[int, ...]) -> Units:
        """Add up several nodes in one."""
        if len(arrivals) == 1:
            return Units(arrivals[0], shape)
        node = _identity(shape).node(shape, np.zeros(shape[0]), layer.name)
        return Units(self._add(name, node, arrivals), shape)

    def _counted(self, units: Units, layer: str) -> Units:
        """Return counts where copies leave the network."""
        if units.copies is None:
            return units
        kernel = _identity(units.shape).with_copies(np.ones(units.copies, np.int64))
        node = kernel.node(units.sends, np.full(units.shape[0], float(units.low)), layer)
        return Units(self._add("count", node, [units.node]), units.shape)

    def _add(self, name: str, node: Node, sources: list[str]) -> str:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name


def _identity(shape: tuple[int, ...]) -> Kernel:
    kernel = one_to_one(shape, shape, 0)
    assert kernel is not None, "a shape fits itself"
    return kernel


def _reachable(layer: G.Layer, thresholds: G.Integers) -> G.Reals:
    """Return thresholds [channels, copies]; those out of reach are left out or just above the bound."""
    rows = np.broadcast_to(thresholds, (layer.channels, thresholds.shape[1]))
    low, high = layer.bounds
    limited = np.clip(rows, low, high + 1)
    used = max(1, int((rows <= high).any(axis=0).sum()))
    return np.asarray(limited[:, :used], np.float64)


def _integrate_and_fire(shape: tuple[int, ...], theta: float, layer: str) -> Node:
    values = {
        "r": np.ones(shape, np.float32),
        "v_threshold": np.full(shape, theta, np.float32),
        "v_reset": np.zeros(shape, np.float32),
    }
    return Node("IF", values, {"layer": layer})
