"""How far one array is from another: the largest difference, and the signal-to-noise ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .backend import Array

# Kinds of NumPy dtypes that have no differences; bfloat16 and the like are "V" and have.
_TEXT = "OUS"


def largest_difference(got: Array, want: Array) -> float:
    """Return max|got - want|; infinite for another shape or text, or where only one is NaN or infinite."""
    if got.shape != want.shape:
        return math.inf
    if got.dtype.kind in _TEXT or want.dtype.kind in _TEXT:
        return 0.0 if bool(np.array_equal(got, want)) else math.inf
    # Differences of 64-bit integers beyond 2^53 are rounded, but equal stays equal.
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.maximum(np.abs(a - b), np.finfo(np.float64).tiny))
    return math.inf if np.isnan(difference).any() else float(difference.max(initial=0.0))


@dataclass
class Sqnr:
    """Sums signal and noise over arrays; SQNR = sum want^2 / sum (got - want)^2.

    Attributes:
        signal: sum of squares of the finite wanted values.
        noise: sum of squared differences.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, want: Array, got: Array) -> float:
        """Take two arrays of one shape; return their largest absolute difference.

        Equal infinities (masks of attention) and equal NaN are neither signal nor noise.
        """
        if not want.size:
            return 0.0
        exact = want.astype(np.float64)
        reference = np.where(np.isfinite(exact), exact, 0.0)
        with np.errstate(invalid="ignore"):
            difference = np.where(want == got, 0.0, got.astype(np.float64) - exact)
        both_nan = np.isnan(exact) & np.isnan(got)
        difference = np.where(both_nan, 0.0, np.where(np.isnan(difference), np.inf, difference))
        self.signal += float(np.vdot(reference, reference))
        self.noise += float(np.vdot(difference, difference))
        return float(np.abs(difference).max())

    @property
    def ratio(self) -> float:
        """Noise-to-signal ratio; infinite for noise without signal."""
        return 0.0 if self.noise == 0 else self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def sqnr_db(self) -> float:
        """10 log10 of signal over noise; infinite when equal, minus infinite for noise without signal."""
        if self.noise == 0:
            return math.inf
        return -10 * math.log10(self.ratio) if 0 < self.ratio < math.inf else -math.inf
