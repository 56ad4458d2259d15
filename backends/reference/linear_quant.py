"""QuantizeLinear and DequantizeLinear, exact over the whole range of their inputs, blocks included."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference.ops.op_dequantize_linear import _CommonDequantizeLinear as _DequantizeLinear
from onnx.reference.ops.op_quantize_linear import _CommonQuantizeLinear as _QuantizeLinear

from .base import Array, is_float, jittered

RANGES = {
    "int2": (-2, 1),
    "uint2": (0, 3),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
}


def spread(params: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Shape scales or zero points so that they broadcast over a tensor of `shape`."""
    if block:
        return np.take(np.repeat(params, block, axis=axis), np.arange(shape[axis]), axis=axis)
    if params.size == 1:
        return params.reshape(())
    sizes = [1] * len(shape)
    sizes[axis] = params.size
    return params.reshape(sizes)


def _single(array: Array) -> Array:
    """Return small floats as float32; float32 and float64 stay."""
    return array if array.dtype.itemsize >= 4 else array.astype(np.float32)


class QuantizeLinear(_QuantizeLinear):
    """`saturate(round_half_even(x / scale) + zero_point)`, the quotient rounded to float32."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, y_scale, zero_point=None, axis=1, saturate=1, block_size=0, output_dtype=0, precision=0
    ):
        if zero_point is not None:
            stored = zero_point.dtype
        else:
            stored = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(output_dtype or onnx.TensorProto.UINT8))
        if stored.name not in RANGES:
            return super()._run(
                x, y_scale, zero_point, axis=axis, saturate=saturate, block_size=block_size,
                output_dtype=output_dtype or None, precision=precision or None,
            )  # fmt: skip
        low, high = RANGES[stored.name]
        ratio = _single(x) / spread(_single(y_scale), x.shape, axis, block_size)
        ratio = jittered(self, ratio, high - low + 1)
        whole = np.rint(np.nan_to_num(ratio, nan=0.0, posinf=np.inf, neginf=-np.inf)).astype(np.float64)
        if zero_point is not None:
            whole += spread(zero_point.astype(np.float64), x.shape, axis, block_size)
        return (np.asarray(np.clip(whole, low, high)).astype(np.int32).astype(stored),)


class DequantizeLinear(_DequantizeLinear):
    """`(x - zero_point) * scale`: the difference exact, then rounded to float32, then one product."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, x_scale, x_zero_point=None, axis=1, block_size=0, output_dtype=0
    ):
        if is_float(x):
            return super()._run(
                x, x_scale, x_zero_point, axis=axis, block_size=block_size, output_dtype=output_dtype or None
            )
        whole = x.astype(np.int64) if x.dtype.itemsize >= 4 else x.astype(np.int32)
        if x_zero_point is not None:
            whole = whole - spread(x_zero_point.astype(whole.dtype), x.shape, axis, block_size)
        real = whole.astype(np.float32) * spread(_single(x_scale), x.shape, axis, block_size)
        kind = onnx.helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else x_scale.dtype
        return (np.asarray(real, kind),)
