"""The pass `prune-datafree`: channels go without data, and the layer behind them takes their part over.

Unified Data-Free Compression (Bai et al. 2023, arXiv 2308.07209): what a damaged channel (pruned, or rounded
to few bits) says is assumed to be a linear combination of the other channels. With BatchNorm folded, so that
channel m is `w_m x + b_m`, and damaged rows `v_i`, `c_i`, the coefficients

    s_m = argmin |w_m - sum_i s_mi v_i|^2 + a1 (b_m - sum_i s_mi c_i)^2 + a2 |s_m - e_m|^2

have a closed form, `s = (V V' + a1 c c' + a2 I)^-1 (V w_m + a1 c b_m + a2 e_m)`, and input channel m of the
next layer is spread over the others: `U_i += s_mi U_m`. Channels that only lose bits keep `e_m`, themselves,
as what they are pulled towards; pruned ones are pulled towards nothing. Nonlinearities in between must be
positively homogeneous (Relu, pooling), or the pair is refused.

The paper takes Relu to be linear. Where `estimate-channels` noted what BatchNorm knows of the channels, the
same least squares are solved for what comes out of Relu instead: channels are normal with these means and
deviations, correlated as their weights are (`gaussian.py`), and the mean of what is lost goes into the next
layer's bias. `s = (K_vv + a2 I)^-1 (K_vw + a2 e_m)` with K the covariances of rectified channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..quantize.bias_correct import add_to_bias, refuse_bias
from ..quantize.pairs import Linear, Pair, bias_of, find_pairs
from .estimate_channels import channel_statistics
from .gaussian import Rectified, rectified
from .masks import choose, quota
from .weights import replace_constant

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

_LOYALTY = 1.0
"""a2 of channels that only lose bits: what Relu does to combinations costs more than their rounding."""


@dataclass(frozen=True)
class PruneDatafree:
    """Zero whole output channels without data and express what they did by the channels that stay.

    Lossy, edits pairs of layers of the main graph: the first loses output channels (weights and bias become
    zero), the second gets new weights for the others. Needs BatchNorm folded (`canonicalize`).

    Attributes:
        sparsity: share of the channels of each layer that go, 0 to 1; those with the smallest norm.
        bits: weights will be rounded to so many bits per channel afterwards (`quantize{bits=6}`): the next
            layer makes up for that too.
        repair: false only zeroes, to see what the repair is worth.
        bias_weight: a1, against the squared error of weights.
        damping: a2 of channels that go, relative to the mean squared norm of those that stay.
    """

    name: ClassVar[str] = "prune-datafree"
    effect: ClassVar[Effect] = Effect.LOSSY
    sparsity: float = 0.3
    bits: int | None = None
    repair: bool = True
    bias_weight: float = 1.0
    damping: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity <= 1.0:
            raise PipelineError(
                "prune-sparsity", f"prune-datafree: sparsity must be 0..1, got {self.sparsity:g}"
            )
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise PipelineError("prune-option", f"prune-datafree: bits must be 2..16, got {self.bits}")
        if self.damping <= 0 or self.bias_weight < 0:
            raise PipelineError(
                "prune-option",
                f"prune-datafree: damping must be above 0 and bias_weight at least 0, got {self.damping:g} "
                f"and {self.bias_weight:g}",
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; needs no data."""
        stats = PassStats()
        if self.sparsity == 0.0 and (self.bits is None or not self.repair):
            return stats
        known = channel_statistics(ctx)
        arriving: Arriving = {}
        gone = total = told = 0
        for pair in find_pairs(model, stats.refused):
            ctx.check_cancelled()
            if reason := _refuse(pair, ctx.exclude):
                stats.refused.append(Refusal(str(pair.first.node.name), reason))
                continue
            channels = _read(pair, known, arriving)
            count = quota(self.sparsity, pair.first.rows)
            stats.changed += self._compress(model, pair, channels, count)
            gone, total = gone + count, total + pair.first.rows
            told += channels.rectified is not None
        stats.details |= {"channels": total, "channels_pruned": gone, "layers_with_statistics": told}
        return stats

    def _compress(self, model: ir.Model, pair: Pair, channels: Channels, count: int) -> int:
        # Norms of zero come first, so that a second run finds the same channels.
        dead = choose(np.square(channels.rows).sum(axis=1), count, "layer")
        mix: Floats = np.diag((~dead).astype(np.float64))
        lost: Floats = np.zeros(len(dead))
        if self.repair:
            damaged = channels.rows if self.bits is None else rounded(channels.rows, self.bits)
            if channels.rectified is None:
                mix = linear(channels, damaged, dead, self.bias_weight, self.damping)
            else:
                shifts = refuse_bias(pair.second.node) is None
                mix, lost = rectifying(channels, damaged, dead, self.damping, shifts=shifts)
        after = pair.second.canonical()[0]
        changed = _store(model, pair.second, mixed(after, mix, pair.channel_of))
        change = after.sum(axis=2) @ lost[pair.channel_of]
        if np.any(change):
            add_to_bias(model, pair.second.node, change)
            changed = 1
        kept = pair.first.canonical()[0]
        kept[dead] = 0.0
        changed |= _store(model, pair.first, kept)
        if np.any(channels.bias[dead]):
            value = pair.first.node.inputs[2]
            assert value is not None, pair.first
            assert value.dtype is not None, value
            _replace(
                model, pair.first.node, 2, np.where(dead, 0.0, channels.bias).astype(value.dtype.numpy())
            )
            changed = 1
        return changed


