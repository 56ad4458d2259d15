"""Choices by time: measured once, recorded, repeated by a rebuild."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.timing import Decisions, Key, deciding, fastest, measured
from pared.compiler.timing_cache import TimingCache

KEY = Key("conv", "3x3 of 64 channels")
_ELSEWHERE = Isa("riscv64", ())


def _busy(steps: int) -> Callable[[], object]:
    return lambda: sum(range(steps))


def _options(made: list[str]) -> dict[str, Callable[[], Callable[[], object]]]:
    def ready(name: str, steps: int) -> Callable[[], object]:
        made.append(name)
        return _busy(steps)

    return {"slow": lambda: ready("slow", 20_000), "quick": lambda: ready("quick", 10)}


def _decisions(folder: Path, isa: Isa | None = None, recorded: dict[str, str] | None = None) -> Decisions:
    here = isa or host_isa()
    if not isinstance(here, Isa):
        pytest.skip(here.reason)
    return Decisions(here, recorded, cache=TimingCache(folder))


def test_the_faster_option_wins_and_is_recorded(tmp_path: Path) -> None:
    with deciding(_decisions(tmp_path)) as decisions:
        assert fastest(KEY, _options([])) == "quick"
    assert decisions.made == {KEY.text: "quick"}
    assert set(decisions.times[KEY.text]) == {"slow", "quick"}


def test_a_second_compilation_takes_times_from_the_cache(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        with deciding(_decisions(tmp_path)):
            assert fastest(KEY, _options(made)) == "quick"
    assert made == ["slow", "quick"]


def test_equal_layers_are_timed_once(tmp_path: Path) -> None:
    made: list[str] = []
    with deciding(_decisions(tmp_path)):
        assert fastest(KEY, _options(made)) == fastest(KEY, _options(made))
    assert made == ["slow", "quick"]


def test_a_rebuild_repeats_what_was_recorded(tmp_path: Path) -> None:
    made: list[str] = []
    with deciding(_decisions(tmp_path, recorded={KEY.text: "slow"})) as decisions:
        assert fastest(KEY, _options(made)) == "slow"
    assert (made, decisions.made) == ([], {KEY.text: "slow"})


def test_a_recorded_option_that_is_no_more_becomes_the_first(tmp_path: Path) -> None:
    with deciding(_decisions(tmp_path, recorded={KEY.text: "gone"})):
        assert fastest(KEY, _options([])) == "slow"


def test_nothing_is_timed_outside_of_a_compilation() -> None:
    made: list[str] = []
    assert fastest(KEY, _options(made)) == "slow"
    assert made == []


def test_nothing_is_timed_for_a_cpu_that_is_not_this_one(tmp_path: Path) -> None:
    made: list[str] = []
    with deciding(_decisions(tmp_path, _ELSEWHERE)):
        assert fastest(KEY, _options(made)) == "slow"
    assert made == []


def test_a_time_belongs_to_its_instruction_set(tmp_path: Path) -> None:
    with deciding(_decisions(tmp_path, Isa("x86_64", ("avx2",)))):
        assert measured(KEY, lambda: 1.0) == 1.0
        assert measured(KEY, lambda: 2.0) == 1.0
    with deciding(_decisions(tmp_path, Isa("x86_64", ("avx2", "fma")))):
        assert measured(KEY, lambda: 2.0) == 2.0
