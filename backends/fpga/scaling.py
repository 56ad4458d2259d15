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
_FEWEST = 3
_MOST_FACTOR = 1 << 24  # what da4ml's float32 matrices hold exactly


@dataclass(frozen=True)
class Scaling:
    """`count = clip(floor((factor * a + bias) / 2^shift), 0, levels)`.

    Attributes:
        even: None; else ties round half to even: where the lowest bit of `floor((a + bias) / 2^shift)` is
            `even`, 1 is added before the floor that counts.
    """

    factor: int
    bias: int
    shift: int
    even: int | None = None

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
    found = half_even(thresholds, low, high)
    if found is not None:
        return found
    for shift in range(_MOST_SHIFT + 1):
        if found is not None and shift > found.shift + _EXTRA_SHIFTS:
            break
        for factor in _factors(slopes, shift):
            one = _bias(factor, shift, *limits)
            if one is not None and (found is None or one.digits < found.digits):
                found = one
    return found


def half_even(thresholds: Ints, low: int, high: int) -> Scaling | None:
    """Return rounding of powers of two, half to even: thresholds lie 2^shift apart, every other one 1 later.

    At a tie `a + b` is a multiple of 2^shift; the count is then the even one of its neighbours. With
    `u = a + b - 1` nothing but a tie has all ones below the shift, so that adding 1 carries there alone.
    """
    inner = thresholds[(thresholds > low) & (thresholds <= high)]
    if inner.size < _FEWEST or inner.size != thresholds.size:
        return None
    for late in (0, 1):
        even = inner - (np.arange(1, inner.size + 1) % 2 == late)
        step = int(even[1] - even[0])
        if step >= 2 and step & (step - 1) == 0 and bool((np.diff(even) == step).all()):
            return Scaling(1, step - int(even[0]) - 1, step.bit_length() - 1, late)
    return None


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