Arriving = dict[ir.Node, tuple[Floats, Floats]]
"""Mean and variance of each input channel of a layer."""


@dataclass(frozen=True)
class Channels:
    """What is known of the output channels of a layer.

    Attributes:
        rows: `[channels, k]`.
        bias: `[channels]`.
        rectified: moments behind Relu, where BatchNorm told mean and deviation, else None.
        mean, deviation: `[channels]` before Relu; empty without statistics.
        input_mean, input_variance: `[k]`, of the inputs as far as known, else zeros and ones.
    """

    rows: Floats
    bias: Floats
    rectified: Rectified | None
    mean: Floats
    deviation: Floats
    input_mean: Floats
    input_variance: Floats


def _read(pair: Pair, known: Mapping[str, tuple[Floats, Floats]], arriving: Arriving) -> Channels:
    """Collect what is known; what is learned of the second layer's inputs goes into `arriving`."""
    first = pair.first
    grid = first.canonical()[0]
    present = bias_of(first.node)
    bias = np.zeros(first.rows) if present is None else np.broadcast_to(present.reshape(-1), first.rows)
    unknown = np.zeros(first.columns), np.ones(first.columns)
    inputs = [np.repeat(array, grid.shape[2]) for array in arriving.get(first.node, unknown)]
    mean, deviation = known.get(str(first.node.outputs[0].name), (np.zeros(0), np.zeros(0)))
    is_relu = bool(pair.between) and pair.between[0].op_type == "Relu"
    moments = rectified(mean, deviation) if is_relu and len(mean) == first.rows else None
    if moments is not None:
        variance = np.square(moments.rest) + np.square(moments.terms).sum(axis=0)
        arriving[pair.second.node] = moments.mean[pair.channel_of], variance[pair.channel_of]
    return Channels(grid.reshape(first.rows, -1), bias, moments, mean, deviation, *inputs)


def rectifying(
    channels: Channels, damaged: Floats, dead: Mask, damping: float, *, shifts: bool
) -> tuple[Floats, Floats]:
    """Return `S` as `linear` does, for what comes out of Relu, and the mean `[channels]` that S loses.

    Args:
        channels: with statistics.
        damaged: `[channels, k]` as they will be.
        dead: `[channels]`.
        damping: relative to the mean variance.
        shifts: the next layer's bias takes the mean; else S has to.
    """
    assert channels.rectified is not None, "asked for without statistics"
    spread = np.sqrt(channels.input_variance)
    scaled, broken = channels.rows * spread, damaged * spread
    norms = np.maximum(np.linalg.norm(scaled, axis=1), 1e-30)
    broken_norms = np.maximum(np.linalg.norm(broken, axis=1), 1e-30)
    moved = channels.mean + (damaged - channels.rows) @ channels.input_mean
    after = rectified(moved, channels.deviation * broken_norms / norms)
    among = after.covariance(after, (broken @ broken.T) / np.outer(broken_norms, broken_norms))
    across = channels.rectified.covariance(after, (scaled @ broken.T) / np.outer(norms, broken_norms))
    if not shifts:
        among = among + np.outer(after.mean, after.mean)
        across = across + np.outer(channels.rectified.mean, after.mean)
    mix = _solve(among, across, dead, damping, whole=np.array_equal(damaged, channels.rows))
    lost: Floats = channels.rectified.mean - mix @ after.mean if shifts else np.zeros(len(dead))
    return mix, lost


