"""Conv, ConvTranspose, Gemm and MatMul: sums in float64, one rounding; integers in int64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .base import Array, Kernel, accumulator
from .convolution import convolve, convolve_transposed, transposed_window
from .windows import make_window


def _with_bias(total: Array, bias: Array | None, dtype: np.dtype[np.generic]) -> Array:
    if bias is not None:
        total = total + bias.astype(total.dtype).reshape(1, -1, *(1,) * (total.ndim - 2))
    return np.asarray(total, dtype)


class Conv(Kernel):
    """ONNX Conv over any number of spatial axes."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        window = make_window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
        return (_with_bias(convolve(x, w, window, group or 1, accumulator(x.dtype)), b, x.dtype),)


class ConvTranspose(Kernel):
    """ONNX ConvTranspose over any number of spatial axes."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        window = transposed_window(
            x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad, output_padding, output_shape
        )
        return (_with_bias(convolve_transposed(x, w, window, group or 1, accumulator(x.dtype)), b, x.dtype),)


def gemm(a: Array, b: Array, c: Array | None, alpha: float, beta: float, dtype: npt.DTypeLike) -> Array:
    """Return `alpha * a @ b + beta * c` computed in `dtype`; a [m, k], b [k, n], c broadcasts to [m, n]."""
    total = np.asarray(np.matmul(a.astype(dtype), b.astype(dtype)) * np.asarray(alpha, dtype))
    return total if c is None else np.asarray(total + np.asarray(beta, dtype) * c.astype(dtype))


class Gemm(Kernel):
    """ONNX Gemm."""

    def _run(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        transA: int | None = None,
        transB: int | None = None,
    ) -> tuple[Array]:
        left, right = (a.T if transA else a), (b.T if transB else b)
        factors = (1.0 if alpha is None else float(alpha), 1.0 if beta is None else float(beta))
        return (gemm(left, right, c, *factors, accumulator(a.dtype)).astype(a.dtype),)


class MatMul(Kernel):
    """ONNX MatMul with NumPy's broadcasting."""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        dtype = accumulator(a.dtype)
        return (np.asarray(np.matmul(a.astype(dtype), b.astype(dtype)), a.dtype),)
