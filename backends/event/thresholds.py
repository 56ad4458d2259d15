"""Raises first thresholds where that silences many events and changes outputs little; no training.

Below its threshold of level `k`, a neuron stays silent instead of counting 1 to `k`: a dead zone, as FATReLU
has one (Kurtz et al. 2020). What that takes away on average goes into the biases of the layers behind. Each
layer is tried alone, on data; levels are then chosen together by what they save and what they cost, as far as
the stated error of the outputs allows. The result is another network: approximate, and it says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...compiler.backend import Array
from .bounds import layer_bounds
from .graph import Connection, Conv, Dense, EventGraph, Integers, Layer, Reals
from .ledger import operations
from .simulate import Counts, graded, reals

# Shares of a layer's levels that are tried.
SHARES = (0.0, 0.015, 0.03, 0.06, 0.12, 0.2, 0.3)
_ROUNDS = 8
_OCTAVES = 24.0
# Accumulators of the engine; a layer that could leave them keeps its bias.
_LIMIT = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Raised:
    """A network with raised thresholds.

    Attributes:
        graph: the network.
        levels: layer -> counts from 1 to this are silent.
        error: squared error of the outputs as a share of their energy, on the data.
        before, after: effective operations per sample, on the data.
    """

    graph: EventGraph
    levels: Mapping[str, int]
    error: float
    before: float
    after: float


@dataclass(frozen=True)
class _Option:
    """A dead zone of one layer, tried alone: its error and the operations left."""

    level: int
    error: float
    left: float


def raise_thresholds(graph: EventGraph, inputs: Mapping[str, Array], error: float) -> Raised:
    """Return the network with as few operations as the error allows.

    Args:
        graph: any; layers whose counts start at 0 and whose events all meet weights are changed.
        inputs: data by the names of the graph's inputs, [samples, ...].
        error: squared error of the outputs that may be had, as a share of their energy; 0 to 1.
    """
    counts = graded(graph, inputs)
    want = reals(graph, counts)
    before = _work(graph, counts)
    options = {layer.name: _options(graph, layer, inputs, counts, want) for layer in _able(graph)}
    best = Raised(graph, {}, 0.0, before, before)
    top = _steepest(options)
    # Halvings of the highest price: prices that matter lie orders of magnitude apart.
    low, high = -_OCTAVES, 0.0
    for _ in range(_ROUNDS):
        price = (low + high) / 2
        found = _raised(graph, _choose(options, top * 2.0**price), inputs, counts, want, before)
        if found.error <= error:
            low = price
            best = found if found.after <= best.after else best
        else:
            high = price
    return best


def silenced(graph: EventGraph, levels: Mapping[str, int], counts: Counts) -> EventGraph:
    """Return the network in which counts from 1 to a layer's level do not happen.

    Args:
        graph: as it is.
        levels: by names of layers; where a layer is not read by weights, nothing makes up for it.
        counts: of `graph` on data, for what goes into biases.
    """
    layers = []
    for layer in graph.layers:
        changed = _with_level(layer, levels.get(layer.name, 0))
        lost = [(c, levels[c.source]) for c in layer.connections if levels.get(c.source) and _weighs(c)]
        layers.append(_made_up(graph, changed, lost, counts))
    return replace(graph, layers=tuple(layers))


def _able(graph: EventGraph) -> Iterator[Layer]:
    """Yield layers that can have a dead zone: counts from 0, read by weights only; pooling may make them."""
    shown = {output.layer for output in graph.outputs}
    for layer in graph.layers:
        readers = [c for other in graph.layers for c in other.connections if c.source == layer.name]
        if layer.ladder is None or layer.ladder.low or layer.name in shown or not readers:
            continue
        if all(_weighs(connection) for connection in readers):
            yield layer


def _weighs(connection: Connection) -> bool:
    """Tell whether counts go into products with weights as they are."""
    return isinstance(connection.synapses, Dense | Conv) and connection.values is None


def _with_level(layer: Layer, level: int) -> Layer:
    if not level or layer.ladder is None:
        return layer
    thresholds = layer.ladder.thresholds.copy()
    thresholds[:, :level] = thresholds[:, level : level + 1]
    return replace(layer, ladder=replace(layer.ladder, thresholds=thresholds))


def _made_up(
    graph: EventGraph, layer: Layer, lost: Sequence[tuple[Connection, int]], counts: Counts
) -> Layer:
    """Add to a layer's bias what silent counts added on average."""
    extra = np.zeros(layer.channels)
    for connection, level in lost:
        extra += _average(connection, counts[connection.source], level, layer.channels)
    whole = np.rint(extra).astype(np.int64)
    if not whole.any():
        return layer
    found = replace(layer, bias=layer.bias + whole)
    low, high = layer_bounds(graph, found)
    bounds = (int(low.min()), int(high.max()))
    return replace(found, bounds=bounds) if max(-bounds[0], bounds[1]) <= _LIMIT else layer