def linear(channels: Channels, damaged: Floats, dead: Mask, bias_weight: float, damping: float) -> Floats:
    """Return `S` `[channels, channels]`: channel m is taken to be `sum_i S_mi * (damaged channel i)`.

    Args:
        channels: as they were.
        damaged: `[channels, k]` as they will be; rows of dead channels are ignored.
        dead: `[channels]`; their columns of S are zero.
        bias_weight: a1.
        damping: a2, relative to the mean of `|v_i|^2 + a1 c_i^2`.
    """
    bias = np.sqrt(bias_weight) * channels.bias
    v, w = np.column_stack([damaged, bias]), np.column_stack([channels.rows, bias])
    return _solve(v @ v.T, w @ v.T, dead, damping, whole=np.array_equal(damaged, channels.rows))


def _solve(among: Floats, across: Floats, dead: Mask, damping: float, *, whole: bool) -> Floats:
    """Least squares over the living channels; whole ones stand for themselves.

    Args:
        among: `[channels, channels]`, second moments of the damaged channels.
        across: `[channels, channels]`, of the channels (rows) with the damaged ones.
        dead: `[channels]`.
        damping: relative to the mean of the diagonal.
        whole: channels that live are not damaged.
    """
    alive = np.flatnonzero(~dead)
    mix = np.zeros(among.shape)
    if not len(alive):
        return mix
    wanted = np.flatnonzero(dead) if whole else np.arange(len(dead))
    if whole:
        mix[alive, alive] = 1.0
    pull = (wanted[:, None] == alive).astype(np.float64)
    system = among[np.ix_(alive, alive)]
    size = max(float(np.diag(system).mean()), 1e-30)
    for rows, ridge in ((dead[wanted], damping * size), (~dead[wanted], _LOYALTY * size)):
        right = across[np.ix_(wanted[rows], alive)] + ridge * pull[rows]
        mix[np.ix_(wanted[rows], alive)] = np.linalg.solve(system + ridge * np.eye(len(alive)), right.T).T
    return mix


def rounded(rows: Floats, bits: int) -> Floats:
    """Symmetric rounding with a scale per channel, as `quantize` does it."""
    top = 2 ** (bits - 1) - 1
    peak = np.abs(rows).max(axis=1, keepdims=True)
    scale = np.where(peak > 0, peak / top, 1.0)
    nearest: Floats = np.rint(rows / scale) * scale
    return nearest


def mixed(weight: Floats, mix: Floats, channel_of: npt.NDArray[np.int64]) -> Floats:
    """Spread input channels `[rows, columns, kernel]`; flattened positions of a channel stay apart."""
    channels = len(mix)
    columns = np.argsort(channel_of, kind="stable").reshape(channels, -1)
    parts = weight[:, columns]  # rows, channels, positions, kernel
    spread: Floats = np.empty_like(weight)
    spread[:, columns] = np.einsum("rmpk,mi->ripk", parts, mix)
    return spread


def _refuse(pair: Pair, exclude: tuple[str, ...]) -> str | None:
    for layer in (pair.first, pair.second):
        if layer.groups > 1:
            return f"{layer.node.op_type} {layer.node.name!r} has groups: channels cannot replace each other"
        if layer.node.op_type == "ConvTranspose":
            return f"ConvTranspose {layer.node.name!r} is not rewritten"
        if excluded_by(str(layer.node.name), exclude):
            return f"{layer.node.name!r} is excluded by name"
    arithmetic = [node for node in pair.between if node.op_type in ("Add", "Sub", "Mul", "PRelu")]
    if arithmetic:
        return f"{arithmetic[0].op_type} {arithmetic[0].name!r} in between has constants per channel"
    sizes = Counter(pair.channel_of.tolist())
    if len(sizes) != pair.first.rows or len(set(sizes.values())) != 1:
        return "channels do not arrive in equal parts"
    return None


def _store(model: ir.Model, layer: Linear, canonical: Floats) -> int:
    """Store `[rows, columns, kernel]` as the layer's weight; 0 when that changes nothing."""
    old = walk.constant(layer.node.inputs[1])
    assert old is not None, layer
    new = canonical
    if layer.node.op_type != "Conv":
        new = new[:, :, 0] if walk.int_attribute(layer.node, "transB", 0) else new[:, :, 0].T
    array = np.ascontiguousarray(new).reshape(old.shape).astype(old.dtype)
    if np.array_equal(array, old):
        return 0
    _replace(model, layer.node, 1, array)
    value = layer.node.inputs[1]
    assert value is not None, layer
    layer.weight = value
    return 1


def _replace(model: ir.Model, node: ir.Node, index: int, array: npt.NDArray[np.generic]) -> None:
    value = node.inputs[index]
    assert value is not None, node
    if len(value.uses()) > 1:
        assert isinstance(node.graph, ir.Graph), node
        name = walk.unique_name(model, f"{value.name}_own")
        node.replace_input_with(index, walk.add_initializer(node.graph, name, array))
    else:
        replace_constant(model, value, array)
