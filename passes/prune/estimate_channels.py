"""The pass `estimate-channels`: what BatchNorm nodes know of each channel, kept for when they are folded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats

Floats = npt.NDArray[np.floating]

ATTACHMENT = "channel_statistics.json"


@dataclass(frozen=True)
class EstimateChannels:
    """Note mean and deviation per channel behind every BatchNormalization, for `prune-datafree`.

    Exact: changes nothing. Has to stand before the pass that folds BatchNorm nodes. What BatchNorm puts out
    is normal with its bias as mean and its scale as deviation; attachment: value name -> [means, deviations].
    """

    name: ClassVar[str] = "estimate-channels"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Return the statistics in the account; `model` is only read."""
        found: dict[str, list[list[float]]] = {}
        for node in model.graph:
            if node.op_type != "BatchNormalization" or node.domain:
                continue
            scale, bias = (walk.constant(value) for value in node.inputs[1:3])
            if scale is not None and bias is not None:
                means, deviations = bias.astype(np.float64), np.abs(scale.astype(np.float64))
                found[str(node.outputs[0].name)] = [means.tolist(), deviations.tolist()]
        stats = PassStats(details={"values": len(found)})
        stats.attachments[ATTACHMENT] = json.dumps(found)
        return stats


def channel_statistics(ctx: Context) -> dict[str, tuple[Floats, Floats]]:
    """Return value name -> means and deviations per channel; empty when the pass did not run."""
    raw = json.loads(ctx.attachments.get(ATTACHMENT, "{}"))
    return {name: (np.array(means), np.array(deviations)) for name, (means, deviations) in raw.items()}
