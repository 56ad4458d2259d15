"""The golden integers: a network evaluated in NumPy, batched, every wire on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .graph import Conv, Dense, Ints, Layer, Mix, Move, Network, Pool, Requant


def simulate(network: Network, codes: Mapping[str, Ints]) -> dict[str, Ints]:
    """Return the integers of all wires, `[N, *shape]`, from those of the inputs."""
    found = dict(codes)
    for layer in network.layers:
        operands = [found[name] for name in layer.inputs]
        zeros = [network.wires[name].zero for name in layer.inputs]
        found[layer.output.name] = _RULES[type(layer)](layer, operands, zeros)
    return found


def _dense(layer: Layer, operands: list[Ints], zeros: list[int]) -> Ints:
    assert isinstance(layer, Dense)
    return np.asarray(_product(operands[0] - zeros[0], layer.weights.T), np.int64)


def _product(left: Ints, right: Ints) -> Ints:
    """Multiply integer matrices in float64, which is exact below 2^53: accumulators keep to 32 bits."""
    return np.rint(left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)


def windows(
    x: Ints, kernel: tuple[int, ...], how: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], fill: int
) -> Ints:
    """Return [N, C, *out, *kernel] of x [N, C, *size]; `how` is strides, pads, dilations."""
    strides, pads, dilations = how
    rank = len(kernel)
    edges = [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))]
    padded = np.pad(x, edges, constant_values=fill)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    picks = [slice(None), slice(None), *(slice(None, None, s) for s in strides)]
    return np.asarray(view[(*picks, *(slice(None, None, d) for d in dilations))])


def _conv(layer: Layer, operands: list[Ints], zeros: list[int]) -> Ints:
    assert isinstance(layer, Conv)
    kernel = tuple(int(n) for n in layer.weights.shape[2:])
    seen = windows(operands[0] - zeros[0], kernel, (layer.strides, layer.pads, layer.dilations), 0)
    group, rank = layer.group, len(kernel)
    n, channels, *rest = seen.shape
    out = rest[:rank]
    columns = np.moveaxis(seen.reshape(n, group, channels // group, *rest), 2, 2 + rank)
    flat = columns.reshape(n, group, int(np.prod(out)), -1)
    rows = layer.weights.reshape(group, layer.weights.shape[0] // group, -1)
    sums = _product(flat, np.swapaxes(rows, 1, 2))
    return np.swapaxes(sums, 2, 3).reshape(n, layer.weights.shape[0], *out)


def _pool(layer: Layer, operands: list[Ints], zeros: list[int]) -> Ints:
    assert isinstance(layer, Pool)
    q, rank = operands[0], len(layer.kernel)
    axes = tuple(range(-rank, 0))
    how = (layer.strides, layer.pads, (1,) * rank)
    if layer.kind == "max":
        return np.asarray(windows(q, layer.kernel, how, int(np.iinfo(np.int64).min)).max(axis=axes))
    return np.asarray(windows(q - zeros[0], layer.kernel, how, 0).sum(axis=axes))


def _mix(layer: Layer, operands: list[Ints], zeros: list[int]) -> Ints:
    assert isinstance(layer, Mix)
    parts = zip(layer.factors, operands, zeros, strict=True)
    return np.asarray(sum(factor * (q - zero) for factor, q, zero in parts), np.int64)


def _move(layer: Layer, operands: list[Ints], zeros: list[int]) -> Ints:
    assert isinstance(layer, Move)
    flat = np.concatenate([q.reshape(len(q), -1) for q in operands], axis=1)
    return flat[:, layer.order].reshape(-1, *layer.output.shape)


def _requant(layer: Layer, operands: list[Ints], zeros: list[int]) -> Ints:
    assert isinstance(layer, Requant)
    acc = operands[0]
    if layer.axis is None:
        counts = np.searchsorted(layer.thresholds[0], layer.sign[0] * acc, side="right")
    else:
        counts = np.empty(acc.shape, np.int64)
        for c, (row, sign) in enumerate(zip(layer.thresholds, layer.sign, strict=True)):
            counts[:, c] = np.searchsorted(row, sign * acc[:, c], side="right")
    return np.asarray(layer.start + layer.output.step * counts, np.int64)


_RULES: Mapping[type[Layer], Callable[[Layer, list[Ints], list[int]], Ints]] = {
    Dense: _dense,
    Conv: _conv,
    Pool: _pool,
    Mix: _mix,
    Move: _move,
    Requant: _requant,
}
