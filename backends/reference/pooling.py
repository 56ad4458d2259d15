"""MaxPool, AveragePool and the global ones, vectorised over samples, channels and positions."""

from __future__ import annotations

import numpy as np

from .base import Array, Kernel, accumulator, padding_fill
from .windows import Window, make_window, pad_for, taps


class MaxPool(Kernel):
    """ONNX MaxPool with its optional indices."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        storage_order: int | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array, ...]:
        assert kernel_shape is not None, "MaxPool requires kernel_shape"
        window = make_window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
        if len(self.onnx_node.output) > 1 and self.onnx_node.output[1]:
            return _largest_with_index(x, window, column_major=bool(storage_order))
        return (_largest(x, window),)


def _largest_with_index(x: Array, window: Window, column_major: bool) -> tuple[Array, Array]:
    """Return the maxima and where the first of each is in the flattened `x`."""
    places = np.arange(x[0, 0].size).reshape(x.shape[2:], order="F" if column_major else "C")
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * len(window.out))
    values = taps(pad_for(x, window, padding_fill(x.dtype)), window)
    positions = taps(pad_for(places[None, None], window, 0), window)
    best = next(values)[1].copy()
    index = np.broadcast_to(next(positions)[1], best.shape).copy()
    for (_, value), (_, position) in zip(values, positions, strict=True):
        larger = value > best
        best, index = np.where(larger, value, best), np.where(larger, position, index)
    return best, np.asarray(index + planes * places.size, np.int64)


def _largest(x: Array, window: Window) -> Array:
    padded = pad_for(x, window, padding_fill(x.dtype))
    views = taps(padded, window)
    result = next(views)[1].copy()
    for _, view in views:
        np.maximum(result, view, out=result)
    return result


class AveragePool(Kernel):
    """ONNX AveragePool."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        assert kernel_shape is not None, "AveragePool requires kernel_shape"
        window = make_window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
        total = np.zeros((*x.shape[:2], *window.out))
        for _, view in taps(pad_for(x, window, 0), window):
            total += view
        return (np.asarray(total / _counts(x.shape[2:], window, bool(count_include_pad)), x.dtype),)


def _counts(size: tuple[int, ...], window: Window, with_pad: bool) -> Array:
    """Count the cells under each window; cells past the end padding (ceil mode) never count."""
    ones = np.ones((1, 1, *size))
    if with_pad:
        pads = [(max(b, 0), max(e, 0)) for b, e in zip(window.begin, window.end, strict=True)]
        ones = np.pad(ones, [(0, 0), (0, 0), *pads], constant_values=1)
        none = (0,) * len(size)
        window = Window(window.kernel, window.strides, window.dilations, none, none, window.out)
    count: Array = np.zeros((1, 1, *window.out))
    for _, view in taps(pad_for(ones, window, 0), window):
        count = count + view
    return np.maximum(count, 1)


class GlobalAveragePool(Kernel):
    """ONNX GlobalAveragePool."""

    def _run(self, x: Array) -> tuple[Array]:
        axes = tuple(range(2, x.ndim))
        return (
            np.asarray(np.mean(x, axis=axes, keepdims=True, dtype=accumulator(np.dtype(float))), x.dtype),
        )


class GlobalMaxPool(Kernel):
    """ONNX GlobalMaxPool."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.asarray(np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)),)
