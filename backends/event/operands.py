"""Constant operands of layers: integer weights, biases, quantizers, windows, exact values of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.ir.quant import QONNX_DOMAIN, QuantParams, Scheme, dequantize_array, view
from ...compiler.ir.walk import int_attribute, ints_attribute, node_label, producer
from ...compiler.ir.windows import pads_of
from ...compiler.ops.constants import constant_expression
from ...compiler.ops.quant import quant
from ..reference.integer import bias_steps as reference_steps
from .graph import Integers, Reals, Weights, Window
from .ladders import Quantizer
from .terms import Floats


class Refused(Exception):
    """A node that cannot be lowered; `reason` says which limit and what was found."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{node_label(node)}: {reason}")
        self.node, self.reason = node, reason


@dataclass(frozen=True, eq=False)
class Operand:
    """Constant weights: int32 less the zero point, float32 scale with one element or one per `axis` index."""

    q: Weights
    scale: Floats


def weights_of(node: ir.Node, axis: int) -> Operand:
    """Return the integer weights of a layer, scales along `axis` at most; refuses what is not quantized."""
    value = node.inputs[1]
    params = view(value)
    if value is None or params is None:
        raise Refused(node, "its weights are not quantized by constants")
    spec = params.spec
    if spec.block_size or spec.axis not in (None, axis) or spec.scheme is Scheme.BIPOLAR:
        raise Refused(
            node, f"weights {spec.scheme} in blocks of {spec.block_size}, scales along axis {spec.axis}"
        )
    q = _integers(value)
    if q is None:
        raise Refused(node, "its weights are not constant, or too many for constant folding")
    if q.size and (q.min() < -128 or q.max() > 127):
        raise Refused(node, f"weights from {q.min()} to {q.max()}; event kernels have 8 bits")
    return Operand(q, np.asarray(params.scale, np.float32).reshape(-1))


def _integers(value: ir.Value) -> Weights | None:
    """Return q - zero of a constant behind a DequantizeLinear or Quant."""
    node, params = value.producer(), view(value)
    assert node is not None, "view read it"
    assert params is not None, "view read it"
    shape = [1] * len(value.shape or [])
    if params.spec.axis is not None:
        shape[params.spec.axis] = -1
    if node.op_type == "DequantizeLinear":
        q = constant_expression(node.inputs[0])
        return None if q is None else q.astype(np.int32) - params.zero_point.reshape(shape).astype(np.int32)
    reals = constant_expression(node.inputs[0])
    if reals is None:
        return None
    scale, zero, bits = (constant_expression(item) for item in node.inputs[1:4])
    assert scale is not None, "view read it"
    assert zero is not None, "view read it"
    assert bits is not None, "view read it"
    flags = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 1))
    rounded = quant(reals, scale, zero, bits, *flags, params.spec.rounding.value)
    return np.asarray(np.rint(rounded / scale), np.int32)


def reals_of(value: ir.Value | None) -> Reals | None:
    """Return what a constant is worth as float32, behind a DequantizeLinear too; None if it is none."""
    found = constant_expression(value)
    if found is None:
        node, params = producer(value, "DequantizeLinear"), view(value)
        q = constant_expression(node.inputs[0]) if node is not None else None
        found = None if q is None or params is None else dequantize_array(q, params)
    return None if found is None else np.asarray(found, np.float32).astype(np.float64)


def bias_steps(value: ir.Value | None, unit: Floats) -> Integers | None:
    """Return a bias in whole steps of `unit`, as docs/semantics.md, step 2; None if it is not constant."""
    if value is None:
        return np.zeros(1, np.int64)
    node, params = producer(value, "DequantizeLinear"), view(value)
    q = constant_expression(node.inputs[0]) if node is not None else None
    if q is not None and params is not None and q.dtype == np.int32 and not params.zero_point.any():
        return reference_steps(q, np.asarray(params.scale, np.float32), unit).astype(np.int64)
    real = reals_of(value)
    if real is None:
        return None
    return reference_steps(real, None, unit).astype(np.int64)


def quantizer_of(node: ir.Node) -> Quantizer:
    """Return the parameters of an activation's QuantizeLinear or Quant; refuses per-channel scales."""
    params = view(node.outputs[0]) if node.domain == QONNX_DOMAIN else _linear(node)
    if params is None:
        raise Refused(node, "its parameters are not constant")
    spec, zero = params.spec, params.zero_point
    if spec.axis is not None or spec.block_size or spec.scheme is Scheme.BIPOLAR or spec.bits > 8:
        raise Refused(node, f"activations {spec.scheme} of {spec.bits} bits, scales along axis {spec.axis}")
    whole = int(zero.reshape(()))
    if whole != zero.reshape(()):
        raise Refused(node, f"zero point {zero.reshape(())}; counts need a whole one")
    by_quant, low, high = node.domain == QONNX_DOMAIN, spec.qmin - whole, spec.qmax - whole
    return Quantizer(float(params.scale.reshape(())), whole, low, high, spec.rounding.value, by_quant)


def _linear(node: ir.Node) -> QuantParams | None:
    """Read a QuantizeLinear as if its output were dequantized."""
    twin = ir.Node("", "DequantizeLinear", [node.outputs[0], *node.inputs[1:3]])
    found = view(twin.outputs[0])
    for index in range(len(twin.inputs)):
        twin.replace_input_with(index, None)
    return found


def window_of(node: ir.Node, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Return the window of a node over an image of `size`; refuses what is not 2-D or rounded up."""
    if len(kernel) != 2 or len(size) != 2:
        raise Refused(node, f"{len(kernel)} spatial axes; event layers have 2")
    if int_attribute(node, "ceil_mode", 0):
        raise Refused(node, "ceil_mode")
    strides, dilations = ints_attribute(node, "strides", (1, 1)), ints_attribute(node, "dilations", (1, 1))
    top, left, bottom, right = pads_of(node, kernel, strides, dilations, size)
    return Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (top, left, bottom, right),
        (dilations[0], dilations[1]),
    )


def exact_values(scales: Sequence[float], ranges: Sequence[tuple[int, int]]) -> tuple[list[Integers], float]:
    """Return what counts stand for after float32 dequantization, as integers of one power of two.

    Args:
        scales: float32 values, one per source.
        ranges: least and largest count of each.

    Returns:
        Per source int64 [counts], and the unit.
    """
    exponent = min(int(np.frexp(np.float32(scale))[1]) for scale in scales) - 24
    tables = []
    for scale, (low, high) in zip(scales, ranges, strict=True):
        real = np.arange(low, high + 1).astype(np.float32) * np.float32(scale)
        tables.append(np.ldexp(real.astype(np.float64), -exponent).astype(np.int64))
    return tables, float(np.ldexp(1.0, exponent))
