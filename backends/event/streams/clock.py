"""Time stamps as sensors give them: they wrap, jitter, jump and start again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ..graph import Integers

# A step ahead beyond this is believed only if the next event agrees.
GAP_US = 10_000_000
# So many late events in a row mean that the sensor's clock started again.
RESTART = 1024
# Times are kept below this, so that no recording, however long, leaves 64 bits.
_MOST_US = 2**61


@dataclass(frozen=True)
class Clock:
    """Where a stream's time is.

    Attributes:
        period: time stamps start again at 0 here; None: never.
        raw: the last time stamp; None before the first.
        now: time of the last event, never falling.
        late: late events in a row.
        suspect: time stamp of an event far ahead that was dropped; the next one may bear it out.
        counts: `late` and `jumps` (dropped), `wraps`, `restarts`.
    """

    period: int | None = None
    raw: int | None = None
    now: int = 0
    late: int = 0
    suspect: int | None = None
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("late", "jumps", "wraps", "restarts"), 0)
    )

    def accept(self, stamps: Integers) -> tuple[Clock, Integers, Integers]:
        """Return the clock afterwards, which events are kept, and their times, never falling.

        Late: earlier than the event before. A jump: one event far ahead that the next one does not follow.
        """
        run = _Run(self)
        if not len(stamps):
            return self, np.zeros(0, np.int64), np.zeros(0, np.int64)
        steps = np.diff(stamps)
        edges = [0, *(np.flatnonzero((steps < 0) | (steps > GAP_US)) + 1).tolist(), len(stamps)]
        for first, end in pairwise(edges):
            run.take(stamps, first, end)
        return run.clock, np.concatenate(run.kept), np.concatenate(run.times)


class _Run:
    """Goes through stretches within which time stamps rise without gaps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = replace(clock, counts=dict(clock.counts))
        nothing = np.zeros(0, np.int64)
        self.kept, self.times = [nothing], [nothing]

    def take(self, stamps: Integers, first: int, end: int) -> None:
        """Judge one stretch."""
        clock, start = self.clock, int(stamps[first])
        if clock.raw is None:
            self._keep(stamps, first, end, start)
            return
        ahead = start - clock.raw
        if clock.period is not None:
            half = clock.period // 2
            ahead = (ahead + half) % clock.period - half
        if ahead > GAP_US and end - first == 1 and not self._borne_out(start):
            clock.counts["jumps"] += 1
            self.clock = replace(clock, suspect=start)
        elif ahead >= 0:
            clock.counts["wraps"] += start < clock.raw
            self._keep(stamps, first, end, clock.now + ahead)
        else:
            self._late(stamps, first, end, clock.now + ahead)

    def _borne_out(self, start: int) -> bool:
        suspect = self.clock.suspect
        return suspect is not None and 0 <= start - suspect <= GAP_US

    def _late(self, stamps: Integers, first: int, end: int, time: int) -> None:
        clock = self.clock
        wait = int(np.searchsorted(stamps[first:end] - stamps[first] + time, clock.now))
        missed = clock.late + wait
        if missed >= RESTART:
            clock.counts["restarts"] += 1
            self._keep(stamps, first, end, clock.now)
            return
        clock.counts["late"] += wait
        self.clock = replace(clock, late=missed)
        if first + wait < end:
            self._keep(stamps, first + wait, end, time + int(stamps[first + wait] - stamps[first]))

    def _keep(self, stamps: Integers, first: int, end: int, time: int) -> None:
        times = stamps[first:end] - stamps[first] + time % _MOST_US
        self.kept.append(np.arange(first, end))
        self.times.append(times)
        self.clock = replace(self.clock, raw=int(stamps[end - 1]), now=int(times[-1]), late=0, suspect=None)
