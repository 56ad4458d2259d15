"""Runs event graphs in NumPy: what the engine and the modes are checked with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...compiler.backend import Array
from ...compiler.ops.quant import ROUNDINGS
from .graph import Connection, Conv, Dense, EventGraph, Input, Integers, Layer, MaxPool, SumPool, Window
from .ladders import climb

Counts = dict[str, Integers]
Floating: TypeAlias = npt.NDArray[np.floating]


def graded(graph: EventGraph, inputs: Mapping[str, Array]) -> Counts:
    """Return the counts of every population, and the accumulators of readouts: int64 [samples, *shape].

    Args:
        graph: any.
        inputs: by the names of the graph's inputs, [samples, ...].
    """
    counts = {entry.population: encode(entry, inputs[entry.name]) for entry in graph.inputs}
    for layer in graph.layers:
        total = accumulate(graph, layer, counts)
        counts[layer.name] = total if layer.ladder is None else climb(layer.ladder, total)
    return counts


def encode(entry: Input, array: Array) -> Integers:
    """Return the counts of an input, quantized as the model says: int64 [samples, *shape]."""
    x = np.asarray(array)
    if entry.axes:
        x = x.reshape(-1, *entry.fed).transpose(0, *(axis + 1 for axis in entry.axes))
    x = x.reshape(-1, *entry.shape)
    if entry.scale is None:
        return x.astype(np.int64) - entry.zero
    steps = x.astype(np.float32) / np.float32(entry.scale)
    if entry.by_quant:
        ends = np.float32(entry.low + entry.zero), np.float32(entry.high + entry.zero)
        limited = np.clip(steps + np.float32(entry.zero), *ends)
        return ROUNDINGS["ROUND"](limited).astype(np.int64) - entry.zero
    steps = np.nan_to_num(steps, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.asarray(np.clip(np.rint(steps), entry.low, entry.high), np.int64)


def accumulate(graph: EventGraph, layer: Layer, counts: Mapping[str, Integers]) -> Integers:
    """Return a layer's accumulators from the settled counts of what feeds it: int64 [samples, *shape]."""
    samples = len(counts[layer.connections[0].source])
    total = np.zeros((samples, *layer.shape), np.int64)
    total += layer.bias.reshape(-1, *[1] * (len(layer.shape) - 1))
    for connection in layer.connections:
        low = graph.range(connection.source)[0]
        add(total, connection, values_of(connection, counts[connection.source], low))
    return total


def values_of(connection: Connection, counts: Integers, low: int) -> Integers:
    """Return what counts stand for at a connection."""
    return counts if connection.values is None else connection.values[counts - low]


def add(total: Integers, connection: Connection, values: Integers) -> None:
    """Add what values of a source, or changes of them, cause, in place; MaxPool needs all values at once."""
    synapses = connection.synapses
    samples = len(total)
    if isinstance(synapses, Dense):
        total += _exact_product(values.reshape(samples, -1), synapses.weights)
    elif isinstance(synapses, Conv):
        total += _convolve(values.reshape(samples, -1, *values.shape[-2:]), synapses, total.shape)
    elif isinstance(synapses, SumPool):
        for tap in _taps(values, synapses.window, total.shape[-2:], 0):
            total += np.asarray(tap, np.int64)
    elif isinstance(synapses, MaxPool):
        taps = _taps(values, synapses.window, total.shape[-2:], np.iinfo(np.int64).min)
        total += np.max(np.stack(list(taps)), axis=0)
    else:
        channels = values.shape[1]
        total[:, synapses.first : synapses.first + channels] += values.reshape(
            samples, channels, *total.shape[2:]
        )


def _exact_type(values: Integers, weights: Array) -> type[np.float32 | np.float64]:
    """Return a float type in which the sums are exact; the reader bounds them to 32 bits."""
    sums = np.abs(weights.reshape(len(weights), -1)).sum(axis=1).max(initial=0)
    most = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    return np.float32 if int(sums) * most < 2**24 else np.float64


def _exact_product(values: Integers, weights: Array) -> Integers:
    real = _exact_type(values, weights)
    return np.asarray(values.astype(real) @ weights.T.astype(real), np.int64)


def _convolve(x: Integers, synapses: Conv, shape: tuple[int, ...]) -> Integers:
    samples, outputs = shape[0], shape[1]
    groups, per_group = synapses.groups, outputs // synapses.groups
    real = _exact_type(x, synapses.weights)
    w: Floating = synapses.weights.reshape(groups, per_group, -1, *synapses.window.kernel).astype(real)
    total = np.zeros((samples, groups, per_group, shape[2] * shape[3]), real)
    for index, tap in enumerate(_taps(x, synapses.window, shape[-2:], 0)):
        row, column = divmod(index, synapses.window.kernel[1])
        split: Floating = tap.reshape(samples, groups, -1, shape[2] * shape[3]).astype(real)
        total += _per_group(w[..., row, column], split)
    return np.asarray(total.reshape(shape), np.int64)


def _per_group(w: Floating, x: Floating) -> Floating:
    """Multiply [groups, outputs, inputs] with [samples, groups, inputs, pixels]."""
    if w.shape[1:] == (1, 1):  # depthwise
        return w * x
    return np.asarray(np.matmul(w, x), x.dtype)


def _taps(x: Array, window: Window, out: tuple[int, ...], fill: float) -> list[Array]:
    """Return what each kernel position sees, [samples, channels, *out] each."""
    top, left, bottom, right = window.pads
    widths = [(0, 0), (0, 0), (top, bottom), (left, right)]
    padded = np.pad(x, widths, constant_values=np.asarray(fill).astype(x.dtype))
    seen = []
    for row in range(window.kernel[0]):
        for column in range(window.kernel[1]):
            y, z = row * window.dilations[0], column * window.dilations[1]
            ends = y + (out[0] - 1) * window.strides[0] + 1, z + (out[1] - 1) * window.strides[1] + 1
            seen.append(padded[:, :, y : ends[0] : window.strides[0], z : ends[1] : window.strides[1]])
    return seen


def reals(graph: EventGraph, counts: Mapping[str, Integers]) -> dict[str, Array]:
    """Return the graph's outputs as the model spells them: [samples, *shape]."""
    results: dict[str, Array] = {}
    for output in graph.outputs:
        layer, found = graph.layer(output.layer), counts[output.layer]
        shape = (len(found), *output.shape)
        if output.dtype != "FLOAT":
            results[output.name] = (found + output.zero).astype(output.dtype.lower()).reshape(shape)
            continue
        spread = [-1, *[1] * (len(layer.shape) - 1)]
        scale, offset = layer.scale.reshape(spread), layer.offset.reshape(spread)
        real = np.asarray(found * scale + offset, np.float32).reshape(shape)
        results[output.name] = _softmax(real) if output.softmax else real
    return results


def _softmax(x: Array) -> Array:
    """Return the Softmax over the last axis, computed in float64 and rounded once."""
    powers = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