def _average(connection: Connection, source: Integers, level: int, outputs: int) -> Reals:
    """Return what counts of 1 to `level` add to each output channel on average."""
    silent = np.where(source <= level, source, 0)
    synapses = connection.synapses
    if isinstance(synapses, Dense):
        mean = silent.reshape(len(silent), -1).mean(axis=0)
        return np.asarray(synapses.weights.astype(np.float64) @ mean)
    assert isinstance(synapses, Conv), "only weights read a layer with a dead zone"
    mean = silent.mean(axis=(0, 2, 3))
    taps = (
        synapses.weights.astype(np.float64)
        .sum(axis=(2, 3))
        .reshape(synapses.groups, -1, synapses.weights.shape[1])
    )
    return np.asarray(np.einsum("goc,gc->go", taps, mean.reshape(synapses.groups, -1)).reshape(outputs))


def _work(graph: EventGraph, counts: Counts) -> float:
    """Return effective operations per sample."""
    done = [operations(graph, layer, counts) for layer in graph.layers]
    return sum(one.macs + one.acs for one in done) / len(next(iter(counts.values())))


def _error(found: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    """Return the squared error of all outputs as a share of their energy."""
    off = energy = 0.0
    for name, array in want.items():
        real = array.astype(np.float64)
        off += float(np.square(found[name].astype(np.float64) - real).sum())
        energy += float(np.square(real).sum())
    return off / energy if energy else 0.0


def _options(
    graph: EventGraph, layer: Layer, inputs: Mapping[str, Array], counts: Counts, want: Mapping[str, Array]
) -> list[_Option]:
    """Try levels of one layer alone; operations left are those of the layers that read it."""
    assert layer.ladder is not None, "readouts have no thresholds"
    most = layer.ladder.thresholds.shape[1] - 1
    levels = sorted({min(most, round(share * (most + 1))) for share in SHARES})
    source = counts[layer.name]
    active = max(1, int(np.count_nonzero(source)))
    read = sum(
        one.macs + one.acs
        for other in graph.layers
        if any(c.source == layer.name for c in other.connections)
        for one in [operations(graph, other, counts)]
    )
    found = []
    for level in levels:
        changed = silenced(graph, {layer.name: level}, counts)
        off = _error(reals(changed, graded(changed, inputs)), want) if level else 0.0
        found.append(_Option(level, off, read * int(np.count_nonzero(source > level)) / active))
    return found


def _steepest(options: Mapping[str, Sequence[_Option]]) -> float:
    """Return a price per operation at which every layer takes its largest level."""
    most = 0.0
    for tried in options.values():
        for other in tried[1:]:
            saved = tried[0].left - other.left
            most = max(most, other.error / saved if saved else 0.0)
    return 2 * most


def _choose(options: Mapping[str, Sequence[_Option]], price: float) -> dict[str, int]:
    """Return the levels of least error plus operations at a price of error per operation."""
    best = {name: min(tried, key=lambda o: o.error + price * o.left) for name, tried in options.items()}
    return {name: option.level for name, option in best.items() if option.level}


def _raised(
    graph: EventGraph, levels: Mapping[str, int], inputs: Mapping[str, Array], counts: Counts,
    want: Mapping[str, Array], before: float,
) -> Raised:  # fmt: skip
    changed = silenced(graph, levels, counts)
    now = graded(changed, inputs)
    return Raised(changed, dict(levels), _error(reals(changed, now), want), before, _work(changed, now))
