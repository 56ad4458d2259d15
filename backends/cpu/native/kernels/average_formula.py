"""The arithmetic of a quantized average, and when it can be had from the sum of the bytes. No TVM in here.

Defined is: dequantize every byte in float32, average in float64, round to float32, divide by the output
scale, round, add the zero point. Summing the bytes in int32 is cheaper. It is taken when, for every
possible sum, the roundings of the defined way cannot move the result across a tie: decided when the model
is compiled. Where only some sums are that close to a tie, the kernel looks (`limit`) and does those as
defined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

UNIT = 2.0**-24
MOST_SUMS = 1 << 22
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AverageFormula:
    """How the bytes under a window become one.

    Attributes:
        x_scale, x_zero, y_scale, y_zero: quantization of input and output.
        by_sum: `rint(fma(float32(sum), gain, shift)) + y_zero` is exact for windows of `count` bytes.
        count: bytes under each window; 0 if that varies.
        limit: without `by_sum`, the sum gives the exact result where its steps are less than `limit` away
            from a whole number; 0 where that is never so.
    """

    x_scale: float
    x_zero: int
    y_scale: float
    y_zero: int
    by_sum: bool = False
    count: int = 0
    limit: float = 0.0

    @property
    def gain(self) -> float:
        """Return the steps per unit of the sum."""
        return float(np.float32(self.x_scale / self.y_scale / self.count))

    @property
    def shift(self) -> float:
        """Return the steps at a sum of 0."""
        return float(np.float32(-self.x_zero * self.x_scale / self.y_scale))


def average_formula(
    x_scale: float, x_zero: int, y_scale: float, y_zero: int, count: int = 0
) -> AverageFormula:
    """Return the cheapest exact formula; `count` 0 says that windows differ in size."""
    exact = AverageFormula(
        float(np.float32(x_scale)), x_zero, float(np.float32(y_scale)), y_zero, False, count
    )
    if not count or 255 * count >= MOST_SUMS:
        return exact
    cheap = AverageFormula(exact.x_scale, x_zero, exact.y_scale, y_zero, True, count)
    return cheap if _sums_suffice(cheap) else replace(exact, limit=_limit(exact))


def _steps(f: AverageFormula) -> tuple[Doubles, Doubles, Doubles]:
    """Return for every sum the real steps, how far the defined way may be off, and the steps by the sum."""
    sums = np.arange(255 * f.count + 1, dtype=np.float64)
    ratio = f.x_scale / f.y_scale
    real = (sums / f.count - f.x_zero) * ratio
    # Dequantizing rounds each byte, then the mean and the quotient are rounded once each.
    slack = UNIT * (255 * ratio + 2.5 * np.abs(real)) + 1e-12
    inner = (sums * np.float64(np.float32(f.gain)) + np.float64(np.float32(f.shift))).astype(np.float32)
    return real, slack, inner.astype(np.float64)


def _limit(f: AverageFormula) -> float:
    real, slack, inner = _steps(f)
    limit = 0.5 - float((slack + np.abs(inner - real)).max()) - 1e-6
    return limit if limit > 0.25 else 0.0


def _sums_suffice(f: AverageFormula) -> bool:
    real, slack, inner = _steps(f)
    low, high = np.rint(real - slack), np.rint(real + slack)
    found = np.clip(np.rint(inner) + f.y_zero, 0, 255)
    ends = [np.clip(end + f.y_zero, 0, 255) for end in (low, high)]
    return bool(np.array_equal(ends[0], ends[1]) and np.array_equal(found, ends[0]))
