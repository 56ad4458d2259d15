"""Float formulas that climb ladders: `rint(accumulator * factor + shift)`, proven step by step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .graph import NEVER, Integers, Ladder

Floats = npt.NDArray[np.float32]


def formula(ladder: Ladder, channels: int, bounds: tuple[Integers, Integers]) -> tuple[Floats, Floats] | None:
    """Return float32 factor and shift [channels] that give a ladder's counts, or None where none is found.

    Float products, sums and rint never fall along the accumulators, so that a formula which is right on both
    sides of every threshold is right everywhere between.

    Args:
        ladder: what to reproduce.
        channels: how many.
        bounds: least and largest accumulator, int64 [channels] each.
    """
    rows = np.broadcast_to(ladder.thresholds, (channels, ladder.thresholds.shape[1]))
    factor = np.broadcast_to((1.0 / ladder.theta).astype(np.float32), (channels,))
    counts = np.arange(ladder.low + 1, ladder.high + 1)[None, :]
    for shift in (np.zeros(channels, np.float32), _middle(rows, factor, counts, bounds[0])):
        if _proven(rows, factor, shift, counts, bounds):
            return np.ascontiguousarray(factor), shift
    return None


def _middle(rows: Integers, factor: Floats, counts: Integers, low: Integers) -> Floats:
    """Return shifts in the middle of what the thresholds allow."""
    real = factor.astype(np.float64)[:, None]
    reached = rows < NEVER
    least = np.where(reached, counts - 0.5 - rows * real, -np.inf).max(axis=1)
    most = np.where(reached & (rows > low[:, None]), counts - 0.5 - (rows - 1) * real, np.inf).min(axis=1)
    both = np.isfinite(least) & np.isfinite(most)
    middle = np.where(both, (np.where(both, least, 0) + np.where(both, most, 0)) / 2, 0)
    return middle.astype(np.float32)


def _proven(
    rows: Integers, factor: Floats, shift: Floats, counts: Integers, bounds: tuple[Integers, Integers]
) -> bool:
    def steps(total: Integers) -> npt.NDArray[np.float32]:
        return np.asarray(np.rint(total.astype(np.float32) * factor[:, None] + shift[:, None]), np.float32)

    least, most = bounds[0][:, None], bounds[1][:, None]
    at, before = np.clip(rows, least, most), np.clip(rows - 1, least, most)
    reached = (steps(at) >= counts) | (rows > most)
    waiting = (steps(before) < counts) | (rows - 1 < least)
    return bool(np.all(reached & waiting))
