"""Threshold ladders: where a monotone function of an integer accumulator takes its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...compiler.ops.quant import ROUNDINGS
from .graph import NEVER, Integers, Ladder, Reals

Function: TypeAlias = Callable[[Integers], Integers]

# Relative error that float32 evaluation of a layer can add to a term: dequantizing data and weights (half an
# ulp each), the sum's rounding, the quantizer's division and zero point; doubled.
_FLOAT_ERROR = 2.0**-21
# The same where sums are exact: the sum's and the bias' rounding in float64.
_SUM_ERROR = 2.0**-50


@dataclass(frozen=True, eq=False)
class Quantizer:
    """What closes a layer, as the model writes it.

    Attributes:
        scale: float32 value.
        zero: zero point, whole.
        low, high: range of q - zero that the type allows.
        rounding: QONNX's name.
        by_quant: QONNX's Quant, which adds the zero point and clips before it rounds.
        floor, ceiling: clipping of the reals before it, by Relu or Clip.
    """

    scale: float
    zero: int
    low: int
    high: int
    rounding: str = "ROUND"
    by_quant: bool = False
    floor: float = -np.inf
    ceiling: float = np.inf

    def counts(self, real: Reals) -> Integers:
        """Return the counts of reals (rounded to float32 first), as the reference computes them."""
        x = np.clip(np.asarray(real, np.float32), np.float32(self.floor), np.float32(self.ceiling))
        steps = x / np.float32(self.scale)
        if not self.by_quant:
            return np.asarray(np.clip(np.rint(steps), self.low, self.high), np.int64)
        zero = np.float32(self.zero)
        limited = np.clip(steps + zero, np.float32(self.low + self.zero), np.float32(self.high + self.zero))
        return ROUNDINGS[self.rounding](limited).astype(np.int64) - self.zero

    def reachable(self) -> tuple[int, int]:
        """Return least and largest count that clipping leaves."""
        ends = self.counts(np.array([-np.inf, np.inf]))
        return int(ends[0]), int(ends[1])


@dataclass(frozen=True, eq=False)
class Sums:
    """What accumulators of a layer are worth.

    Attributes:
        low, high: int64 [channels or 1], least and largest accumulator.
        unit, offset: float64 [channels or 1]; real = accumulator * unit / divisor + offset.
        error: float64 [channels or 1], how far the model's own float arithmetic may be from that.
        exact: but for one rounding of the sum to float32 it is that.
    """

    low: Integers
    high: Integers
    unit: Reals
    offset: Reals
    error: Reals
    divisor: int = 1
    exact: bool = False


def integer_ladder(sums: Sums, quantizer: Quantizer, unit: npt.NDArray[np.float32]) -> Ladder:
    """Return the ladder of a quantized layer as docs/semantics.md defines it; exact for every input.

    Args:
        sums: bounds of accumulators that include the bias.
        quantizer: of the layer.
        unit: float32 [channels or 1], data scale times weight scale.
    """
    scale = np.float32(quantizer.scale)
    factor = (unit / scale).reshape(-1, 1)
    floor, ceiling = np.float32(quantizer.floor) / scale, np.float32(quantizer.ceiling) / scale

    def counts(total: Integers) -> Integers:
        steps = np.rint(np.clip(total.astype(np.float32) * factor, floor, ceiling))
        return np.asarray(np.clip(steps, quantizer.low, quantizer.high), np.int64)

    low, high = quantizer.reachable()
    return Ladder(
        low, search(counts, (low, high), sums.low, sums.high), 1.0 / factor[:, 0].astype(np.float64)
    )


def real_ladder(sums: Sums, quantizer: Quantizer) -> Ladder:
    """Return the ladder of a layer that the model computes in float, and how many steps that leaves open."""
    unit, offset = sums.unit.reshape(-1, 1), sums.offset.reshape(-1, 1)
    share = _SUM_ERROR if sums.exact else _FLOAT_ERROR
    error = (sums.error + share * np.abs(sums.offset)).reshape(-1, 1)

    def shifted(by: Reals) -> Function:
        return lambda total: quantizer.counts(total * unit / sums.divisor + offset + by)

    low, high = quantizer.reachable()
    zero = np.zeros_like(error)
    middle, early, late = (
        search(shifted(by), (low, high), sums.low, sums.high) for by in (zero, error, -error)
    )
    theta = quantizer.scale * sums.divisor / sums.unit.reshape(-1)
    return Ladder(low, middle, theta, int(np.count_nonzero(early != late)) if error.any() else 0)


def search(function: Function, counts: tuple[int, int], low: Integers, high: Integers) -> Integers:
    """Return for every channel the least accumulators at which a function reaches each count.

    Args:
        function: int64 [channels, n] -> int64 [channels, n], never falling along the accumulators.
        counts: least and largest count; the ladder starts one above the least.
        low: int64 [channels or 1], the least accumulators to look at.
        high: the largest.
    """
    wanted = np.arange(counts[0] + 1, counts[1] + 1)[None, :]
    low, high = np.broadcast_arrays(low, high)
    below = np.repeat(low.reshape(-1, 1) - 1, wanted.size, axis=1)
    above = np.repeat(high.reshape(-1, 1) + 1, wanted.size, axis=1)
    while bool(np.any(above - below > 1)):
        middle = (above + below) // 2
        reached = function(middle) >= wanted
        below, above = np.where(reached, below, middle), np.where(reached, middle, above)
    above = np.maximum(above, low.reshape(-1, 1))
    return np.where(above > high.reshape(-1, 1), NEVER, above)


def term_error(sums_of_terms: Integers, unit: Reals, exact: bool) -> Reals:
    """Return the bound of float rounding over terms whose absolute values add up to so many units."""
    return np.asarray(sums_of_terms * np.abs(unit) * (_SUM_ERROR if exact else _FLOAT_ERROR), np.float64)


def digits(scale: npt.NDArray[np.float32]) -> int:
    """Return how many significant bits scales have, at most."""
    mantissa = np.frexp(scale.astype(np.float64))[0] * 2.0**24
    whole = np.abs(mantissa).astype(np.int64)
    return 25 - min((int(item & -item).bit_length() for item in whole.reshape(-1) if item), default=24)


def climb(ladder: Ladder, total: Integers) -> Integers:
    """Return the counts of accumulators [samples, channels, ...]."""
    flat = np.moveaxis(total.reshape(*total.shape[:2], -1), 1, 0)
    rows = ladder.thresholds
    counts = [
        np.searchsorted(rows[min(index, len(rows) - 1)], channel, side="right")
        for index, channel in enumerate(flat)
    ]
    return np.moveaxis(np.asarray(counts, np.int64), 0, 1).reshape(total.shape) + ladder.low
