"""Constant Mul, Div, Add and Sub become part of the layer before or after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import Array, constant, is_constant
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .common import label, live_nodes, rank
from .linear import (
    Floats,
    Linear,
    layer_after,
    layer_before,
    read_linear,
    scaled_input,
    scaled_output,
    write_after,
    write_before,
)


@dataclass(frozen=True)
class FoldAffine:
    """Fold Mul, Div, Add and Sub by per-channel constants into Conv, ConvTranspose, Gemm or MatMul.

    Reorders. The layer before takes it as scale or bias; failing that, the layer after it. A MatMul of
    two-axis operands that gets a bias becomes a Gemm. Operations with no such layer beside them are
    none of this pass' business and not listed as refused.
    """

    name: ClassVar[str] = "fold-affine"
    effect: ClassVar[Effect] = Effect.REORDERS

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        for node in live_nodes(model, ctx, "Mul", "Div", "Add", "Sub"):
            step = _read_step(node) if _has_layer_beside(node) else None
            if step is None:
                continue
            reasons = _fold(model, step)
            if not reasons:
                stats.changed += 1
            elif reasons != [None, None]:
                given = "; ".join(reason for reason in reasons if reason)
                stats.refused.append(Refusal(label(node), given))
        return stats


def _has_layer_beside(node: ir.Node) -> bool:
    """Say whether it is worth reading the constant operand, which may be big."""
    after = layer_after(node.outputs[0])
    return after is not None or any(layer_before(value) is not None for value in node.inputs)


@dataclass(frozen=True)
class _Step:
    """`scale * data + shift` with one array, of any shape, that holds the constant operand."""

    node: ir.Node
    data: ir.Value
    scale: Array
    shift: Array


def _read_step(node: ir.Node) -> _Step | None:
    """Return the affine map that `node` is, None when both or no operand are constant, or c / x."""
    first, second = node.inputs[:2]
    if first is None or second is None or is_constant(first) == is_constant(second):
        return None
    swapped = is_constant(first)
    data, operand = (second, first) if swapped else (first, second)
    array = constant(operand)
    if array is None or array.dtype.kind != "f" or (swapped and node.op_type == "Div"):
        return None
    exact = array.astype(np.float64)
    zeros, ones = np.zeros_like(exact), np.ones_like(exact)
    with np.errstate(divide="ignore"):
        scale, shift = {
            "Mul": (exact, zeros),
            "Div": (1 / exact, zeros),
            "Add": (ones, exact),
            "Sub": (-ones, exact) if swapped else (ones, -exact),
        }[node.op_type]
    return _Step(node, data, np.asarray(scale), np.asarray(shift))


def _fold(model: ir.Model, step: _Step) -> list[str | None]:
    """Fold the step; return no reasons on success, else why not before and why not after.

    None stands for "there is no layer on that side at all".
    """
    before = _fold_before(model, step)
    if before == "":
        return []
    after = _fold_after(model, step)
    return [] if after == "" else [before, after]


def _fold_before(model: ir.Model, step: _Step) -> str | None:
    """Return "" when folded."""
    maker = layer_before(step.data)
    if maker is None or isinstance(maker, str):
        return maker
    layer = read_linear(maker)
    if isinstance(layer, str):
        return layer
    scale, shift = (_per_channel(a, step.data, layer, layer.out_channels) for a in (step.scale, step.shift))
    if scale is None or shift is None:
        return "the constant is not one value per output channel"
    return write_after(model, step.node, scaled_output(layer, scale, shift)) or ""


def _fold_after(model: ir.Model, step: _Step) -> str | None:
    """Return "" when folded."""
    reader = layer_after(step.node.outputs[0])
    if reader is None or isinstance(reader, str):
        return reader
    layer = read_linear(reader)
    if isinstance(layer, str):
        return layer
    scale, shift = (_per_channel(a, step.data, layer, layer.in_channels) for a in (step.scale, step.shift))
    if scale is None or shift is None:
        return "the constant is not one value per input channel"
    new = scaled_input(layer, scale, shift)
    if isinstance(new, str):
        return new
    return write_before(model, step.node, step.data, new) or ""


def _per_channel(array: Array, data: ir.Value, layer: Linear, channels: int) -> Floats | None:
    """Spread a constant over the channels of `data`; None when it varies otherwise or adds axes."""
    axes = rank(data)
    if axes is None or array.ndim > axes:
        return None
    exact = array.astype(np.float64)
    if exact.size == 1:
        return np.full(channels, exact.item())
    shape = [1] * axes
    shape[-1 if layer.channels_last else 1] = channels
    padded = [1] * (axes - array.ndim) + list(array.shape)
    return exact.reshape(-1) if padded == shape else None
