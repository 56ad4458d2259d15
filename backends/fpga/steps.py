"""Monotone float arithmetic between an accumulator and its quantizer as integer thresholds, by bisection.

Every value is computed by the reference itself, so ties and float rounding are what docs/semantics.md says.
Where the reference's sum is a float that the integer accumulator does not determine to the last bit (units
that are no powers of two outside QDQ layers), each threshold is also tried with the largest rounding error
on its wrong side; those that would move are counted as unproven.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .graph import Ints

# Codes at accumulators: (acc [K, C], nudge -1 / 0 / +1 times the rounding error) -> q [K, C].
Codes = Callable[[Ints, int], Ints]


@dataclass(frozen=True, eq=False)
class Steps:
    """`q = start + step * #{k : sign[c] * acc >= thresholds[c, k]}`; see graph.Requant."""

    thresholds: Ints
    sign: Ints
    start: int
    step: int
    unproven: int

    @property
    def high(self) -> int:
        """The highest q."""
        return self.start + self.step * int(self.thresholds.shape[1])


def find_steps(codes: Codes, low: Ints, high: Ints, start: int, levels: int, step: int) -> Steps:
    """Return the thresholds of all levels that some accumulator in [low, high] ([C] each) reaches.

    `codes` must be monotone in acc per channel, rising or falling.
    """
    ends = codes(np.stack([low, high]), 0)
    sign = np.where(ends[1] < ends[0], -1, 1).astype(np.int64)
    least, most = np.where(sign > 0, low, -high), np.where(sign > 0, high, -low)
    wanted = start + step * np.arange(1, levels + 1, dtype=np.int64)[:, None]
    found = _bisect(codes, sign, least, most, wanted)
    unproven = _unproven(codes, sign, found, (least, most), wanted)
    reached, always = (found <= most).any(axis=1), (found <= least).all(axis=1)
    first = int(always.sum())
    kept = found[first : int(reached.sum())]
    return Steps(np.ascontiguousarray(kept.T), sign, start + step * first, step, unproven)


def _bisect(codes: Codes, sign: Ints, least: Ints, most: Ints, wanted: Ints) -> Ints:
    """Return [levels, C]: the least sign * acc whose code is at least `wanted`; most + 1 where none is."""
    shape = (wanted.shape[0], sign.size)
    below, reached = np.broadcast_to(least - 1, shape).copy(), np.broadcast_to(most + 1, shape).copy()
    while bool((reached - below > 1).any()):
        middle = np.clip((below + reached) // 2, least, most)
        yes = codes(sign * middle, 0) >= wanted
        open_ = reached - below > 1
        reached, below = np.where(open_ & yes, middle, reached), np.where(open_ & ~yes, middle, below)
    return reached


def _unproven(codes: Codes, sign: Ints, found: Ints, ends: tuple[Ints, Ints], wanted: Ints) -> int:
    """Count thresholds that the reference's rounding errors could move."""
    least, most = ends
    inside = (found <= most) & (found > least)
    at = np.clip(found, least + 1, most)
    falls = codes(sign * at, -1) < wanted
    falls |= codes(sign * at, 1) < wanted
    rises = codes(sign * (at - 1), -1) >= wanted
    rises |= codes(sign * (at - 1), 1) >= wanted
    return int((inside & (falls | rises)).sum())
