"""The latency meter: order, counts and statistics. Nothing here asserts how fast anything is."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import numpy as np
import pytest

from pared.bench import meter
from pared.bench.meter import (
    Comparison,
    Latency,
    compare_latency,
    measure_latency,
    pinned,
    turn_order,
    uncollected,
)
from pared.compiler.records import Origin


class Clock:
    """A clock that stands still until a run lets time pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        monkeypatch.setattr("time.perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr("time.perf_counter", lambda: self.now_ns / 1e9)
        monkeypatch.setattr("time.process_time_ns", lambda: 2 * self.now_ns)

    def taking(self, *ms: float) -> Callable[[], None]:
        costs = iter(list(ms) * 10_000)

        def run() -> None:
            self.now_ns += round(next(costs) * 1e6)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_turns_alternate_their_direction() -> None:
    assert "".join(turn_order("abc", 3)) == "abccbaabc"


def test_candidates_take_turns_in_that_order() -> None:
    seen: list[str] = []
    compare_latency(
        {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=2, iterations=4, warmup=0
    )
    # Each turn: one unmeasured run, then 4 / 2 measured ones.
    assert "".join(seen) == "aaa" + "bbb" + "bbb" + "aaa"


def test_warm_up_runs_are_not_measured(clock: Clock) -> None:
    slow_start = clock.taking(*[500.0] * 4, *[1.0] * 10)
    latency = measure_latency(slow_start, iterations=10, warmup=3)
    assert latency.runs == 10
    assert latency.mean_ms == 1.0


def test_percentiles_are_those_of_numpy(clock: Clock) -> None:
    costs = list(np.random.default_rng(0).permutation(np.arange(1, 101, dtype=float)))
    latency = measure_latency(
        clock.taking(1.0, *costs), iterations=100, warmup=0, percentiles=(50, 90, 99, 99.9)
    )
    want = {f"p{p:g}": float(np.percentile(costs, p)) for p in (50, 90, 99, 99.9)}
    assert latency.percentiles == pytest.approx(want, rel=1e-9)
    assert latency.std_ms == pytest.approx(np.std(costs, ddof=1), rel=1e-9)
    assert (latency.min_ms, latency.median_ms, latency.mean_ms) == (1.0, 50.5, pytest.approx(50.5))


def test_cpu_time_is_per_run(clock: Clock) -> None:
    assert measure_latency(clock.taking(3.0), iterations=5, warmup=1).cpu_ms == pytest.approx(6.0)


def test_duration_goes_on_beyond_the_iterations(clock: Clock) -> None:
    assert measure_latency(clock.taking(10.0), iterations=2, warmup=0, duration=1.0).runs == 100


def test_iterations_go_on_beyond_the_duration(clock: Clock) -> None:
    assert measure_latency(clock.taking(10.0), iterations=30, warmup=0, duration=0.05).runs == 30


def test_a_limit_makes_fewer_runs(clock: Clock) -> None:
    compare_latency(
        {"a": clock.taking(10.0), "b": clock.taking(30.0)}, rounds=2, iterations=1000, warmup=10, limit=4.0
    )
    assert clock.now_ns / 1e9 <= 4.0


def test_a_limit_that_is_not_reached_changes_nothing(clock: Clock) -> None:
    compared = compare_latency({"a": clock.taking(1.0)}, rounds=2, iterations=20, warmup=2, limit=10.0)
    assert compared.latencies["a"].runs == 20


def test_a_limit_leaves_one_run_per_turn(clock: Clock) -> None:
    compared = compare_latency({"a": clock.taking(9000.0)}, rounds=3, iterations=30, warmup=5, limit=1.0)
    assert compared.latencies["a"].runs == 3


def test_ratios_are_taken_round_by_round(clock: Clock) -> None:
    # The machine slows down fourfold in the second of three rounds, for both.
    a, b = clock.taking(*[1.0] * 3, *[4.0] * 3, *[1.0] * 3), clock.taking(*[2.0] * 3, *[8.0] * 3, *[2.0] * 3)
    compared = compare_latency({"a": a, "b": b}, rounds=3, iterations=6, warmup=0)
    ratio = compared.ratio("b", "a")
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (2.0, 2.0, 2.0, 3)
    assert compared.round_medians_ms == {"a": (1.0, 4.0, 1.0), "b": (2.0, 8.0, 2.0)}


def test_the_fastest_has_the_least_median_of_medians() -> None:
    latency = Latency(1, 0, 0, 0, 0, {}, 0, "")
    rounds = {"a": (1.0, 9.0, 9.0), "b": (3.0, 3.0, 50.0)}
    assert Comparison(dict.fromkeys(rounds, latency), rounds).fastest() == "b"


def test_progress_counts_turns() -> None:
    seen: list[tuple[str, int, int]] = []
    compare_latency(
        {"a": int, "b": int}, rounds=2, iterations=2, warmup=0, progress=lambda *step: seen.append(step)
    )
    assert seen == [("measure", done, 4) for done in (1, 2, 3, 4)]


def test_an_error_in_a_candidate_passes_through_and_collection_is_back_on() -> None:
    results = iter([1, 0])  # of the run that is not measured, and of the first that is
    with pytest.raises(ZeroDivisionError):
        measure_latency(lambda: 1 // next(results), iterations=1, warmup=0)
    assert gc.isenabled()


def test_nothing_is_collected_while_runs_are_measured() -> None:
    seen: list[bool] = []
    measure_latency(lambda: seen.append(gc.isenabled()), iterations=2, warmup=0)
    assert seen == [True, False, False]


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_nothing_to_compare_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        compare_latency({})


def test_metrics_carry_unit_origin_and_method() -> None:
    metrics = {m.name: m for m in measure_latency(int, iterations=3, warmup=1).metrics()}
    assert {"latency_p50", "latency_p90", "latency_p99", "latency_min", "cpu_time_mean"} <= metrics.keys()
    assert all(
        m.unit == "ms" and m.origin is Origin.MEASURED and "3 single runs" in m.how for m in metrics.values()
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")
def test_pinning_holds_inside_and_is_undone_after() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
    assert os.sched_getaffinity(0) == before


def test_without_a_thread_count_nothing_is_pinned() -> None:
    with pinned(None) as cores:
        assert cores == ()


def test_the_default_percentiles_are_the_usual_three() -> None:
    assert meter.PERCENTILES == (50, 90, 99)
