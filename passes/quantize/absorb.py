"""High biases absorbed by the next layer: activations that are always large lose their constant part.

`relu(x) = relu(x - c) + c` wherever `x >= c >= 0`. So a first layer whose output channel never falls below c
can give c away, and `W2 c` goes into the next layer's bias (Nagel et al. 2019, arXiv 1906.04721, section
4.1.3). What stays has a smaller range, which matters after equalization. c is the smallest value seen on
calibration data, not an estimate from BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .bias_correct import add_to_bias, channel_minima, refuse_bias
from .moments import Floats
from .pairs import Pair, find_pairs

_MOVEMENT = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Transpose"})


@dataclass(frozen=True)
class AbsorbBias:
    """Move the constant part of channels that never come near zero into the next layer's bias.

    Lossy, mutates the model: exact on the calibration samples, while an input whose channel falls below what
    they reached is clipped there. Values between the layers are shifted and get the suffix `_absorbed`.
    """

    name: ClassVar[str] = "absorb-bias"
    effect: ClassVar[Effect] = Effect.LOSSY

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; raises `DataError` without calibration samples."""
        if ctx.calibration is None or len(ctx.calibration) == 0:
            raise DataError(
                "calibration-missing", "absorb-bias needs representative inputs", "give calibration data"
            )
        stats = PassStats()
        pairs = [pair for pair in find_pairs(model, stats.refused) if _accepted(model, pair, stats.refused)]
        minima = _minima(model, pairs, ctx.calibration, ctx)
        for pair, low in zip(pairs, minima, strict=True):
            constant = np.maximum(low, 0.0)
            if constant.any():
                _absorb(model, pair, constant)
                stats.changed += 1
                stats.details[f"largest:{pair.first.node.name}"] = float(constant.max())
        return stats


def _accepted(model: ir.Model, pair: Pair, refused: list[Refusal]) -> bool:
    reason = _refuse(model, pair)
    if reason is not None:
        refused.append(Refusal(str(pair.first.node.name), reason))
    return reason is None


def _refuse(model: ir.Model, pair: Pair) -> str | None:
    first, second = pair.first.node, pair.second.node
    if first.graph is not model.graph:
        return "inside a body, where calibration cannot look"
    kinds = [node.op_type for node in pair.between if node.op_type not in _MOVEMENT]
    if kinds != ["Relu"]:
        return f"needs one Relu before {second.name!r}, found {kinds}"
    if second.op_type == "ConvTranspose":
        return "output borders of ConvTranspose see fewer weights"
    padded = any(walk.ints_attribute(second, "pads")) or (
        walk.attribute(second, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    )
    if second.op_type == "Conv" and padded:
        return f"padding of {second.name!r} is zero, not the absorbed constant"
    return refuse_bias(first) or refuse_bias(second)


def _minima(model: ir.Model, pairs: list[Pair], samples: Samples, ctx: Context) -> list[Floats]:
    names = [str(pair.first.node.outputs[0].name) for pair in pairs]
    found = channel_minima(model, names, samples, ctx)
    return [found[name] for name in names]


def _absorb(model: ir.Model, pair: Pair, constant: Floats) -> None:
    """Take `constant` off the first bias and put `W2 constant` on the second."""
    groups = pair.second.groups
    columns = constant[pair.channel_of].reshape(groups, -1)
    gain = np.einsum("grck,gc->gr", pair.second.canonical(), columns).reshape(-1)
    add_to_bias(model, pair.first.node, -constant)
    add_to_bias(model, pair.second.node, gain)
    for value in (pair.first.node.outputs[0], *(node.outputs[0] for node in pair.between)):
        walk.rename(value, walk.unique_name(model, f"{value.name}_absorbed"))
