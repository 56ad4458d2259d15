"""Removal of Relu and Clip before a quantizer that saturates at the same places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.walk import Array, attribute, constant, int_attribute, scalar
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .common import forward, label, live_nodes, note_origin

_QUANT_DOMAIN = "qonnx.custom_op.general"
_RANGES = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
}


@dataclass(frozen=True)
class ReluIntoQuantizer:
    """Drop a Relu or Clip all of whose readers are quantizers that saturate no later.

    Exact: quantization is monotone, so when the quantizer maps the lower bound to its least integer and
    the upper bound to its greatest, everything beyond a bound lands there anyway.
    """

    name: ClassVar[str] = "relu-into-quantizer"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        for node in live_nodes(model, ctx, "Relu", "Clip"):
            readers = node.outputs[0].consumers()
            if not any(_quantizes(reader) for reader in readers):
                continue
            reason = _refuse(node)
            if reason is None:
                _drop(node)
                stats.changed += 1
            else:
                stats.refused.append(Refusal(label(node), reason))
        return stats


def _quantizes(node: ir.Node) -> bool:
    return (node.op_type, node.domain) in (("QuantizeLinear", ""), ("Quant", _QUANT_DOMAIN))


def _drop(node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    maker = source.producer()
    if maker is not None:
        note_origin(maker, node)
    forward(node, source)


def _refuse(node: ir.Node) -> str | None:
    output = node.outputs[0]
    if output.is_graph_output():
        return f"{output.name!r} is also a graph output"
    bounds = _bounds(node)
    if bounds is None:
        return "its bounds are not constant"
    for user, index in output.uses():
        if not _quantizes(user) or index != 0:
            return f"{output.name!r} is also read by {label(user)}"
        reason = _quantizer_reason(user, *bounds)
        if reason is not None:
            return reason
    return None


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds of a Relu or Clip, infinite where there is none; None when not constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = []
    for index, open_end in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        bound = open_end if value is None else scalar(value)
        if bound is None:
            return None
        found.append(bound)
    return found[0], found[1]


def _quantizer_reason(quantizer: ir.Node, low: float, high: float) -> str | None:
    if low > high:
        return "its bounds are crossed"
    limits = _limits(quantizer)
    if isinstance(limits, str):
        return limits
    scale, zero_point, least, greatest = limits
    if min(scale.reshape(-1).tolist()) <= 0:
        return "the quantizer's scale is not positive"
    if np.isfinite(low) and (_integer(low, scale, zero_point) > least).any():
        return f"the quantizer of {label(quantizer)} reaches below {low}"
    if np.isfinite(high) and (_integer(high, scale, zero_point) < greatest).any():
        return f"the quantizer of {label(quantizer)} reaches above {high}"
    return None


def _integer(bound: float, scale: Array, zero_point: Array) -> npt.NDArray[np.float64]:
    """Quantize as QuantizeLinear does, before saturation: float32 division, half to even."""
    quotient = np.float32(bound) / scale.astype(np.float32)
    return np.asarray(np.rint(quotient).astype(np.float64) + zero_point.astype(np.float64))


def _limits(quantizer: ir.Node) -> tuple[Array, Array, float, float] | str:
    """Return scale, zero point and the least and greatest integer of a quantizer."""
    scale = constant(quantizer.inputs[1])
    given = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    zero_point: Array | None = np.zeros(1) if given is None else constant(given)
    if scale is None or zero_point is None or scale.dtype != np.float32:
        return "the quantizer's scale or zero point is not constant"
    if quantizer.domain:
        return _custom_limits(quantizer, scale, zero_point)
    bounds = _RANGES.get(quantizer.outputs[0].dtype or ir.DataType.UNDEFINED)
    if bounds is None:
        return f"no integer range is known for {quantizer.outputs[0].dtype}"
    return scale, zero_point, *bounds


def _custom_limits(node: ir.Node, scale: Array, zero_point: Array) -> tuple[Array, Array, float, float] | str:
    """Return the same for QONNX Quant, whose zero point is added before rounding."""
    bits = scalar(node.inputs[3])
    if bits is None or (zero_point != np.rint(zero_point.astype(np.float64))).any():
        return "the quantizer's width is not constant or its zero point is no integer"
    if attribute(node, "rounding_mode", "ROUND") not in ("ROUND", "round"):
        return "the quantizer does not round half to even"
    signed, narrow = int_attribute(node, "signed", 1), int_attribute(node, "narrow", 0)
    if signed:
        return scale, zero_point, -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return scale, zero_point, 0, 2**bits - 1 - narrow
