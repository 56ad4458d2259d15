"""The pass `renormalize`: mean and variance of every channel become the original's again.

Pruning shrinks what layers put out, and BatchNorm statistics that were learned before no longer fit.
Where a BatchNormalization node is still there, its statistics are taken anew on calibration data; where it
was folded into the layer, the row of the layer is scaled by the quotient of standard deviations and its bias
moved, which is the same in folded form. Depth by depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import PipelineError
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..quantize.bias_correct import add_to_bias, channel_means, refuse_bias
from ..quantize.pairs import bias_of
from .repair import need_original, need_samples
from .weights import Weight, find_weights, replace_constant, store

Floats = npt.NDArray[np.floating]

_LIMIT = 4.0
"""A channel whose deviation changed by more than this has too little left to scale."""
_ABSENT = 1e-5
"""Deviations below this share of the layer's largest are dead channels."""


@dataclass(frozen=True)
class Renormalize:
    """Restore mean and variance per channel behind Conv and Gemm, in BatchNorm nodes or in folded form.

    Lossy, edits the main graph; needs calibration data and a lossy pass before it.

    Attributes:
        samples: calibration samples used at most.
    """

    name: ClassVar[str] = "renormalize"
    effect: ClassVar[Effect] = Effect.LOSSY
    samples: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise PipelineError("repair-option", f"renormalize: samples must be positive, got {self.samples}")

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; raises `DataError` or `PipelineError` when something is missing."""
        stats = PassStats()
        original = need_original(ctx, "renormalize")
        samples = need_samples(ctx, "renormalize").head(self.samples)
        layers = _layers(model, original, ctx, stats)
        wanted = _deviations(original, [layer.value for layer in layers], samples, ctx)
        for depth in sorted({layer.depth for layer in layers}):
            level = [layer for layer in layers if layer.depth == depth]
            found = _deviations(model, [layer.value for layer in level], samples, ctx)
            for layer in level:
                stats.changed += _restore(model, layer, found[layer.value], wanted[layer.value])
        stats.details["channels_restored_in_layers"] = stats.changed
        return stats


@dataclass(frozen=True)
class _Layer:
    """A layer, the value whose channels are compared, and the BatchNormalization behind the layer if any."""

    weight: Weight
    norm: ir.Node | None
    value: str
    depth: int


def _layers(model: ir.Model, original: ir.Model, ctx: Context, stats: PassStats) -> list[_Layer]:
    targets = {value.name for value in walk.values_of(original.graph)}
    weights = {w.uses[0].node: w for w in find_weights(model, stats.refused, ctx.exclude)}
    depths: dict[ir.Value, int] = {}
    found: list[_Layer] = []
    for node in model.graph:
        depth = max((depths.get(v, 0) for v in node.inputs if v is not None), default=0)
        weight = weights.get(node)
        for output in node.outputs:
            depths[output] = depth + (weight is not None)
        if weight is None or node.op_type not in ("Conv", "Gemm"):
            continue
        reason = refuse_bias(node) or (
            f"weight {weight.value.name!r} is shared" if len(weight.uses) > 1 else None
        )
        if node.outputs[0].name not in targets:
            reason = f"the original has no value {node.outputs[0].name!r}"
        if reason:
            stats.refused.append(Refusal(str(node.name), reason))
            continue
        after = walk.only_user(node.outputs[0])
        norm = after if after is not None and after.op_type == "BatchNormalization" else None
        found.append(_Layer(weight, norm, str(node.outputs[0].name), depth))
    return found


Deviation = tuple[Floats, Floats]


def _deviations(
    model: ir.Model, values: Sequence[str], samples: Samples, ctx: Context
) -> dict[str, Deviation]:
    """Return mean and standard deviation per channel over samples and positions."""
    squared = model.clone()
    by_name = {value.name: value for value in walk.values_of(squared.graph)}
    squares: dict[str, str] = {}
    for name in values:
        value = by_name[name]
        node = ir.node("Mul", [value, value], name=walk.unique_name(squared, f"{name}_squared"))
        node.outputs[0].name, node.outputs[0].type = str(node.name) + "_value", value.type
        node.outputs[0].shape = value.shape
        squared.graph.append(node)
        squares[name] = str(node.outputs[0].name)
    means = channel_means(squared, [*values, *squares.values()], samples, ctx)
    return {
        name: (means[name], np.sqrt(np.maximum(means[squares[name]] - means[name] ** 2, 0.0)))
        for name in values
    }


def _restore(model: ir.Model, layer: _Layer, found: Deviation, wanted: Deviation) -> int:
    if np.allclose(found[0], wanted[0], rtol=0, atol=1e-6) and np.allclose(found[1], wanted[1], rtol=1e-6):
        return 0
    if layer.norm is not None:
        return _reestimate(model, layer.norm, found, wanted)
    alive = (found[1] > _ABSENT * found[1].max(initial=0.0)) & (wanted[1] > 0)
    factor = np.where(alive, wanted[1] / np.where(alive, found[1], 1.0), 1.0)
    factor = np.clip(factor, 1 / _LIMIT, _LIMIT)
    node = layer.weight.uses[0].node
    matrix = layer.weight.matrix()
    store(model, layer.weight, matrix * factor.reshape(*matrix.shape[:2], 1))
    bias = bias_of(node)
    old = np.zeros(len(factor)) if bias is None else bias.reshape(-1)
    # y = W x + b has the mean found; f (y - found) + wanted has the wanted one.
    add_to_bias(model, node, factor * (old - found[0]) + wanted[0] - old)
    return 1


def _reestimate(model: ir.Model, norm: ir.Node, found: Deviation, wanted: Deviation) -> int:
    """Move the statistics as far as what flows in has moved since the original."""
    mean, variance = (walk.constant(norm.inputs[index]) for index in (3, 4))
    if mean is None or variance is None:
        return 0
    quotient = np.clip(found[1] / np.maximum(wanted[1], 1e-12), 1 / _LIMIT, _LIMIT)
    # The learned statistics may differ from those of the calibration data: the difference stays.
    moved = found[0] + quotient * (mean.astype(np.float64) - wanted[0])
    for index, array, new in ((3, mean, moved), (4, variance, variance.astype(np.float64) * quotient**2)):
        value = norm.inputs[index]
        assert value is not None, norm
        replace_constant(model, value, new.astype(array.dtype))
    return 1
