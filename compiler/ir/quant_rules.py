"""Verifier rule: quantizers are well-formed.

QuantizeLinear/DequantizeLinear: scale a scalar, one per entry of `axis`, or per block; zero point of the
scale's shape and the quantized dtype; axis in range; scales positive and finite. QONNX quantizers: the same
of scale, and widths that make sense. ONNX leaves all this to the runtime, where it fails late or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ..errors import InvalidGraph
from ..ops.multithreshold import channel_axis_of
from .walk import constant, constant_tensor, int_attribute, node_label, static_shape

Dims = tuple[int, ...]

# Scales per block of a big weight are many; reading them all would cost as much as reading weights.
_MOST_SCALES = 1 << 22


def check_quantizer(node: ir.Node) -> None:
    """Check `node` if it is a quantizer; other nodes pass.

    Raises:
        InvalidGraph: `ir-quant`.
    """
    rule = _RULES.get((node.domain, node.op_type))
    if rule is not None:
        rule(node)


def _fail(node: ir.Node, what: str) -> InvalidGraph:
    return InvalidGraph("ir-quant", f"{node_label(node)}: {what}")


def _check_linear(node: ir.Node) -> None:
    data, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    _check_scale_values(node, scale)
    _check_scale_shape(node, static_shape(data), static_shape(scale))
    if zero is None:
        return
    if not _same_shape(static_shape(zero), static_shape(scale)):
        raise _fail(node, f"zero point {zero.shape} and scale {_shape(scale)} differ in shape")
    quantized = node.outputs[0].dtype if node.op_type == "QuantizeLinear" else _dtype(data)
    if zero.dtype is not None and quantized is not None and zero.dtype != quantized:
        raise _fail(node, f"zero point is {zero.dtype}, the quantized tensor {quantized}")


def _same_shape(left: Dims | None, right: Dims | None) -> bool:
    """Say whether two parameters have one shape; one element is one element, as a scalar or in a list."""
    if left is None or right is None:
        return left is right
    return left == right or np.prod(left) == np.prod(right) == 1


def _shape(value: ir.Value | None) -> str:
    return "of unknown shape" if value is None else str(value.shape)


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _check_scale_values(node: ir.Node, scale: ir.Value | None) -> None:
    tensor = None if scale is None else constant_tensor(scale)
    if tensor is None or tensor.size > _MOST_SCALES:
        return
    array = constant(scale)
    assert array is not None
    if array.dtype.kind in "iu":
        return
    numbers = array.astype(np.float32)
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise _fail(node, "a scale is zero, negative, NaN or infinite")


def _check_scale_shape(node: ir.Node, data: Dims | None, scale: Dims | None) -> None:
    if scale is None or data is None or len(scale) == 0:
        return
    axis, rank = int_attribute(node, "axis", 1), len(data)
    if scale == (1,) and not int_attribute(node, "block_size", 0):
        # One scale in a list is one for the whole tensor; onnxruntime writes biases so.
        return
    if not -rank <= axis < rank:
        raise _fail(node, f"axis {axis} is out of range for {rank} axes")
    axis %= rank
    block = int_attribute(node, "block_size", 0)
    if block:
        want = tuple(-(-size // block) if i == axis else size for i, size in enumerate(data))
    else:
        want = (data[axis],)
    if scale != want:
        raise _fail(node, f"scale has shape {list(scale)}, {list(want)} fits data {list(data)}, axis {axis}")


# --- QONNX ------------------------------------------------------------------------------------------


def _check_broadcast(node: ir.Node, index: int, what: str) -> None:
    data = static_shape(node.inputs[0])
    given = static_shape(node.inputs[index]) if len(node.inputs) > index else None
    if data is None or given is None:
        return
    padded = (1,) * (len(data) - len(given)) + given
    if len(given) > len(data) or any(a not in (1, b) for a, b in zip(padded, data, strict=True)):
        if int(np.prod(given)) == 1:
            return
        raise _fail(node, f"{what} {list(given)} does not broadcast to data {list(data)}")


def _check_quant(node: ir.Node) -> None:
    _check_scale_values(node, node.inputs[1])
    _check_broadcast(node, 1, "scale")
    _check_broadcast(node, 2, "zero point")
    _check_bits(node, node.inputs[3])


def _check_bipolar(node: ir.Node) -> None:
    _check_scale_values(node, node.inputs[1])
    _check_broadcast(node, 1, "scale")


def _check_bits(node: ir.Node, value: ir.Value | None) -> None:
    bits = constant(value)
    if bits is None:
        return
    numbers = bits.astype(np.float64)
    if not (np.isfinite(numbers).all() and (numbers >= 1).all() and (numbers <= 32).all()):
        raise _fail(node, f"a width of {bits.reshape(-1)[:4].tolist()} bits; 1 to 32 are taken")


def _check_thresholds(node: ir.Node) -> None:
    shape, data = static_shape(node.inputs[1]), static_shape(node.inputs[0])
    if shape is None or data is None:
        return
    if len(shape) != 2:
        raise _fail(node, f"thresholds have shape {list(shape)}, [channels or 1, steps] is needed")
    axis = channel_axis_of(node.attributes.get_string("data_layout", ""), len(data))
    if axis >= len(data):
        raise _fail(node, f"its data layout has no channel axis in {len(data)} axes")
    channels = data[axis]
    if shape[0] not in (1, channels):
        raise _fail(node, f"thresholds for {shape[0]} channels, the data has {channels}")


_RULES: Mapping[tuple[str, str], Callable[[ir.Node], None]] = {
    ("", "QuantizeLinear"): _check_linear,
    ("", "DequantizeLinear"): _check_linear,
    ("qonnx.custom_op.general", "Quant"): _check_quant,
    ("qonnx.custom_op.general", "BipolarQuant"): _check_bipolar,
    ("finn.custom_op.general", "MultiThreshold"): _check_thresholds,
}
