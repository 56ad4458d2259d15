"""Bounds of accumulators that hold for every input and every order in which events arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import Connection, Conv, Dense, EventGraph, Integers, Layer, OneToOne, Shape, SumPool


def layer_bounds(graph: EventGraph, layer: Layer) -> tuple[Integers, Integers]:
    """Return least and largest accumulator per channel, the bias included: int64 [channels] each."""
    sources = [(graph.range(c.source), graph.shape(c.source)) for c in layer.connections]
    return bounds(layer.connections, sources, layer.bias, layer.channels)


def bounds(
    connections: Sequence[Connection],
    sources: Sequence[tuple[tuple[int, int], Shape]],
    bias: Integers,
    channels: int,
) -> tuple[Integers, Integers]:
    """Return the bounds of what connections add to a bias; `sources` are ranges of counts, and shapes."""
    low, high = bias + np.zeros(channels, np.int64), bias + np.zeros(channels, np.int64)
    for connection, (counts, shape) in zip(connections, sources, strict=True):
        least, most = _reach(connection, counts, shape, channels)
        low, high = low + least, high + most
    return low, high


def _reach(
    connection: Connection, counts: tuple[int, int], shape: Shape, channels: int
) -> tuple[Integers, Integers]:
    """Return the least and the largest sum over any of a connection's synapses, per channel."""
    low, high = counts
    if connection.values is not None:
        low, high = int(connection.values.min()), int(connection.values.max())
    low, high = min(low, 0), max(high, 0)
    synapses = connection.synapses
    if isinstance(synapses, Dense | Conv):
        w = synapses.weights.reshape(channels, -1).astype(np.int64)
        up, down = np.maximum(w, 0).sum(1), np.minimum(w, 0).sum(1)
        return up * low + down * high, up * high + down * low
    if isinstance(synapses, SumPool):
        taps = synapses.window.kernel[0] * synapses.window.kernel[1]
        return np.full(channels, low * taps), np.full(channels, high * taps)
    least, most = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    first = synapses.first if isinstance(synapses, OneToOne) else 0
    last = first + shape[0]
    least[first:last], most[first:last] = low, high
    return least, most
