"""Activation-aware equalization: channels of a value get ranges that one scale serves, at the weights' cost.

For two linear layers joined by a positively homogeneous operator, dividing output channel c of the first by
s_c and multiplying input channel c of the second by s_c changes nothing in real arithmetic. Between dense
layers s_c = r_c^a / w_c^(1-a) shares the difficulty between activation ranges r and weight ranges w
(SmoothQuant, arXiv 2211.10438 eq. 4, here for convolutions too); a depthwise layer has a weight scale of its
own for every channel, so there s_c = r_c makes all channels equal for nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError, PipelineError
from ...compiler.ir import scaled, walk
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context, Effect, PassStats
from .pairs import Pair, find_pairs

Floats: TypeAlias = npt.NDArray[np.floating]

# Factors beyond this say that a channel is nearly dead, not that it needs more resolution.
_LIMIT = 2.0**6


@dataclass(frozen=True)
class Balance:
    """Balance activation ranges between channels with the help of calibration data.

    Reorders: the function stays, weights are rounded once more. Values between the layers are scaled, so
    they get the suffix `_equalized`; the attachment `scaled_values.json` leads back to the original's.

    Attributes:
        strength: the exponent a: 0 looks at weights only, 1 at activations only.
        samples: calibration samples used at most.
    """

    name: ClassVar[str] = "balance"
    effect: ClassVar[Effect] = Effect.REORDERS
    strength: float = 0.5
    samples: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0 or self.samples < 1:
            raise PipelineError(
                "balance-option", f"strength {self.strength} must be 0..1, samples {self.samples} positive"
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; raises `DataError` without calibration samples."""
        if ctx.calibration is None or len(ctx.calibration) == 0:
            raise DataError(
                "calibration-missing", "balance needs representative inputs", "give calibration data"
            )
        stats = PassStats()
        pairs = [pair for pair in find_pairs(model, stats.refused) if pair.first.node.graph is model.graph]
        if not pairs:
            return stats
        ranges = channel_ranges(model, pairs, ctx.calibration.head(self.samples), ctx)
        scales = [self._factor(pair, found) for pair, found in zip(pairs, ranges, strict=True)]
        for pair, scale in zip(pairs, scales, strict=True):
            pair.scale(scale)
        between: dict[str, scaled.Scaled] = {}
        for pair, scale in zip(pairs, scales, strict=True):
            between |= pair.rewrite_between(model, scale)
        for layer in {layer.node: layer for pair in pairs for layer in (pair.first, pair.second)}.values():
            layer.rewrite(model)
        stats.changed = len(pairs)
        stats.attachments[scaled.FILE] = scaled.write_scaled(ctx.attachments.get(scaled.FILE), between)
        stats.details["pairs_balanced"] = len(pairs)
        return stats

    def _factor(self, pair: Pair, activation: Floats) -> Floats:
        """Return s per output channel of the first layer, with geometric mean 1; 1 where a range is 0."""
        weight = np.zeros(pair.first.rows)
        np.maximum.at(weight, pair.channel_of, pair.second.column_ranges())
        usable = (activation > 0) & np.isfinite(activation) & (weight > 0)
        if not usable.any():
            return np.ones(pair.first.rows)
        r, w = np.where(usable, activation, 1.0), np.where(usable, weight, 1.0)
        depthwise = 1 < pair.second.groups == pair.second.columns
        factor = r if depthwise else r**self.strength / w ** (1.0 - self.strength)
        factor = factor / np.exp(np.log(factor[usable]).mean())
        return np.asarray(np.where(usable, np.clip(factor, 1 / _LIMIT, _LIMIT), 1.0))


def channel_ranges(model: ir.Model, pairs: Sequence[Pair], samples: Samples, ctx: Context) -> list[Floats]:
    """Return for each pair the largest magnitude per channel of what the first layer hands on."""
    probe = model.clone()
    values = {value.name: value for value in walk.values_of(probe.graph)}
    probe.graph.outputs.clear()
    names = [_reductions(probe.graph, values[_handed_on(pair).name], pair) for pair in pairs]
    session = make_session(probe)
    found: list[Floats] = [np.zeros(pair.first.rows) for pair in pairs]
    for batch in samples.batches(1):
        ctx.check_cancelled()
        results = run_session(session, batch, list(itertools.chain.from_iterable(names)))
        for index, (low, high) in enumerate(names):
            size = np.maximum(np.abs(results[low]), np.abs(results[high]))
            found[index] = np.maximum(found[index], size)
    return found


def _handed_on(pair: Pair) -> ir.Value:
    """Return the value behind the activation function, which is what gets quantized."""
    activations = [node for node in pair.between if node.op_type in ("Relu", "Clip", "LeakyRelu", "PRelu")]
    return (activations[-1] if activations else pair.first.node).outputs[0]


def _reductions(graph: ir.Graph, value: ir.Value, pair: Pair) -> tuple[str, str]:
    """Add extremes per channel as outputs; returns their names."""
    assert value.shape is not None, f"{value.name}: pairs have known shapes"
    rank = len(value.shape)
    channel = 1 if pair.first.node.op_type.startswith("Conv") else rank - 1
    base = f"{value.name}_axes"
    axes = np.array([axis for axis in range(rank) if axis != channel], np.int64)
    constant = walk.add_initializer(graph, walk.unique_name(graph, base), axes)
    names = []
    for op in ("ReduceMin", "ReduceMax"):
        name = walk.unique_name(graph, f"{value.name}_{op}")
        node = ir.node(op, [value, constant], {"keepdims": 0}, name=name)
        node.outputs[0].name, node.outputs[0].type = name, value.type
        node.outputs[0].shape = ir.Shape([value.shape[channel]])
        graph.append(node)
        graph.outputs.append(node.outputs[0])
        names.append(name)
    return names[0], names[1]
