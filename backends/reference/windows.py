"""Geometry of sliding windows: pads, output sizes, and one strided view per kernel tap."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.number]


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes, everything per axis.

    Attributes:
        kernel: taps.
        strides: steps between outputs.
        dilations: steps between taps.
        begin: padding before; may be negative (cropping).
        end: padding after.
        out: output sizes.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    out: tuple[int, ...]

    def extent(self, axis: int) -> int:
        """Return the size of the padded input that the outputs read along `axis`."""
        reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        return (self.out[axis] - 1) * self.strides[axis] + reach


def make_window(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str | None = "NOTSET",
    ceil: bool = False,
) -> Window:
    """Resolve the ONNX attributes of a convolution or pooling over spatial sizes `size`.

    Raises:
        ValueError: the kernel is larger than the padded input.
    """
    rank = len(size)
    steps, spread = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    given = tuple(pads) if pads and auto_pad != "VALID" else (0,) * (2 * rank)
    return _window(tuple(size), tuple(kernel), steps, spread, given, auto_pad or "NOTSET", ceil)


@functools.lru_cache(4096)
def _window(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    steps: tuple[int, ...],
    spread: tuple[int, ...],
    given: tuple[int, ...],
    auto_pad: str,
    ceil: bool,
) -> Window:
    rank = len(size)
    reach = [d * (k - 1) + 1 for d, k in zip(spread, kernel, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = tuple(-(-n // s) for n, s in zip(size, steps, strict=True))
        total = [max((o - 1) * s + r - n, 0) for o, s, r, n in zip(out, steps, reach, size, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return Window(kernel, steps, spread, begin, end, out)
    begin, end = given[:rank], given[rank:]
    room = [n + b + e - r for n, b, e, r in zip(size, begin, end, reach, strict=True)]
    if min(room, default=0) < 0:
        raise ValueError(f"kernel {list(kernel)} is larger than the padded input {list(size)}")
    out = tuple((-(-m // s) if ceil else m // s) + 1 for m, s in zip(room, steps, strict=True))
    if ceil:  # a window must start inside the input or its left padding
        out = tuple(o - ((o - 1) * s >= n + b) for o, s, n, b in zip(out, steps, size, begin, strict=True))
    return Window(kernel, steps, spread, begin, end, out)


def pad_for(x: Array, window: Window, fill: float) -> Array:
    """Pad (or crop) the spatial axes of `x` [N, C, ...] so that every tap of every output is inside."""
    lead = x.ndim - len(window.kernel)
    keep, sizes, inner = _padding(x.shape[lead:], window)
    x = x[(slice(None),) * lead + keep]
    if sizes == x.shape[lead:]:
        return x
    # np.pad takes longer than a small convolution.
    padded = np.full((*x.shape[:lead], *sizes), fill, x.dtype)
    padded[(slice(None),) * lead + inner] = x
    return padded


@functools.lru_cache(4096)
def _padding(
    size: tuple[int, ...], window: Window
) -> tuple[tuple[slice, ...], tuple[int, ...], tuple[slice, ...]]:
    """Return what is kept of an input of spatial `size`, the padded sizes, and where in them it goes."""
    ends = [window.extent(i) - size[i] - window.begin[i] for i in range(len(size))]
    edges = list(zip(window.begin, size, ends, strict=True))
    keep = tuple(slice(max(-low, 0), n + min(high, 0)) for low, n, high in edges)
    widths = [
        (max(low, 0), k.stop - k.start, max(high, 0)) for (low, _, high), k in zip(edges, keep, strict=True)
    ]
    sizes = tuple(sum(width) for width in widths)
    return keep, sizes, tuple(slice(low, low + n) for low, n, _ in widths)


def box_sums(x: Array, window: Window) -> Array:
    """Return the sum of `x` [N, C, ...] under the window at every output, [N, C, *out]; padding counts 0.

    Axis by axis, so a window of k x k costs 2 k additions per output instead of k * k.
    """
    total = pad_for(x, window, 0)
    lead = x.ndim - len(window.kernel)
    for axis, (k, d, o, s) in enumerate(
        zip(window.kernel, window.dilations, window.out, window.strides, strict=True)
    ):
        cut = (slice(None),) * (lead + axis)
        parts = [total[(*cut, slice(t * d, t * d + (o - 1) * s + 1, s))] for t in range(k)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
    return total


def taps(padded: Array, window: Window) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield (tap index, view [N, C, *out]) for each kernel position, in row-major order."""
    lead = padded.ndim - len(window.kernel)
    for tap in itertools.product(*(range(k) for k in window.kernel)):
        cut = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, window.dilations, window.out, window.strides, strict=True)
        )
        yield tap, padded[(slice(None),) * lead + cut]
