"""Moments of rectified normal values, for statistics that no data were needed for.

For `z_i` normal with mean m and deviation s, `a_n = s^n E[relu^(n)(z)]` are the Hermite coefficients of relu:
`a_0 = m P(h) + s p(h)`, `a_1 = s P(h)`, `a_2 = s p(h)`, `a_3 = -s h p(h)`, `a_4 = s (h^2 - 1) p(h)`, with
`h = m / s`, p and P density and distribution of the standard normal. Two such values with correlation r
then have the covariance `sum_n r^n / n! a_n b_n` (Mehler's formula); what is left of the variance after four
terms is given to the fifth power, so that r = 1 gives the variance itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

_TERMS = 4


@dataclass(frozen=True)
class Rectified:
    """Expansion of `relu(z)` for channels with means and deviations.

    Attributes:
        mean: `[channels]`, `E[relu(z)]`.
        terms: `[4, channels]`, `a_n / sqrt(n!)`, n from 1.
        rest: `[channels]`, square root of the variance that the terms leave.
    """

    mean: Floats
    terms: Floats
    rest: Floats

    def covariance(self, other: Rectified, correlation: Floats) -> Floats:
        """`Cov[relu(z_i), relu(z_j)]` `[channels, other's channels]` for correlations of the same shape."""
        r = np.clip(correlation, -1.0, 1.0)
        total: Floats = r ** (_TERMS + 1) * np.outer(self.rest, other.rest)
        for n, (a, b) in enumerate(zip(self.terms, other.terms, strict=True), start=1):
            total = total + r**n * np.outer(a, b)
        return total


def rectified(mean: Floats, deviation: Floats) -> Rectified:
    """Expand `relu` of normal values `[channels]`; a deviation of zero is a constant."""
    s = np.maximum(deviation, 1e-12)
    h = mean / s
    density = np.exp(-0.5 * h**2) / math.sqrt(2 * math.pi)
    mass = np.array([0.5 * (1.0 + math.erf(v / math.sqrt(2))) for v in h])
    first = mean * mass + s * density
    variance = np.maximum((mean**2 + s**2) * mass + mean * s * density - first**2, 0.0)
    factors = (mass, density, -h * density, (h**2 - 1) * density)
    terms = np.stack([s * f / math.sqrt(math.factorial(n)) for n, f in enumerate(factors, start=1)])
    return Rectified(first, terms, np.sqrt(np.maximum(variance - np.square(terms).sum(axis=0), 0.0)))
