"""Latency of anything callable: distributions and fair comparisons. Knows nothing of models or artifacts."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..compiler.records import Metric, Origin

Run = Callable[[], object]
Progress = Callable[[str, int, int], None]
PERCENTILES = (50.0, 90.0, 99.0)


@dataclass(frozen=True)
class Latency:
    """Distribution of the wall time of single runs, in milliseconds.

    Attributes:
        percentiles: `p50`, `p90`, ... by linear interpolation, as NumPy does.
        std_ms: sample standard deviation; 0 for a single run.
        cpu_ms: mean CPU time of the whole process per run; above `mean_ms` when several threads work.
        how: how it was taken.
    """

    runs: int
    min_ms: float
    median_ms: float
    mean_ms: float
    std_ms: float
    percentiles: Mapping[str, float]
    cpu_ms: float
    how: str

    def metrics(self) -> tuple[Metric, ...]:
        """Return the distribution as metrics with unit and origin."""
        named = {f"latency_{key}": value for key, value in self.percentiles.items()}
        named |= {
            "latency_min": self.min_ms,
            "latency_median": self.median_ms,
            "latency_mean": self.mean_ms,
            "latency_std": self.std_ms,
        }
        named["cpu_time_mean"] = self.cpu_ms
        return tuple(Metric(name, value, "ms", Origin.MEASURED, self.how) for name, value in named.items())


@dataclass(frozen=True)
class Ratio:
    """How many times as long `candidate` takes as `base`: median, least and greatest over the rounds."""

    candidate: str
    base: str
    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Comparison:
    """Candidates measured in turn, so that a slow spell of the machine hits all of them.

    Attributes:
        latencies: by candidate, over all rounds.
        round_medians_ms: by candidate, one median per round.
    """

    latencies: Mapping[str, Latency]
    round_medians_ms: Mapping[str, tuple[float, ...]]

    def ratio(self, candidate: str, base: str) -> Ratio:
        """Return the ratio of per-round medians; below 1 means `candidate` is faster."""
        pairs = zip(self.round_medians_ms[candidate], self.round_medians_ms[base], strict=True)
        ratios = [a / b for a, b in pairs]
        return Ratio(candidate, base, statistics.median(ratios), min(ratios), max(ratios), len(ratios))

    def fastest(self) -> str:
        """Return the candidate with the least median of its round medians; the first one wins a tie."""
        return min(self.round_medians_ms, key=lambda name: statistics.median(self.round_medians_ms[name]))


def measure_latency(
    run: Run,
    *,
    iterations: int = 100,
    warmup: int = 10,
    duration: float | None = None,
    percentiles: Sequence[float] = PERCENTILES,
) -> Latency:
    """Measure one callable; see `compare_latency` for the arguments."""
    compared = compare_latency(
        {"run": run},
        rounds=1,
        iterations=iterations,
        warmup=warmup,
        duration=duration,
        percentiles=percentiles,
    )
    return compared.latencies["run"]


def compare_latency(
    candidates: Mapping[str, Run],
    *,
    rounds: int = 5,
    iterations: int = 100,
    warmup: int = 10,
    duration: float | None = None,
    limit: float | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    progress: Progress | None = None,
) -> Comparison:
    """Measure candidates in interleaved rounds: A B C, C B A, A B C, ...

    Args:
        candidates: name -> callable that does one inference.
        rounds: how often each candidate has its turn.
        iterations: measured runs per candidate, spread over the rounds (at least one per round).
        warmup: unmeasured runs before the first round; one more precedes each later turn.
        duration: go on until each candidate was measured this many seconds, even beyond `iterations`.
        limit: seconds that everything may take, estimated from the warm-up; fewer runs are made to keep it.
        percentiles: which percentiles to report, 0..100.
        progress: called as `progress("measure", turns done, turns in all)`.
    """
    assert candidates, "nothing to compare"
    assert min(rounds, iterations, warmup + 1) >= 1, "rounds and iterations start at 1, warmup at 0"
    per_turn = _runs_per_turn(candidates, rounds, iterations, warmup, limit)
    seconds = (duration or 0.0) / rounds
    turns: dict[str, list[_Turn]] = {name: [] for name in candidates}
    for done, name in enumerate(turn_order(list(candidates), rounds)):
        turns[name].append(_turn(candidates[name], per_turn[name], seconds))
        if progress is not None:
            progress("measure", done + 1, rounds * len(candidates))
    return Comparison(
        {name: _latency(found, warmup, percentiles) for name, found in turns.items()},
        {name: tuple(statistics.median(t.wall_ms) for t in found) for name, found in turns.items()},
    )


def turn_order(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield names round by round, every other round backwards, so that a steady drift cancels out.

    >>> list(turn_order(["a", "b"], 3))
    ['a', 'b', 'b', 'a', 'a', 'b']
    """
    for index in range(rounds):
        yield from names if index % 2 == 0 else reversed(names)


