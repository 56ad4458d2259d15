"""The pass `prune-channels`: channels, neurons, hidden units and attention heads leave the graph for good."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ...compiler.errors import DataError, PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir.stats import count
from ...compiler.ir.walk import node_label
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .channels_cut import cut, keeping, rename_cut
from .channels_fit import fit
from .channels_graph import Graph, Mask, Units, solve
from .channels_rules import propagate
from .channels_score import NEEDS_DATA, Criterion, score
from .channels_select import Family, Level, choose, families

REPORT = "channels.json"


@dataclass(frozen=True)
class PruneChannels:
    """Remove the channels that matter least, with everything that depends on them.

    Lossy, edits the main graph, needs no training: what is left computes what the whole model would if the
    layers that read the removed channels had zeros there. Channels that are added to each other, share
    weights or meet in other ways go together or not at all; what cannot be cut is refused with the reason.
    Needs float weights and works best behind `canonicalize`. One goal only, but `macs` and `params` may both
    be given.

    Attributes:
        sparsity: share of the channels that go, 0 to 1; 0.5 when no goal is given.
        macs: share of the model's multiply-accumulates to keep, in (0, 1].
        params: share of the model's parameters to keep, in (0, 1].
        criterion: `magnitude` of all weights of a channel; `activation`: energy that it adds to the layers
            that read it, on calibration data; `refit`: what these layers lose when they are fitted again, one
            channel after the other; `taylor`: what the outputs lose, by difference quotients on the data;
            `fpgm`: distance from the other filters (arXiv 1811.00250); `datafree`: what of a filter the
            others cannot express; `auto`: refit or, without fit, activation with data, else
            magnitude.
        scope: where the share is reached: per `layer`, or `global`, where layers compete.
        round_to: channels that stay are a multiple of this, halved where a layer is too narrow; kernels
            like 16.
        fit: with calibration data, fit the weights behind again by least squares.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = Effect.LOSSY

    sparsity: float | None = None
    macs: float = 0.0
    params: float = 0.0
    criterion: Criterion = "auto"
    scope: Literal["layer", "global"] = "layer"
    round_to: int = 16
    fit: bool = True

    def __post_init__(self) -> None:
        shares = {"sparsity": self.sparsity, "macs": self.macs, "params": self.params}
        for name, value in shares.items():
            if value is not None and not (0.0 <= value <= 1.0 and math.isfinite(value)):
                raise PipelineError("channels-goal", f"prune-channels: {name} must be 0..1, got {value:g}")
        if self.sparsity is not None and (self.macs or self.params):
            raise PipelineError(
                "channels-goal",
                "prune-channels takes sparsity or budgets (macs, params), and both are given",
                "leave one of them out",
            )
        if self.round_to < 1:
            raise PipelineError(
                "channels-option", f"prune-channels: round_to must be positive, got {self.round_to}"
            )

    @property
    def level(self) -> Level:
        """What is asked for, without defaults."""
        budget = bool(self.macs or self.params)
        sparsity = 0.5 if self.sparsity is None and not budget else self.sparsity or 0.0
        return Level(sparsity, self.macs, self.params, self.scope)

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place.

        Raises:
            DataError: the criterion needs calibration data, and there are none.
            PipelineError: `channels-budget`: the share of MACs or parameters cannot be reached.
        """
        stats = PassStats()
        level = self.level
        if level.sparsity == 0.0 and not level.budgets:
            return stats
        criterion = self._criterion(ctx)
        graph = Graph(model, lambda node: excluded_by(str(node.name), ctx.exclude) is not None)
        propagate(graph)
        units = solve(graph)
        groups = families(graph, units, self.round_to)
        fits = self.fit and bool(ctx.calibration)
        scores = score(graph, units, groups, criterion, ctx, centred=fits)
        gone = choose(graph, units, groups, scores, level)
        rows = _report(graph, units, gone)
        stats.refused += _refusals(graph, units, groups)
        stats.details = _details(groups, gone) | {"criterion": criterion}
        if not gone.any():
            return stats
        before = count(model)
        original = ctx.original
        changed = cut(graph, keeping(units, gone))
        stats.changed = int(stats.details["channels_cut"])
        if fits and original is not None:
            fitted = fit(model, original, changed, ctx)
            stats.notes += fitted.notes
            stats.details |= {key: value for key, value in fitted.details.items() if key == "error_left"}
        rename_cut(model, changed)
        stats.details |= {"macs_saved": before.macs - count(model).macs}
        stats.attachments[REPORT] = json.dumps(rows, indent=1)
        return stats

    def _criterion(self, ctx: Context) -> Criterion:
        has_data = bool(ctx.calibration)
        if self.criterion in NEEDS_DATA and not has_data:
            raise DataError(
                "calibration-missing",
                f"prune-channels: criterion={self.criterion} looks at what channels carry, and no "
                "calibration data were given",
                "give --calib-data, or use criterion=magnitude",
            )
        if self.criterion != "auto":
            return self.criterion
        return ("refit" if self.fit else "activation") if has_data else "magnitude"


def _details(groups: Sequence[Family], gone: Mask) -> dict[str, int | float | str]:
    return {
        "groups": len(groups),
        "channels": sum(family.width * len(family.units) for family in groups),
        "channels_cut": sum(family.width * int(gone[family.units].sum()) for family in groups),
    }


def _report(graph: Graph, units: Units, gone: Mask) -> list[dict[str, str | int]]:
    """Return a row per layer that loses outputs."""
    rows: list[dict[str, str | int]] = []
    for node, axes in graph.layers.items():
        lost = gone[units.of[axes[0]]]
        if lost.any():
            rows.append({"layer": str(node.name), "channels": len(lost), "channels_left": int((~lost).sum())})
    return rows


def _refusals(graph: Graph, units: Units, groups: Sequence[Family]) -> list[Refusal]:
    """Say of each layer none of whose outputs could go why."""
    able = np.zeros(units.count, np.bool_)
    for family in groups:
        able[family.units] = True
    found: list[Refusal] = []
    for node, axes in graph.layers.items():
        inside = units.of[axes[0]]
        if able[inside].any():
            continue
        reasons = units.reason[inside]
        reasons = reasons[reasons >= 0]
        why = (
            graph.fixed[int(reasons[0])][1] if len(reasons) else "all its channels go together or not at all"
        )
        found.append(Refusal(node_label(node), why))
    return found
