"""The cheapest arithmetic that equals a row of thresholds for every accumulator: multiply, add, shift.

A requantization is `count = #{k : a >= thresholds[k]}`. Where it comes from a scale, some
`floor((m * a + b) / 2^s)`
gives the same: it must reach k + 1 at thresholds[k] and not before it, which are two inequalities per
threshold. The search proves them for all thresholds, so for all accumulators, and takes the multiplier with
the fewest non-zero digits (signed digits, each an adder), then the smallest shift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .graph import Ints

_MOST_SHIFT = 40
_EXTRA_SHIFTS = 4
_MOST_TRIED = 64
_HALVINGS = 80
_MOST_FACTOR = 1 << 24  # what da4ml's float32 matrices hold exactly


@dataclass(frozen=True)
class Scaling:
    """`count = clip(floor((factor * a + bias) / 2^shift), 0, levels)`."""

    factor: int
    bias: int
    shift: int

    @property
    def digits(self) -> int:
        """Non-zero signed digits of the factor."""
        return signed_digits(self.factor)


def signed_digits(value: int) -> int:
    """Return how many non-zero digits the shortest signed-digit form of `value` has.

    >>> [signed_digits(v) for v in (1, 3, 7, 11)]
    [1, 2, 2, 3]
    """
    magnitude = abs(value)
    return ((3 * magnitude) ^ magnitude).bit_count()


def find_scaling(thresholds: Ints, low: int, high: int) -> Scaling | None:
    """Return arithmetic that equals the thresholds on accumulators low..high, or None where there is none.

    Args:
        thresholds: ascending [levels]; values above `high` are never reached, those up to `low` always.
        low: least accumulator.
        high: largest accumulator.
    """
    level = np.arange(1, thresholds.size + 1, dtype=np.int64)
    reached, before = thresholds <= high, thresholds > low
    at = np.clip(thresholds, low, None)
    limits = (at[reached], level[reached]), (np.minimum(thresholds, high + 1)[before] - 1, level[before])
    slopes = _slopes(*limits)
    found: Scaling | None = None
    for shift in range(_MOST_SHIFT + 1):
        if found is not None and shift > found.shift + _EXTRA_SHIFTS:
            break
        for factor in _factors(slopes, shift):
            one = _bias(factor, shift, *limits)
            if one is not None and (found is None or one.digits < found.digits):
                found = one
    return found


def _slopes(up: tuple[Ints, Ints], down: tuple[Ints, Ints]) -> tuple[float, float]:
    """Return the interval of slopes for which some bias meets all inequalities (empty: first > last).

    How much room a slope leaves to the bias is a minimum of linear functions, so it is concave.
    """
    (at, level), (before, under) = up, down
    if at.size < 2 or before.size < 2:
        return 0.0, 1.0

    def room(slope: float) -> float:
        return float((under - slope * before).min() - (level - slope * at).max())

    rise = float(level[-1] - level[0])
    first, last = 0.0, 2 * (rise + 1) / max(float(before[-1] - before[0]), 1.0)
    best = _peak(room, first, last)
    if room(best) <= 0:
        return 1.0, 0.0
    return _edge(room, best, first), _edge(room, best, last)


def _peak(room: Callable[[float], float], first: float, last: float) -> float:
    for _ in range(_HALVINGS):
        third = (last - first) / 3
        if room(first + third) < room(last - third):
            first += third
        else:
            last -= third
    return (first + last) / 2


def _edge(room: Callable[[float], float], inside: float, outside: float) -> float:
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if room(middle) > 0 else (inside, middle)
    return inside


def _factors(slopes: tuple[float, float], shift: int) -> list[int]:
    least, most = (slope * 2.0**shift for slope in slopes)
    first, last = max(int(np.ceil(least)), 1), min(int(np.floor(most)), _MOST_FACTOR)
    if last - first < _MOST_TRIED:
        return list(range(first, last + 1))
    return sorted({int(v) for v in np.linspace(first, last, _MOST_TRIED)})


def _bias(factor: int, shift: int, up: tuple[Ints, Ints], down: tuple[Ints, Ints]) -> Scaling | None:
    """Return the roundest bias that meets all inequalities."""
    (at, level), (before, under) = up, down
    least = int(((level << shift) - factor * at).max()) if at.size else None
    most = int(((under << shift) - factor * before).min()) - 1 if before.size else None
    if least is None:
        least = most if most is not None else 0
    if most is None:
        most = least
    return Scaling(factor, _roundest(least, most), shift) if least <= most else None


def _roundest(least: int, most: int) -> int:
    """Return the value in [least, most] with the most trailing zero bits.

    >>> _roundest(5, 9)
    8
    """
    if least <= 0 <= most:
        return 0
    unit = 1
    while -(-least // (2 * unit)) * (2 * unit) <= most:
        unit *= 2
    return -(-least // unit) * unit
