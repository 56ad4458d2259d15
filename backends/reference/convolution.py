"""Convolutions on NumPy arrays in the dtype they are given (float64, or float32 where that is exact).

Samples are handled in groups that fit the cache; taps are matrix products, so BLAS does the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .windows import Window, make_window, pad_for, taps

Array = npt.NDArray[np.number]

# Bytes of patches handled at once.
_CHUNK_BYTES = 32 << 20
# Fewer input channels than this per group make thin products; gathering patches first is faster.
_THIN = 8


def convolve(x: Array, w: Array, window: Window, group: int, dtype: npt.DTypeLike, fill: int = 0) -> Array:
    """Return the convolution of x [N, C, ...] with w [M, C / group, ...], as [N, M, *out] of `dtype`.

    `fill` is the value of the padding (the zero point on integers).
    """
    kernel = w.astype(dtype, copy=False)
    result = np.empty((x.shape[0], w.shape[0], *window.out), dtype)
    step = _samples_at_once(x, w, window, np.dtype(dtype).itemsize)
    for start in range(0, x.shape[0], step):
        part = pad_for(x[start : start + step].astype(dtype, copy=False), window, fill)
        result[start : start + step] = _convolve_part(part, kernel, window, group)
    return result


def _samples_at_once(x: Array, w: Array, window: Window, itemsize: int) -> int:
    sample = int(x.shape[1]) * math.prod(window.out) * itemsize
    if w.shape[1] < _THIN:
        sample *= math.prod(window.kernel)
    return max(1, _CHUNK_BYTES // max(sample, 1))


def _convolve_part(x: Array, w: Array, window: Window, group: int) -> Array:
    samples, channels = x.shape[:2]
    outputs, depth = w.shape[:2]
    if depth == 1 and group > 1:
        return _depthwise(x, w, window, group)
    area = math.prod(window.out)
    weights = w.reshape(group, outputs // group, depth, -1)
    if depth < _THIN and weights.shape[-1] > 1:
        patches = np.stack([tap.reshape(samples, group, depth, area) for _, tap in taps(x, window)], axis=3)
        flat = patches.reshape(samples, group, -1, area)
        total = np.matmul(weights.reshape(group, outputs // group, -1), flat)
        return np.asarray(total).reshape(samples, outputs, *window.out)
    total = np.zeros((samples, group, outputs // group, area), x.dtype)
    for index, (_, tap) in enumerate(taps(x, window)):
        total += np.matmul(weights[..., index], tap.reshape(samples, group, channels // group, area))
    return total.reshape(samples, outputs, *window.out)


def _depthwise(x: Array, w: Array, window: Window, group: int) -> Array:
    """One input channel per group: multiply and add whole planes."""
    samples, multiplier = x.shape[0], w.shape[0] // group
    weights = w.reshape(group, multiplier, -1)
    total = np.zeros((samples, group, multiplier, *window.out), x.dtype)
    spread = (1, group, multiplier) + (1,) * len(window.out)
    for index, (_, tap) in enumerate(taps(x, window)):
        total += tap[:, :, None] * weights[..., index].reshape(spread)
    return total.reshape(samples, group * multiplier, *window.out)


def transposed_window(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str | None,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> Window:
    """Resolve the attributes of ConvTranspose; `begin` and `end` are cropped from the full result."""
    rank = len(size)
    steps, spread = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    extra = tuple(output_padding or (0,) * rank)
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(size, steps, spread, kernel, extra, strict=True)
    ]
    given = (
        tuple(pads) if pads and auto_pad not in ("VALID", "SAME_UPPER", "SAME_LOWER") else (0,) * (2 * rank)
    )
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = (
            list(output_shape)[-rank:] if output_shape else [n * s for n, s in zip(size, steps, strict=True)]
        )
        total = [max(f - o, 0) for f, o in zip(full, wanted, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        given = begin + end
        out = tuple(wanted)
    else:
        out = tuple(f - given[i] - given[rank + i] for i, f in enumerate(full))
    return Window(tuple(kernel), steps, spread, given[:rank], given[rank:], out)


def convolve_transposed(x: Array, w: Array, window: Window, group: int, dtype: npt.DTypeLike) -> Array:
    """Return the transposed convolution of x [N, C, ...] with w [C, M / group, ...] as [N, M, *out]."""
    samples, channels = x.shape[:2]
    size, depth = x.shape[2:], channels // group
    weights = w.astype(dtype, copy=False).reshape(group, depth, w.shape[1], -1)
    data = x.astype(dtype, copy=False).reshape(samples, group, depth, -1)
    full = [
        max((n - 1) * s + d * (k - 1) + 1, b + o)
        for n, s, d, k, b, o in zip(
            size, window.strides, window.dilations, window.kernel, window.begin, window.out, strict=True
        )
    ]
    total = np.zeros((samples, group * w.shape[1], *full), dtype)
    scatter = Window(window.kernel, window.strides, window.dilations, window.begin, window.end, tuple(size))
    for index, (_, place) in enumerate(taps(total, scatter)):
        spread = np.matmul(weights[..., index].swapaxes(1, 2), data)
        place += spread.reshape(samples, -1, *size)
    crop = tuple(slice(b, b + o) for b, o in zip(window.begin, window.out, strict=True))
    return total[(slice(None), slice(None), *crop)]


__all__ = ["Window", "convolve", "convolve_transposed", "make_window", "transposed_window"]
