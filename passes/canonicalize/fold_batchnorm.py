"""BatchNormalization becomes part of the layer before or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import attribute, constant, int_attribute
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .common import label, live_nodes, rank
from .linear import (
    Floats,
    layer_after,
    layer_before,
    read_linear,
    scaled_input,
    scaled_output,
    write_after,
    write_before,
)


@dataclass(frozen=True)
class FoldBatchnorm:
    """Fold inference-mode BatchNormalization into Conv, ConvTranspose, Gemm or MatMul.

    Reorders: with `a = scale / sqrt(var + epsilon)`, `y = a x + (bias - a mean)` goes into the weights of
    the layer before it; failing that, into those of the layer after it, where that one pads nothing.
    """

    name: ClassVar[str] = "fold-batchnorm"
    effect: ClassVar[Effect] = Effect.REORDERS

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        for node in live_nodes(model, ctx, "BatchNormalization"):
            reason = _fold(model, node)
            if reason is None:
                stats.changed += 1
            else:
                stats.refused.append(Refusal(label(node), reason))
        return stats


def affine_of(node: ir.Node) -> tuple[Floats, Floats] | str:
    """Return `a`, `b` ([channels] each) of the `a x + b` that a BatchNormalization computes, or why not."""
    if int_attribute(node, "training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        return "training mode"
    arrays = [constant(value) for value in node.inputs[1:5]]
    parameters = [array.astype(np.float64) for array in arrays if array is not None]
    if len(parameters) != 4:
        return "its parameters are not constant"
    scale, bias, mean, variance = parameters
    epsilon = attribute(node, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
    return factor, np.asarray(bias - factor * mean)


def _fold(model: ir.Model, node: ir.Node) -> str | None:
    affine = affine_of(node)
    if isinstance(affine, str):
        return affine
    before = _fold_before(model, node, *affine)
    if before is None:
        return None
    after = _fold_after(model, node, *affine)
    return None if after is None else f"{before}; {after}"


def _fold_before(model: ir.Model, node: ir.Node, scale: Floats, shift: Floats) -> str | None:
    maker = layer_before(node.inputs[0])
    if maker is None or isinstance(maker, str):
        return maker or "no Conv, ConvTranspose, Gemm or MatMul before it"
    layer = read_linear(maker)
    if isinstance(layer, str):
        return layer
    if layer.channels_last and rank(node.inputs[0]) != 2:
        return "it does not normalise the channels of the layer before it"
    return write_after(model, node, scaled_output(layer, scale, shift))


def _fold_after(model: ir.Model, node: ir.Node, scale: Floats, shift: Floats) -> str | None:
    reader = layer_after(node.outputs[0])
    if reader is None or isinstance(reader, str):
        return reader or "no Conv, ConvTranspose, Gemm or MatMul after it"
    layer = read_linear(reader)
    if isinstance(layer, str):
        return layer
    if layer.channels_last and rank(node.inputs[0]) != 2:
        return "it does not normalise the channels of the layer after it"
    new = scaled_input(layer, scale, shift)
    if isinstance(new, str):
        return new
    return write_before(model, node, node.inputs[0], new)
