"""Quantized layers in exact integer arithmetic; see docs/semantics.md for the definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from ...compiler.errors import ModelError
from .base import REFERENCE_DOMAIN, Array, Kernel, jittered
from .convolution import convolve, convolve_transposed, transposed_window
from .linear_quant import RANGES
from .windows import make_window

INT32_MAX = 2**31 - 1


def exact_dtype(x: Array, w: Array, terms: int) -> np.dtype[np.generic]:
    """Return the float type that holds every partial sum of `terms` products exactly.

    Sums of integers are exact in floats below 2^24 (float32) or 2^53 (float64), whatever the order.
    """
    largest = float(np.abs(x).max(initial=0)) * float(np.abs(w).max(initial=0)) * terms
    return np.dtype(np.float32 if largest < 2**24 else np.float64)


def round_to(real: Array, zero: int, kind: np.dtype[np.generic]) -> Array:
    """Return `saturate(round_half_even(real) + zero)`."""
    low, high = RANGES[kind.name]
    return np.asarray(
        np.clip(np.rint(real).astype(np.float64) + zero, low, high).astype(np.int32).astype(kind)
    )


def _centred(q: Array, zero: Array | None, channel_axis: int) -> Array:
    """Return q minus its zero point as int32; one zero point per channel is spread along its axis."""
    if zero is None:
        return q.astype(np.int32)
    if zero.size == 1:
        return np.asarray(q.astype(np.int32) - zero.astype(np.int32).reshape(()))
    shape = [1] * q.ndim
    shape[channel_axis] = zero.size
    return np.asarray(q.astype(np.int32) - zero.astype(np.int32).reshape(shape))


class _IntegerLayer(Kernel):
    """Frame of the layers: accumulate, add the bias, requantize."""

    op_domain = REFERENCE_DOMAIN
    weight_axis = 0
    output_axis = 1

    def _weight_axis(self) -> int:
        return self.weight_axis

    def _accumulate(self, x: Array, w: Array) -> Array:
        raise NotImplementedError

    def accumulators(self, *args: Array | None) -> tuple[Array, Array]:
        """Return the int32 accumulators (as floats that hold them exactly) and their scale, broadcastable.

        Raises:
            ModelError: one of them does not fit 32 bits; the integer semantics end there.
        """
        x, x_scale, x_zero, w, w_scale, w_zero, bias, bias_scale = args
        assert x is not None, "no data"
        assert w is not None, "no weights"
        assert x_scale is not None, "no data scale"
        assert w_scale is not None, "no weight scale"
        total = self._accumulate(_centred(x, x_zero, 0), _centred(w, w_zero, self._weight_axis()))
        unit = np.asarray(x_scale.reshape(()) * w_scale.reshape(-1), np.float32)
        if bias is not None:
            total = total + self._along_channels(bias_steps(bias, bias_scale, unit), total.ndim)
        if float(np.abs(total).max(initial=0)) > INT32_MAX:
            raise ModelError(
                "int32-overflow",
                f"node {self.onnx_node.name!r}: an accumulator leaves 32 bits",
                "exclude the layer, or quantize it with fewer bits",
            )
        return total, self._along_channels(unit, total.ndim)

    def _along_channels(self, array: Array, rank: int) -> Array:
        shape = [1] * rank
        shape[self.output_axis % rank] = array.size
        return array.reshape(shape)

    def _run(  # type: ignore[no-untyped-def]
        self, *args, low=-np.inf, high=np.inf, output_dtype=0, **_
    ):
        *operands, y_scale, y_zero = [*args, None][:10]
        total, unit = self.accumulators(*operands)
        scale = y_scale.astype(np.float32).reshape(())
        zero = 0 if y_zero is None else int(y_zero.reshape(()))
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(output_dtype))
        low_kind, high_kind = RANGES[kind.name]
        steps = jittered(
            self, np.asarray(total.astype(np.float32) * (unit / scale)), high_kind - low_kind + 1
        )
        return (round_to(np.clip(steps, *clip_in_steps(low, high, scale)), zero, kind),)


def clip_in_steps(low: float, high: float, scale: Array) -> tuple[Array, Array]:
    """Return clipping limits as float32 multiples of the output scale."""
    return np.float32(low) / scale, np.float32(high) / scale


def bias_steps(bias: Array, scale: Array | None, unit: Array) -> npt.NDArray[np.float64]:
    """Return the bias in whole accumulator steps of `unit` = x_scale * w_scale."""
    flat = bias.reshape(-1)
    if scale is None:
        return np.asarray(np.rint(flat.astype(np.float32) / unit), np.float64)
    if np.allclose(scale.reshape(-1), unit, rtol=1e-6, atol=0):
        return flat.astype(np.float64)
    real = flat.astype(np.float32) * scale.reshape(-1)
    return np.asarray(np.rint(real / unit), np.float64)


class IntegerConv(_IntegerLayer):
    """Quantized Conv: x [N, C, ...], w [M, C / group, ...]."""

    def _accumulate(self, x: Array, w: Array) -> Array:
        get = self._option
        window = make_window(
            x.shape[2:],
            w.shape[2:],
            get("strides"),
            get("dilations"),
            get("pads"),
            getattr(self, "auto_pad", None),
        )
        dtype = exact_dtype(x, w, int(np.prod(w.shape[1:])))
        return convolve(x, w, window, getattr(self, "group", 1), dtype)

    def _option(self, name: str) -> list[int] | None:
        found: list[int] | None = getattr(self, name, None)
        return found


class IntegerConvTranspose(IntegerConv):
    """Quantized ConvTranspose: x [N, C, ...], w [C, M / group, ...]."""

    weight_axis = 1

    def _accumulate(self, x: Array, w: Array) -> Array:
        get = self._option
        window = transposed_window(
            x.shape[2:], w.shape[2:], get("strides"), get("dilations"), get("pads"),
            getattr(self, "auto_pad", None), get("output_padding"), get("output_shape"),
        )  # fmt: skip
        terms = w.shape[0] * int(np.prod(w.shape[2:]))
        return convolve_transposed(x, w, window, getattr(self, "group", 1), exact_dtype(x, w, terms))


class IntegerMatMul(_IntegerLayer):
    """Quantized MatMul."""

    weight_axis = 1
    output_axis = -1

    def _accumulate(self, x: Array, w: Array) -> Array:
        dtype = exact_dtype(x, w, x.shape[-1])
        return np.asarray(np.matmul(x.astype(dtype), w.astype(dtype)))


class IntegerGemm(_IntegerLayer):
    """Quantized Gemm with alpha = beta = 1."""

    output_axis = -1

    def _weight_axis(self) -> int:
        return 0 if getattr(self, "transB", 0) else 1

    def _accumulate(self, x: Array, w: Array) -> Array:
        left, right = (x.T if getattr(self, "transA", 0) else x), (w.T if getattr(self, "transB", 0) else w)
        dtype = exact_dtype(left, right, left.shape[-1])
        return np.asarray(np.matmul(left.astype(dtype), right.astype(dtype)))
