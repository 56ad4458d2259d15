"""Streamed statistics of activations and the ranges drawn from them. Memory does not grow with the data."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ...compiler.ir.quant import QuantSpec
from .scales import Range, affine

Method: TypeAlias = Literal["minmax", "moving", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "moving", "percentile", "entropy", "mse")
Floats: TypeAlias = npt.NDArray[np.floating]

_BINS = 4096
_CHUNK = 1 << 16  # elements binned at a time: the temporaries stay in the L2 cache
_LEAST_COUNTS = 100  # per integer level: fewer values do not show a distribution
_CLIPS = np.linspace(1.0, 0.02, 99)


class Extremes:
    """Smallest and largest value seen, and the means over samples of each sample's extremes."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._sums = np.zeros(2)
        self._count = 0

    def update(self, low: float, high: float) -> None:
        """Take in the extremes of one sample (or batch)."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._sums += (low, high)
        self._count += 1

    def range(self) -> Range:
        """Return the range of everything seen."""
        return Range(self.low, self.high)

    def mean_range(self) -> Range:
        """Return the moving average of the extremes: every sample counts alike, in any order."""
        low, high = self._sums / self._count
        return Range(float(low), float(high))


class Histogram:
    """Counts in bins `[i * width, (i + 1) * width)` for integer i; the width doubles when the range grows.

    Widths are powers of two and bins are aligned at zero, so bin i merges into bin i // 2 exactly: the
    counts are those of a histogram made with the final width from the start.
    """

    def __init__(self, bins: int = _BINS) -> None:
        self.extremes = Extremes()
        self.counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.first = 0  # index of the bin that counts[0] counts
        self.width = 0.0
        self._bins = bins

    def update(self, values: Floats) -> None:
        """Count the values of one sample (or batch)."""
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        self.extremes.update(low, high)
        self._make_room()
        inverse = np.float32(1.0 / self.width)
        for start in range(0, flat.size, _CHUNK):
            index = np.floor(flat[start : start + _CHUNK] * inverse).astype(np.int64)
            # A product that underflows to zero may leave the last bin; it is counted there.
            place = np.clip(index - self.first, 0, self.counts.size - 1)
            self.counts += np.bincount(place, minlength=self.counts.size)

    def _make_room(self) -> None:
        low, high = self.extremes.low, self.extremes.high
        if self.width == 0.0:
            # Half the bins at first leave room for one doubling of the range without a merge.
            span = max(high - low, abs(low), abs(high), 2.0**-100)
            self.width = 2.0 ** math.ceil(math.log2(2 * span / self._bins))
        while math.floor(high / self.width) - math.floor(low / self.width) >= self._bins:
            self._merge()
        first, last = math.floor(low / self.width), math.floor(high / self.width)
        if self.counts.size:
            first, last = min(first, self.first), max(last, self.first + self.counts.size - 1)
        grown = np.zeros(last - first + 1, np.int64)
        if self.counts.size:
            grown[self.first - first : self.first - first + self.counts.size] = self.counts
        self.first, self.counts = first, grown

    def _merge(self) -> None:
        self.width *= 2
        if self.counts.size:
            index = (self.first + np.arange(self.counts.size)) // 2
            merged = np.zeros(int(index[-1] - index[0]) + 1, np.int64)
            np.add.at(merged, index - index[0], self.counts)
            self.first, self.counts = int(index[0]), merged

    def centers(self) -> Floats:
        """Return the middle of every bin."""
        return (self.first + np.arange(self.counts.size) + 0.5) * self.width

    def quantile(self, fraction: float) -> float:
        """Return the value below which a fraction of the mass lies, linear within its bin."""
        mass = np.cumsum(self.counts)
        target = fraction * mass[-1]
        index = min(int(np.searchsorted(mass, target)), self.counts.size - 1)
        before = mass[index] - self.counts[index]
        inside = (target - before) / max(int(self.counts[index]), 1)
        value = (self.first + index + float(inside)) * self.width
        return min(max(value, self.extremes.low), self.extremes.high)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Return the range that holds `percentile` % of the values; a side without values beyond 0 is kept."""
    outside = 1.0 - percentile / 100.0
    seen = histogram.extremes
    if seen.low >= 0.0:
        return Range(seen.low, histogram.quantile(1.0 - outside))
    if seen.high <= 0.0:
        return Range(histogram.quantile(outside), seen.high)
    return Range(histogram.quantile(outside / 2), histogram.quantile(1.0 - outside / 2))


