"""Values of counts as small integers, where a layer's own unit is too fine for float32.

Averages and sums of what DequantizeLinear rounded to float32 are kept in units of about 2^-24 of a step.
Decisions need far less: a coarser unit is taken, and thresholds are placed anew where every sum of counts
that can occur is decided as before, which is checked for all of them. Else the layer stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from .. import graph as G

# Ends of coarse values that are tried: sums stay below 2^23 with a margin.
_ENDS = (2**12, 2**16, 2**20)


def coarsen(graph: G.EventGraph) -> G.EventGraph:
    """Return the graph with coarse values wherever that changes no count."""
    return replace(graph, layers=tuple(_layer(graph, layer) for layer in graph.layers))


def _layer(graph: G.EventGraph, layer: G.Layer) -> G.Layer:
    if layer.ladder is None or all(connection.values is None for connection in layer.connections):
        return layer
    if len(layer.connections) == 1 and isinstance(layer.connections[0].synapses, G.SumPool):
        return _summed(graph, layer, layer.connections[0]) or layer
    if all(isinstance(connection.synapses, G.OneToOne) for connection in layer.connections):
        return _added(graph, layer) or layer
    return layer


def _summed(graph: G.EventGraph, layer: G.Layer, connection: G.Connection) -> G.Layer | None:
    """Take counts themselves where a window adds up values that are nearly even steps."""
    assert isinstance(connection.synapses, G.SumPool), "the caller looked"
    assert layer.ladder is not None, "the caller looked"
    low, high = graph.range(connection.source)
    values, counts = np.asarray(connection.values, np.float64), np.arange(low, high + 1)
    taps = int(np.prod(connection.synapses.window.kernel))
    unit = float(values[-1] - values[0]) / max(1, high - low)
    if unit <= 0:
        return None
    error = taps * float(np.abs(values - unit * counts).max()) + 1
    least, most = taps * min(low, 0), taps * max(high, 0)
    wanted = layer.ladder.thresholds - layer.bias.reshape(-1, 1)
    reachable = layer.ladder.thresholds <= layer.bounds[1]
    sums = np.clip(np.ceil(wanted / unit), least, most + 1)
    sure = (sums * unit - error >= wanted) | (sums > most)
    sure &= ((sums - 1) * unit + error < wanted) | (sums - 1 < least)
    if not bool(np.all(sure | ~reachable)):
        return None
    thresholds = np.where(reachable, sums, G.NEVER).astype(np.int64)
    return _replaced(layer, (replace(connection, values=None),), thresholds, (least, most))


def _added(graph: G.EventGraph, layer: G.Layer) -> G.Layer | None:
    """Round values to coarse ones where neurons add one or two of them."""
    groups, ladder = _groups(graph, layer), layer.ladder
    if groups is None or ladder is None or len(ladder.thresholds) > 1 or np.unique(layer.bias).size > 1:
        return None
    fine = [_values(graph, connection) for connection in layer.connections]
    largest = max(int(np.abs(values).max()) for values in fine)
    for end in _ENDS:
        coarse = [np.rint(values * (end / max(1, largest))).astype(np.int64) for values in fine]
        thresholds = _placed(layer, groups, fine, coarse)
        if thresholds is not None:
            connections = tuple(
                replace(connection, values=values)
                for connection, values in zip(layer.connections, coarse, strict=True)
            )
            ends = [sum(int(coarse[i].min()) for i in g) for g in groups]
            tops = [sum(int(coarse[i].max()) for i in g) for g in groups]
            return _replaced(layer, connections, thresholds, (min(*ends, 0), max(*tops, 0)))
    return None


def _values(graph: G.EventGraph, connection: G.Connection) -> G.Integers:
    low, high = graph.range(connection.source)
    return np.arange(low, high + 1) if connection.values is None else connection.values


def _groups(graph: G.EventGraph, layer: G.Layer) -> list[tuple[int, ...]] | None:
    """Return which connections meet in a neuron: all (a sum of two), or none (a concatenation)."""
    reaches = []
    for connection in layer.connections:
        assert isinstance(connection.synapses, G.OneToOne), "the caller looked"
        first = connection.synapses.first
        reaches.append((first, first + graph.shape(connection.source)[0]))
    if len(set(reaches)) == 1:
        return [tuple(range(len(reaches)))] if len(reaches) <= 2 else None
    ordered = sorted(reaches)
    apart = all(a[1] <= b[0] for a, b in pairwise(ordered))
    return [(index,) for index in range(len(reaches))] if apart else None


def _placed(
    layer: G.Layer, groups: list[tuple[int, ...]], fine: list[G.Integers], coarse: list[G.Integers]
) -> G.Integers | None:
    """Return thresholds on coarse sums that decide every sum as before; None where none does."""
    assert layer.ladder is not None, "the caller looked"
    exact = np.concatenate([_sums([fine[i] for i in group]) for group in groups]) + int(layer.bias[0])
    rough = np.concatenate([_sums([coarse[i] for i in group]) for group in groups])
    order = np.argsort(exact, kind="stable")
    exact, rough = exact[order], rough[order]
    highest_below = np.maximum.accumulate(rough)
    lowest_above = np.minimum.accumulate(rough[::-1])[::-1]
    placed = []
    for threshold in layer.ladder.thresholds[0]:
        first = int(np.searchsorted(exact, threshold, side="left"))
        if first == len(exact):
            placed.append(G.NEVER)
        elif first and highest_below[first - 1] >= lowest_above[first]:
            return None
        else:
            placed.append(int(lowest_above[first]))
    return np.array([placed], np.int64)


def _sums(values: list[G.Integers]) -> G.Integers:
    total = values[0]
    for more in values[1:]:
        total = (total[:, None] + more[None, :]).reshape(-1)
    return total


def _replaced(
    layer: G.Layer, connections: tuple[G.Connection, ...], thresholds: G.Integers, bounds: tuple[int, int]
) -> G.Layer:
    assert layer.ladder is not None, "the caller looked"
    ladder = replace(layer.ladder, thresholds=thresholds)
    zero = np.zeros(1, np.int64)
    return replace(layer, connections=connections, ladder=ladder, bias=zero, bounds=bounds)
