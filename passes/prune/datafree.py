"""The pass `prune-datafree`: channels go without data, and the layer behind them takes their part over.

Unified Data-Free Compression (Bai et al. 2023, arXiv 2308.07209): what a damaged channel (pruned, or rounded
to few bits) says is assumed to be a linear combination of the other channels. With BatchNorm folded, so that
channel m is `w_m x + b_m`, and damaged rows `v_i`, `c_i`, the coefficients

    s_m = argmin |w_m - sum_i s_mi v_i|^2 + a1 (b_m - sum_i s_mi c_i)^2 + a2 |s_m - e_m|^2

have a closed form, `s = (V V' + a1 c c' + a2 I)^-1 (V w_m + a1 c b_m + a2 e_m)`, and input channel m of the
next layer is spread over the others: `U_i += s_mi U_m`. Channels that only lose bits keep `e_m`, themselves,
as what they are pulled towards; pruned ones are pulled towards nothing. Nonlinearities in between are taken
to be linear, as in the paper; they must be positively homogeneous (Relu, pooling), or the pair is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..quantize.pairs import Linear, Pair, bias_of, find_pairs
from .masks import choose, quota
from .weights import replace_constant

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


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
        damping: a2, relative to the mean squared norm of the channels.
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
        reasons: list[Refusal] = []
        gone = total = 0
        for pair in find_pairs(model, reasons):
            ctx.check_cancelled()
            if reason := _refuse(pair, ctx.exclude):
                reasons.append(Refusal(str(pair.first.node.name), reason))
                continue
            count = quota(self.sparsity, pair.first.rows)
            gone, total = gone + count, total + pair.first.rows
            stats.changed += self._compress(model, pair, count)
        stats.refused += reasons
        stats.details |= {"layers": stats.changed, "channels": total, "channels_pruned": gone}
        return stats

    def _compress(self, model: ir.Model, pair: Pair, count: int) -> int:
        rows = pair.first.canonical()[0].reshape(pair.first.rows, -1)
        present = bias_of(pair.first.node)
        bias = np.zeros(len(rows)) if present is None else np.broadcast_to(present.reshape(-1), len(rows))
        # Norms of zero come first, so that a second run finds the same channels.
        dead = choose(np.square(rows).sum(axis=1), count, "layer")
        after = pair.second.canonical()[0]
        changed = 0
        if self.repair:
            damaged = rows if self.bits is None else rounded(rows, self.bits)
            mix = coefficients(rows, bias, damaged, dead, self.bias_weight, self.damping)
            if not np.array_equal(mix, np.eye(len(mix))):
                changed = _store(model, pair.second, _mixed(after, mix, pair.channel_of))
        elif dead.any():
            changed = _store(
                model, pair.second, _mixed(after, np.diag(~dead).astype(np.float64), pair.channel_of)
            )
        if np.any(rows[dead]) or np.any(bias[dead]):
            kept = pair.first.canonical()
            kept[0][dead] = 0.0
            changed = _store(model, pair.first, kept[0])
            if present is not None:
                value = pair.first.node.inputs[2]
                assert value is not None, pair.first
                zeroed = np.where(dead, 0.0, bias).astype(value.dtype.numpy() if value.dtype else np.float32)
                _replace(model, pair.first.node, 2, zeroed)
        return changed


def coefficients(
    rows: Floats, bias: Floats, damaged: Floats, dead: Mask, bias_weight: float, damping: float
) -> Floats:
    """Return `S` `[channels, channels]`: channel m is taken to be `sum_i S_mi * (damaged channel i)`.

    Args:
        rows: `[channels, k]` as they were.
        bias: `[channels]`.
        damaged: `[channels, k]` as they will be; rows of dead channels are ignored.
        dead: `[channels]`; their columns of S are zero.
        bias_weight: a1.
        damping: a2, relative to the mean of `|v_i|^2 + a1 c_i^2`.
    """
    alive = np.flatnonzero(~dead)
    mix = np.zeros((len(rows), len(rows)))
    if not len(alive):
        return mix
    if np.array_equal(damaged[alive], rows[alive]):
        wanted = np.flatnonzero(dead)  # whole channels stand for themselves
        mix[alive, alive] = 1.0
    else:
        wanted = np.arange(len(rows))
    v = np.column_stack([damaged[alive], np.sqrt(bias_weight) * bias[alive]])
    w = np.column_stack([rows[wanted], np.sqrt(bias_weight) * bias[wanted]])
    gram = v @ v.T
    ridge = damping * max(float(np.diag(gram).mean()), 1e-30)
    pull = (wanted[:, None] == alive).astype(np.float64)
    system = gram + ridge * np.eye(len(alive))
    mix[np.ix_(wanted, alive)] = np.linalg.solve(system, (w @ v.T + ridge * pull).T).T
    return mix


def rounded(rows: Floats, bits: int) -> Floats:
    """Symmetric rounding with a scale per channel, as `quantize` does it."""
    top = 2 ** (bits - 1) - 1
    peak = np.abs(rows).max(axis=1, keepdims=True)
    scale = np.where(peak > 0, peak / top, 1.0)
    nearest: Floats = np.rint(rows / scale) * scale
    return nearest


def _mixed(weight: Floats, mix: Floats, channel_of: npt.NDArray[np.int64]) -> Floats:
    """Spread input channels `[rows, columns, kernel]`; flattened positions of a channel stay apart."""
    channels = len(mix)
    columns = np.argsort(channel_of, kind="stable").reshape(channels, -1)
    parts = weight[:, columns]  # rows, channels, positions, kernel
    mixed: Floats = np.empty_like(weight)
    mixed[:, columns] = np.einsum("rmpk,mi->ripk", parts, mix)
    return mixed


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
    """Store `[rows, columns, kernel]` as the layer's weight."""
    old = walk.constant(layer.node.inputs[1])
    assert old is not None, layer
    new = canonical
    if layer.node.op_type != "Conv":
        new = new[:, :, 0] if walk.int_attribute(layer.node, "transB", 0) else new[:, :, 0].T
    _replace(model, layer.node, 1, np.ascontiguousarray(new).reshape(old.shape).astype(old.dtype))
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
