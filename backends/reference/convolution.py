"""Convolutions on NumPy arrays in the dtype they are given (float64, or float32 where that is exact).

Patches are gathered in pieces of bounded size and multiplied with the filters, so BLAS does the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from .windows import Window, make_window, pad_for, taps

Array = npt.NDArray[np.number]

# Bytes of patches handled at once.
_CHUNK_BYTES = 16 << 20


def convolve(x: Array, w: Array, window: Window, group: int, dtype: npt.DTypeLike, fill: int = 0) -> Array:
    """Return the convolution of x [N, C, ...] with w [M, C / group, ...], as [N, M, *out] of `dtype`.

    `fill` is the value of the padding (the zero point on integers).
    """
    kernel = w.astype(dtype, copy=False)
    part = _depthwise if w.shape[1] == 1 and group > 1 else _products
    result = np.empty((x.shape[0], w.shape[0], *window.out), dtype)
    for index in range(x.shape[0]):
        padded = pad_for(x[index : index + 1].astype(dtype, copy=False), window, fill)
        part(padded, kernel, window, group, result[index : index + 1])
    return result


def _products(x: Array, w: Array, window: Window, group: int, result: Array) -> None:
    """Gather the patch of every output of one sample, some rows of outputs at once; then one product."""
    reach = tuple(window.extent(axis) for axis in range(len(window.kernel)))
    assert x.shape[2:] == reach, f"a window over {reach} on an input of {x.shape[2:]}"
    depth = w.shape[1]
    weights = w.reshape(group, w.shape[0] // group, -1)
    taps_of = as_strided(
        x[0],
        (group, depth, *window.kernel, *window.out),
        (x.strides[1] * depth, x.strides[1], *_steps(x, window.dilations), *_steps(x, window.strides)),
        writeable=False,
    )
    row = x.itemsize * x.shape[1] * math.prod(window.kernel) * math.prod(window.out[1:])
    rows = max(1, _CHUNK_BYTES // max(row, 1))
    first = taps_of.ndim - len(window.out)
    for start in range(0, window.out[0] if window.out else 1, rows):
        patches = taps_of[(slice(None),) * first + (slice(start, start + rows),)]
        flat = patches.reshape(group, weights.shape[2], -1)
        place = result[0, :, start : start + rows]
        place[...] = np.matmul(weights, flat).reshape(place.shape)


def _steps(x: Array, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(stride * size for stride, size in zip(x.strides[2:], sizes, strict=True))


def _depthwise(x: Array, w: Array, window: Window, group: int, result: Array) -> None:
    """One input channel per group: multiply and add whole planes."""
    multiplier = w.shape[0] // group
    weights = w.reshape(group, multiplier, -1)
    total = np.zeros((1, group, multiplier, *window.out), x.dtype)
    spread = (1, group, multiplier) + (1,) * len(window.out)
    for index, (_, tap) in enumerate(taps(x, window)):
        total += tap[:, :, None] * weights[..., index].reshape(spread)
    result[...] = total.reshape(result.shape)


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
