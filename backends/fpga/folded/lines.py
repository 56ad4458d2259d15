"""Requantization as a line: the smallest multiplier, bias and shift that equal thresholds everywhere.

`count = floor((factor * a + bias) / 2^shift)`, kept within 0 to the number of levels, must reach k + 1 at
`thresholds[k]` and not before it: two inequalities per threshold, so that a row is proven for every
accumulator. The unrolled engine looks for few adders (scaling.py), this one for few bits. Where no line
meets all of them: rounding half to even of powers of two, else a line that is exact or one too low, with the
thresholds in a table to compare with (`refine`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..graph import Floats, Ints
from ..scaling import half_even

_MOST_SHIFT = 40
_HALVINGS = 80
_MORE_SHIFTS = 4
_TRIED = 8
_FAR = 1 << 62
_NEVER = 1 << 40  # stands for no limit, exact in float64 beside any accumulator


@dataclass(frozen=True)
class Line:
    """One row; see the module and `rtl/requant.v`.

    Attributes:
        even: None, or the lowest bit of the quotient where 1 is added (half to even).
        refine: whether the thresholds must be compared with.
    """

    factor: int
    bias: int
    shift: int
    even: int | None = None
    refine: bool = False

    def shifted(self, shift: int) -> Line:
        """Return the same line with a larger shift."""
        more = shift - self.shift
        filler = (1 << more) - 1 if self.even is not None else 0  # so that adding 1 still carries
        return Line(self.factor << more, (self.bias << more) + filler, shift, self.even, self.refine)


@dataclass(frozen=True, eq=False)
class _Limits:
    """Limits `factor * at + bias >= up * 2^shift` and `factor * before + bias < down * 2^shift`."""

    at: Ints
    up: Ints
    before: Ints
    down: Ints


def find_lines(thresholds: Ints, low: Ints, high: Ints) -> list[Line | None]:
    """Return a line for each row of thresholds, None where there is none.

    Args:
        thresholds: ascending [rows, levels].
        low: [rows], least accumulator.
        high: [rows], largest accumulator.
    """
    lines = _fit(thresholds, low, high, 0)
    for i in (i for i, line in enumerate(lines) if line is None):
        found = half_even(thresholds[i], int(low[i]), int(high[i]))
        if found is not None:
            lines[i] = Line(found.factor, found.bias, found.shift, found.even)
    left = [i for i, line in enumerate(lines) if line is None]
    if left:
        near = _fit(thresholds[left], low[left], high[left], 1)
        for i, line in zip(left, near, strict=True):
            lines[i] = None if line is None else Line(line.factor, line.bias, line.shift, None, True)
    return lines


def _fit(thresholds: Ints, low: Ints, high: Ints, slack: int) -> list[Line | None]:
    """Return lines that are at most `slack` too low."""
    slopes = _slopes(thresholds, low, high, slack)
    return [
        _line(_limits(row, int(a), int(b), slack), float(least), float(most))
        for row, a, b, least, most in zip(thresholds, low, high, *slopes, strict=True)
    ]


def _limits(row: Ints, low: int, high: int, slack: int) -> _Limits:
    level = np.arange(1, row.size + 1, dtype=np.int64)
    reached, before = row <= high, row > low
    at = np.clip(row, low, None)[reached]
    return _Limits(at, level[reached] - slack, np.minimum(row, high + 1)[before] - 1, level[before])


def _slopes(thresholds: Ints, low: Ints, high: Ints, slack: int) -> tuple[Floats, Floats]:
    """Return, per row, the slopes between which some bias meets all limits; empty where least > most.

    How much room a slope leaves to the bias is a minimum of linear functions, so it is concave.
    """
    rows, levels = thresholds.shape
    if levels == 0:
        return np.zeros(rows), np.ones(rows)
    level = np.arange(1, levels + 1, dtype=np.float64)
    reached, before = thresholds <= high[:, None], thresholds > low[:, None]
    at = np.maximum(thresholds, low[:, None]).astype(np.float64)
    under = (np.minimum(thresholds, high[:, None] + 1) - 1).astype(np.float64)

    def room(slope: Floats) -> Floats:
        most = np.where(before, level - slope[:, None] * under, _NEVER).min(axis=1)
        least = np.where(reached, level - slack - slope[:, None] * at, -_NEVER).max(axis=1)
        return np.asarray(most - least)

    span = np.maximum((thresholds[:, -1] - thresholds[:, 0]).astype(np.float64), 1)
    first, last = np.zeros(rows), np.asarray(2 * (levels + 1 + slack) / span)
    best = _peak(room, first, last)
    none = room(best) <= 0
    least, most = _edge(room, best, first), _edge(room, best, last)
    return np.where(none, 1.0, least), np.where(none, 0.0, most)


def _peak(room: Callable[[Floats], Floats], first: Floats, last: Floats) -> Floats:
    for _ in range(_HALVINGS):
        third = (last - first) / 3
        rising = room(first + third) < room(last - third)
        first, last = np.where(rising, first + third, first), np.where(rising, last, last - third)
    return np.asarray((first + last) / 2)


def _edge(room: Callable[[Floats], Floats], within: Floats, outside: Floats) -> Floats:
    for _ in range(_HALVINGS):
        middle = (within + outside) / 2
        good = room(middle) > 0
        within, outside = np.where(good, middle, within), np.where(good, outside, middle)
    return np.asarray(within)


def _line(limits: _Limits, least: float, most: float) -> Line | None:
    """Return the line of the smallest shift, by exact integers."""
    if least > most:
        return None
    tried = 0
    for shift in range(_MOST_SHIFT + 1):
        first, last = max(int(np.ceil(least * 2.0**shift)), 1), int(np.floor(most * 2.0**shift))
        if first > last:
            continue
        for factor in _spread(first, last):
            bias = _bias(limits, factor, shift)
            if bias is not None:
                return Line(factor, bias, shift)
        tried += 1
        if tried > _MORE_SHIFTS:
            return None
    return None


def _spread(first: int, last: int) -> list[int]:
    """Return some of the factors from first to last, the middle ones first: they leave the most room."""
    middle = (first + last) // 2
    some = {int(v) for v in np.linspace(first, last, _TRIED)}
    return sorted(some | {middle}, key=lambda v: abs(v - middle))


def _bias(limits: _Limits, factor: int, shift: int) -> int | None:
    """Return the least bias that meets all limits, None where none does."""
    least = ((limits.up << shift) - factor * limits.at).max(initial=-_FAR)
    most = ((limits.down << shift) - 1 - factor * limits.before).min(initial=_FAR)
    if least > most:
        return None
    free = least == -_FAR
    return 0 if free and most == _FAR else int(most if free else least)
