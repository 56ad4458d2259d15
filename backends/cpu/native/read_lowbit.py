"""Products with weights-only quantization: where the integers are worth keeping, they are kept.

That is: weights of at most four bits with at most 32 rows of activations, and bytes with at most 8 rows where
float weights would not fit the second-level cache. Elsewhere float weights are faster; the product is read as
one of floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.quant import QuantParams, quantize_array, view
from ....compiler.ir.walk import attribute, int_attribute
from ....compiler.ops.constants import constant_expression
from .kernels.lowbit_f32 import Bits
from .layers_lowbit import LowbitDense
from .quantized import array_of
from .read_chain import End, emit
from .reader import Reader, Rule, covers, input_of, shape_of, tensor_of

FEW_BITS, FEW_BITS_ROWS = 4, 32
BYTES_ROWS = 8
CACHE_BYTES = 1 << 20
_WIDTHS: tuple[Bits, ...] = (1, 2, 4, 8)

Integers = npt.NDArray[np.int64]


def lowbit(otherwise: Rule) -> Rule:
    """Return a rule for MatMul and Gemm that keeps integer weights where they help."""

    def rule(reader: Reader, node: ir.Node) -> None:
        layer = _layer(reader, node)
        if layer is None:
            otherwise(reader, node)
            return
        value = node.outputs[0]
        emit(reader, node, End(value, (), layer.output), layer)

    return rule


def _layer(reader: Reader, node: ir.Node) -> LowbitDense | None:
    """Return the layer, None where the product is read otherwise."""
    x, weight = node.inputs[0], node.inputs[1]
    params = view(weight)
    if params is None or weight is None or x is None or reader.is_constant(x) or not _is_plain(node):
        return None
    if reader.quantized(x) is not None or not reader.is_constant(weight):
        return None
    transposed = bool(int_attribute(node, "transB", 0))
    rows = prod(shape_of(x, node)[:-1])
    if params.spec.bits > 8 or not _worth(params.spec.bits, rows, prod(shape_of(weight, node))):
        return None
    bias = _bias(node)
    found = weights_in_codes(weight, params, 0 if transposed else 1)
    if found is None or bias is False:
        return None
    codes, scale, zero, block, bipolar, bits = found
    spread = (
        None if bias is True else np.ascontiguousarray(np.broadcast_to(bias, codes.shape[:1]), np.float32)
    )
    tensor = reader.real(input_of(node, 0), node)
    output = tensor_of(node.outputs[0], node)
    return LowbitDense((tensor,), output, covers(node), codes, scale, zero, bits, block, bipolar, spread)


def _worth(bits: int, rows: int, elements: int) -> bool:
    if bits <= FEW_BITS:
        return rows <= FEW_BITS_ROWS
    return rows <= BYTES_ROWS and 4 * elements > CACHE_BYTES


def _is_plain(node: ir.Node) -> bool:
    factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    weight = node.inputs[1]
    matrix = weight is not None and weight.shape is not None and weight.shape.rank() == 2
    return factors == [1.0, 1.0] and not int_attribute(node, "transA", 0) and matrix


def _bias(node: ir.Node) -> npt.NDArray[np.generic] | bool:
    """Return the bias of a Gemm; True: there is none, False: it is not one per output."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    array = array_of(node.inputs[2])
    if array is None or array.dtype != np.float32 or array.size not in (1, *array.shape[-1:]):
        return False
    return array.reshape(-1)


_Found = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], "int | npt.NDArray[np.uint8]", int, bool, Bits]


def weights_in_codes(value: ir.Value, params: QuantParams, channels: int) -> _Found | None:
    """Return codes [N, K], scales [N, blocks], zeros, block, whether codes are bipolar, and their bits."""
    spec, node = params.spec, value.producer()
    assert node is not None, "a view has a node behind it"
    data = constant_expression(node.inputs[0])
    axes = (1 - channels,) if spec.block_size else (None, channels)
    if data is None or params.scale.dtype != np.float32 or spec.axis not in axes:
        return None
    if node.op_type != "DequantizeLinear":
        data = quantize_array(data, params)
    whole = np.asarray(data.astype(np.int64))
    zeros = np.asarray(params.zero_point, np.float64)
    if bool((zeros != np.rint(zeros)).any()):
        return None
    scale = _by_output(params.scale, params, channels, whole.shape)
    zero = _by_output(zeros.astype(np.int64), params, channels, whole.shape)
    codes = whole.T if channels == 1 else whole
    return _fitted(codes, np.asarray(scale, np.float32), np.asarray(zero, np.int64), spec.block_size)


def _by_output(
    values: npt.NDArray[np.generic], params: QuantParams, channels: int, shape: Sequence[int]
) -> npt.NDArray[np.generic]:
    """Return parameters as [N, blocks]."""
    if params.spec.block_size:
        return np.ascontiguousarray(values.T if channels == 1 else values)
    return np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (shape[channels],))[:, None])


def _fitted(codes: Integers, scale: npt.NDArray[np.float32], zero: Integers, block: int) -> _Found | None:
    """Return the weights in the fewest bits that hold them."""
    low = min(int(codes.min()), int(zero.min()))
    high = max(int(codes.max()), int(zero.max()))
    bipolar = bool(np.isin(codes, (-1, 1)).all() and not zero.any())
    bits = next((w for w in _WIDTHS if high - low < 1 << w), None)
    if bipolar:
        stored, bits = (codes > 0).astype(np.uint8), 1
    elif bits is None:
        return None
    else:
        stored = (codes - low).astype(np.uint8)
    per_word = 32 // bits
    size = block or -(-codes.shape[1] // per_word) * per_word
    if size % per_word:
        return None
    moved = (zero - low).astype(np.uint8)
    same = bipolar or bool((moved == moved.flat[0]).all())
    first = 0 if bipolar else int(moved.flat[0])
    return np.ascontiguousarray(stored), scale, first if same else moved, size, bipolar, bits
