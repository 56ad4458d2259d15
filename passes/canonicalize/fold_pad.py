"""Zero padding becomes part of the convolution or pooling after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import attribute, constant, int_attribute, ints_attribute, remove_chain
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .common import is_nonnegative, is_op, label, live_nodes, note_origin, rank


@dataclass(frozen=True)
class FoldPad:
    """Fold a constant Pad of zeros along spatial axes into Conv, MaxPool or AveragePool.

    Reorders (a kernel may sum in another order when it pads itself). A MaxPool ignores its own padding,
    so it takes zeros only where nothing is negative, and minus infinity always; an AveragePool must
    count its padding, which it can only do for all of it. A Pad with several readers stays.
    """

    name: ClassVar[str] = "fold-pad"
    effect: ClassVar[Effect] = Effect.REORDERS

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        for node in live_nodes(model, ctx, "Pad"):
            layer = _reader(node)
            if layer is None:
                continue
            reason = _fold(node, layer)
            if reason is None:
                stats.changed += 1
            else:
                stats.refused.append(Refusal(label(node), reason))
        return stats


def _reader(node: ir.Node) -> ir.Node | None:
    """Return a convolution or pooling that reads the padded value as its data."""
    uses = node.outputs[0].uses()
    layers = (user for user, index in uses if index == 0 and is_op(user, "Conv", "MaxPool", "AveragePool"))
    return next(layers, None)


def _fold(node: ir.Node, layer: ir.Node) -> str | None:
    padding = _spatial_padding(node)
    if isinstance(padding, str):
        return padding
    output = node.outputs[0]
    if output.is_graph_output() or len(output.uses()) > 1:
        return f"{output.name!r} is read elsewhere too"
    own = ints_attribute(layer, "pads", [0] * len(padding))
    reason = _auto_pad_reason(layer) or _value_reason(node, layer, own)
    if reason is not None:
        return reason
    total = [mine + added for mine, added in zip(own, padding, strict=True)]
    if layer.op_type != "Conv" and not _smaller_than_window(layer, total):
        return "a window would lie in the padding altogether"
    _write(node, layer, total)
    return None


def _spatial_padding(node: ir.Node) -> list[int] | str:
    """Return the pads of a constant Pad as a layer writes them, begins then ends of the spatial axes."""
    axes_known = rank(node.inputs[0])
    pads = constant(node.inputs[1])
    if pads is None or axes_known is None:
        return "its amounts are not constant"
    if attribute(node, "mode", "constant") != "constant":
        return f"its mode is {attribute(node, 'mode')}"
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return "its axes are not constant"
    listed = list(range(axes_known)) if axes is None else [int(axis) % axes_known for axis in axes]
    if min(pads.tolist(), default=0) < 0:
        return "it crops"
    full = np.zeros((2, axes_known), np.int64)
    full[:, listed] = pads.reshape(2, -1)
    if full[:, :2].any():
        return "it pads batch or channels"
    return [int(amount) for amount in full[:, 2:].reshape(-1)]


def _auto_pad_reason(layer: ir.Node) -> str | None:
    mode = attribute(layer, "auto_pad", "NOTSET")
    return None if mode in ("NOTSET", "VALID") else f"the layer after it has auto_pad {mode}"


def _value_reason(node: ir.Node, layer: ir.Node, own: tuple[int, ...]) -> str | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    filled = np.zeros(1) if value is None else constant(value)
    if filled is None or filled.size != 1:
        return "the value it fills with is not constant"
    number = float(filled.reshape(-1)[0])
    if layer.op_type == "MaxPool":
        return _max_pool_reason(node, layer, number)
    if number != 0:
        return f"it fills with {number}, not with zeros"
    return _average_pool_reason(layer, own) if layer.op_type == "AveragePool" else None


def _max_pool_reason(node: ir.Node, layer: ir.Node, number: float) -> str | None:
    if len(layer.outputs) > 1 and layer.outputs[1].uses():
        return "the indices of the MaxPool are used"
    if number == -np.inf or (number == 0 and is_nonnegative(node.inputs[0])):
        return None
    return f"MaxPool ignores its padding; filling with {number} may win over negative values"


def _average_pool_reason(layer: ir.Node, own: tuple[int, ...]) -> str | None:
    if int_attribute(layer, "ceil_mode", 0):
        return "ceil_mode: the last window is cut off at the border"
    if any(own) and not int_attribute(layer, "count_include_pad", 0):
        return "the AveragePool has padding of its own that it does not count"
    return None


def _smaller_than_window(layer: ir.Node, pads: list[int]) -> bool:
    windows = ints_attribute(layer, "kernel_shape")
    return all(amount < window for amount, window in zip(pads, windows * 2, strict=True))


def _write(node: ir.Node, layer: ir.Node, pads: list[int]) -> None:
    layer.attributes["pads"] = ir.AttrInt64s("pads", pads)
    layer.attributes.pop("auto_pad", None)
    if layer.op_type == "AveragePool":
        layer.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    note_origin(layer, node)
    layer.replace_input_with(0, node.inputs[0])
    remove_chain(node)