def mse_range(histogram: Histogram, spec: QuantSpec) -> Range:
    """Return the range whose grid has the least squared error over the histogram.

    A common bound on the magnitude comes first, then each end alone.
    """
    seen = histogram.extremes.range()

    def error(low: float, high: float) -> float:
        return _grid_error(histogram, Range(low, high), spec)

    bounded = min(_bounded(seen), key=lambda chosen: error(chosen.low, chosen.high))
    low, high = bounded.low, bounded.high
    high = min((high, *(f * seen.high for f in _CLIPS)), key=lambda h: error(low, h))
    low = min((low, *(f * seen.low for f in _CLIPS)), key=lambda v: error(v, high))
    return Range(float(low), float(high))


def _bounded(seen: Range) -> list[Range]:
    """Return the range with ever smaller bounds on the magnitude."""
    largest = max(-seen.low, seen.high)
    bounds = [float(fraction * largest) for fraction in _CLIPS]
    return [Range(max(seen.low, -bound), min(seen.high, bound)) for bound in bounds]


def _grid_error(histogram: Histogram, chosen: Range, spec: QuantSpec) -> float:
    scale, zero = affine(chosen, spec)
    x = histogram.centers()
    q = np.clip(np.rint(x / scale) + zero, spec.qmin, spec.qmax)
    return float((histogram.counts * np.square((q - zero) * scale - x)).sum())


def entropy_range(histogram: Histogram, spec: QuantSpec) -> Range:
    """Return the range with the least Kullback-Leibler divergence between values and their integers.

    As in 8-bit inference with TensorRT (Migacz, 2017): what is clipped counts in the outermost bins of the
    reference distribution, and the mass of one integer spreads evenly over its non-empty bins.
    """
    seen = histogram.extremes.range()
    levels = spec.qmax - spec.qmin + 1
    if histogram.counts.size <= levels or histogram.counts.sum() < _LEAST_COUNTS * levels:
        return seen
    return min(_bounded(seen), key=lambda chosen: _divergence(histogram, chosen, spec))


def _without_zeros(histogram: Histogram) -> Floats:
    """Return the counts with the bin at zero cut to its neighbours' height.

    A Relu puts half of the mass there. Zero is exact in every grid, so this peak says nothing about ranges,
    but spread over the bins of one integer it would outweigh everything else.
    """
    counts = histogram.counts.astype(np.float64)
    zero = -histogram.first
    if 0 <= zero < counts.size:
        neighbours = counts[max(zero - 1, 0) : zero + 2].copy()
        neighbours[min(zero, 1)] = 0.0
        counts[zero] = min(counts[zero], neighbours.max(initial=0.0))
    return counts


def _divergence(histogram: Histogram, chosen: Range, spec: QuantSpec) -> float:
    scale, zero = affine(chosen, spec)
    q = np.rint(histogram.centers() / scale) + zero
    inside = (q >= spec.qmin) & (q <= spec.qmax)
    counts = _without_zeros(histogram)
    if not inside.any():
        return math.inf
    first, last = int(inside.argmax()), int(inside.size - 1 - inside[::-1].argmax())
    reference = counts[first : last + 1].copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last + 1 :].sum()
    level = (q[first : last + 1] - q[first]).astype(np.int64)
    filled = reference > 0
    mass = np.bincount(level, weights=counts[first : last + 1])
    width = np.maximum(np.bincount(level, weights=filled), 1.0)
    spread = (mass / width)[level]
    p, s = reference[filled] / reference.sum(), spread[filled] / max(spread[filled].sum(), 1e-300)
    # A bin that holds only clipped mass has nothing in the quantized distribution: charge it as 1 count.
    return float((p * np.log(p / np.maximum(s, 1.0 / counts.sum()))).sum())


def range_by(histogram: Histogram, method: Method, spec: QuantSpec, percentile: float) -> Range:
    """Return the range that a method draws from a histogram."""
    if method == "minmax":
        return histogram.extremes.range()
    if method == "moving":
        return histogram.extremes.mean_range()
    if method == "percentile":
        return percentile_range(histogram, percentile)
    return entropy_range(histogram, spec) if method == "entropy" else mse_range(histogram, spec)
