"""Times candidates in interleaved rounds, on the device and from host to host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..meter import turn_order
from .candidate import Candidate, synchronize, wall_times_ms

# Runs before the first round, and before each turn.
_WARM, _WARM_TURN = 5, 3


@dataclass
class Times:
    """What one candidate took: medians per round, and of all runs, in ms."""

    device_rounds: list[float] = field(default_factory=list)
    host_rounds: list[float] = field(default_factory=list)
    device_all: list[float] = field(default_factory=list)
    host_all: list[float] = field(default_factory=list)

    def record(self) -> dict[str, object]:
        """Return medians, spread and counts."""
        return {
            "device_ms": statistics.median(self.device_all),
            "device_p10_ms": _quantile(self.device_all, 0.1),
            "device_p90_ms": _quantile(self.device_all, 0.9),
            "device_rounds_ms": self.device_rounds,
            "host_ms": statistics.median(self.host_all),
            "host_rounds_ms": self.host_rounds,
            "device_runs": len(self.device_all),
            "host_runs": len(self.host_all),
        }


def compare(
    candidates: Mapping[str, Candidate], *, rounds: int, seconds: float,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Times]:  # fmt: skip
    """Measure candidates in turn, A B C, C B A, ...: device times, then host times, in every turn.

    Args:
        candidates: by name.
        rounds: turns of each.
        seconds: for all of it, about; shared out evenly.
        progress: told whose turn it is.
    """
    turn = seconds / (2 * rounds * max(1, len(candidates)))
    counts = {}
    for name, candidate in candidates.items():
        progress(name)
        counts[name] = (_count(candidate.times_ms, turn), _count(_hosted(candidate), turn))
    found: dict[str, Times] = {name: Times() for name in candidates}
    for name in turn_order(list(candidates), rounds):
        progress(name)
        candidate, times = candidates[name], found[name]
        for measure, runs, medians, everything in (
            (candidate.times_ms, counts[name][0], times.device_rounds, times.device_all),
            (_hosted(candidate), counts[name][1], times.host_rounds, times.host_all),
        ):
            measure(_WARM_TURN)
            synchronize()
            taken = measure(runs)
            medians.append(statistics.median(taken))
            everything.extend(taken)
    return found


def _hosted(candidate: Candidate) -> Callable[[int], list[float]]:
    return lambda runs: wall_times_ms(candidate.host, runs)


def _count(measure: Callable[[int], list[float]], seconds: float) -> int:
    """Return how many runs fill a turn, by the wall time of warm-up runs."""
    measure(_WARM)
    begin = time.perf_counter()
    measure(_WARM)
    each = (time.perf_counter() - begin) / _WARM
    return max(3, min(500, int(seconds / max(each, 1e-7))))


def ratio(ours: Times, theirs: Times) -> dict[str, float]:
    """Return how many times as long theirs takes, host to host and on the device: medians of the rounds."""
    return {
        "host": statistics.median(b / a for a, b in zip(ours.host_rounds, theirs.host_rounds, strict=True)),
        "device": statistics.median(
            b / a for a, b in zip(ours.device_rounds, theirs.device_rounds, strict=True)
        ),
    }


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
