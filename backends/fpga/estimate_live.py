"""Which values of a network vary and are read: the others cost nothing, synthesis drops them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .graph import Conv, Dense, Ints, Layer, Move, Network, Pool, Requant

Mask = npt.NDArray[np.bool_]


def live_values(network: Network) -> dict[str, Mask]:
    """Return, per wire, a mask of its shape: the value varies with the input and something reads it.

    Within a channel of a convolution all places are taken as one.
    """
    varies = {wire.name: np.ones(wire.shape, bool) for wire in network.inputs}
    for layer in network.layers:
        varies[layer.output.name] = _forward(layer, network, varies)
    needed = {name: np.zeros(mask.shape, bool) for name, mask in varies.items()}
    for name in network.outputs:
        needed[name][...] = True
    for layer in reversed(network.layers):
        out = needed[layer.output.name] & varies[layer.output.name]
        for index, name in enumerate(layer.inputs):
            needed[name] |= _backward(layer, network, out, index)
    return {name: mask & needed[name] for name, mask in varies.items()}


def live_weights(layer: Dense | Conv, live: Mapping[str, Mask]) -> Ints:
    """Return the weights with those of dead inputs and outputs zero."""
    before, after = live[layer.inputs[0]], live[layer.output.name]
    if isinstance(layer, Dense):
        return np.asarray(layer.weights * after[:, None] * before[None, :])
    spread = (slice(None), *[None] * (layer.weights.ndim - 1))
    weights = layer.weights * _channels(after)[spread]
    return np.asarray(weights * _of_groups(layer, _channels(before)))


def _forward(layer: Layer, network: Network, varies: Mapping[str, Mask]) -> Mask:
    inside = [varies[name] for name in layer.inputs]
    if isinstance(layer, Dense):
        return np.asarray((layer.weights != 0) @ inside[0])
    if isinstance(layer, Conv):
        used = (layer.weights != 0) & _of_groups(layer, _channels(inside[0]))
        return _placed(used.reshape(len(used), -1).any(axis=1), layer.output.shape)
    if isinstance(layer, Pool):
        return _placed(_channels(inside[0]), layer.output.shape)
    if isinstance(layer, Move):
        flat = np.concatenate([mask.reshape(-1) for mask in inside])
        return np.asarray(flat[layer.order].reshape(layer.output.shape))
    if isinstance(layer, Requant):
        return np.asarray(inside[0].reshape(layer.output.shape) & _crosses(layer, network))
    return np.asarray(np.logical_or.reduce(inside))


def _crosses(layer: Requant, network: Network) -> Mask:
    """Say which values can reach a threshold and can also stay below it."""
    wire = network.wires[layer.inputs[0]]
    low, high = (np.broadcast_to(bound, wire.shape) for bound in (wire.low, wire.high))
    axis = layer.axis or 0
    found = np.zeros(wire.shape, bool)
    for channel, (row, sign) in enumerate(zip(layer.thresholds, layer.sign, strict=True)):
        there: tuple[slice | int, ...] = (slice(None),) * axis + (channel,)
        at = there if layer.axis is not None else (...,)
        ends = (low[at], high[at]) if sign > 0 else (-high[at], -low[at])
        counts = [np.searchsorted(row, end, side="right") for end in ends]
        found[at] = counts[0] < counts[1]
    return found.reshape(layer.output.shape)


def _backward(layer: Layer, network: Network, out: Mask, index: int) -> Mask:
    shape = network.wires[layer.inputs[index]].shape
    if isinstance(layer, Dense):
        return np.asarray((layer.weights != 0).T @ out)
    if isinstance(layer, Conv):
        rows = _channels(out)[(slice(None), *[None] * (layer.weights.ndim - 1))]
        used = ((layer.weights != 0) & rows).reshape(layer.group, -1, *layer.weights.shape[1:])
        axes = (1, *range(3, used.ndim))
        return _placed(used.any(axis=axes).reshape(-1), shape)
    if isinstance(layer, Pool):
        return _placed(_channels(out), shape)
    if isinstance(layer, Move):
        sizes = [int(np.prod(network.wires[name].shape, dtype=np.int64)) for name in layer.inputs]
        flat = np.zeros(sum(sizes), bool)
        flat[layer.order[out.reshape(-1)]] = True
        return np.asarray(np.split(flat, np.cumsum(sizes)[:-1])[index].reshape(shape))
    return out.reshape(shape)


def _channels(mask: Mask) -> Mask:
    return np.asarray(mask.reshape(len(mask), -1).any(axis=1))


def _placed(channels: Mask, shape: tuple[int, ...]) -> Mask:
    return np.array(np.broadcast_to(channels.reshape(-1, *[1] * (len(shape) - 1)), shape))


def _of_groups(layer: Conv, channels: Mask) -> Mask:
    """Return a mask [out, in / group, 1...] of a convolution's input channels."""
    depth, share = layer.weights.shape[1], len(layer.weights) // layer.group
    rows = np.repeat(channels.reshape(layer.group, depth), share, axis=0)
    return np.asarray(rows.reshape(*rows.shape, *[1] * (layer.weights.ndim - 2)))


def with_live_weights(layer: Layer, live: Mapping[str, Mask]) -> Layer:
    """Return a layer without what is dead."""
    return replace(layer, weights=live_weights(layer, live)) if isinstance(layer, Dense | Conv) else layer