@contextlib.contextmanager
def pinned(threads: int | None) -> Iterator[tuple[int, ...]]:
    """Keep this thread, and threads it starts, on the first `threads` usable cores; yields their numbers.

    Yields () where the system cannot pin or `threads` is None. Sessions must be made inside: worker threads
    inherit the cores of the thread that starts them.
    """
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:threads]
    os.sched_setaffinity(0, cores)
    try:
        yield tuple(cores)
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector out of what is timed; afterwards it is as it was."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class _Turn:
    wall_ms: list[float]
    cpu_ms: float  # of all runs together


def _runs_per_turn(
    candidates: Mapping[str, Run], rounds: int, iterations: int, warmup: int, limit: float | None
) -> dict[str, int]:
    """Warm every candidate up and return how often to run it per turn."""
    wanted = math.ceil(iterations / rounds)
    if limit is None:
        for run in candidates.values():
            _warm_up(run, warmup, math.inf)
        return dict.fromkeys(candidates, wanted)
    # A tenth of the time for warming up; each turn then adds one run of its own.
    turn = 0.9 * limit / (rounds * len(candidates))
    typical = {
        n: _warm_up(run, max(warmup, 1), 0.1 * limit / len(candidates)) for n, run in candidates.items()
    }
    return {name: max(1, min(wanted, int(turn / seconds) - 1)) for name, seconds in typical.items()}


def _warm_up(run: Run, runs: int, limit: float) -> float:
    """Run up to `runs` times, stop after `limit` seconds; return the seconds of the last run."""
    start = last = time.perf_counter()
    spent = 0.0
    for _ in range(runs):
        run()
        now = time.perf_counter()
        spent, last = now - last, now
        if now - start > limit:
            break
    return max(spent, 1e-9)


def _turn(run: Run, runs: int, seconds: float) -> _Turn:
    """Run once unmeasured, then `runs` times, and on until `seconds` have passed."""
    run()
    with uncollected():
        return _timed(run, runs, seconds)


def _timed(run: Run, runs: int, seconds: float) -> _Turn:
    clock = time.perf_counter_ns
    wall: list[float] = []
    cpu_before, end = time.process_time_ns(), clock() + int(seconds * 1e9)
    while len(wall) < runs or clock() < end:
        before = clock()
        run()
        wall.append((clock() - before) / 1e6)
    return _Turn(wall, (time.process_time_ns() - cpu_before) / 1e6)


def _latency(turns: Sequence[_Turn], warmup: int, percentiles: Sequence[float]) -> Latency:
    wall = np.array([ms for turn in turns for ms in turn.wall_ms])
    return Latency(
        runs=len(wall),
        min_ms=float(wall.min()),
        median_ms=float(np.median(wall)),
        mean_ms=float(wall.mean()),
        std_ms=float(wall.std(ddof=1)) if len(wall) > 1 else 0.0,
        percentiles={f"p{p:g}": float(np.percentile(wall, p)) for p in percentiles},
        cpu_ms=sum(turn.cpu_ms for turn in turns) / len(wall),
        how=f"wall time of {len(wall)} single runs, {len(turns)} interleaved rounds, {warmup} warm-up runs",
    )
