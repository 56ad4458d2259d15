"""Energy, clocks and temperature of a GPU, on an NVML that is none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import pared.bench.nvml as nvml
from pared.bench.nvml import energy_metrics, state_metrics

BUS = "0000:10:00.0"


class Fake:
    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.fake_bus.restype = ctypes.c_char_p

    def readings(self, values: Sequence[int]) -> None:
        self._c.fake_readings(len(values), (ctypes.c_ulonglong * len(values))(*values))

    def refuse(self, code: int) -> None:
        self._c.fake_refuse(code)

    def unsupported(self, code: int) -> None:
        self._c.fake_unsupported(code)

    @property
    def bus(self) -> str:
        return self._c.fake_bus().decode()

    @property
    def open(self) -> int:
        return int(self._c.fake_open())


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    made = tmp_path_factory.mktemp("nvml") / "nvml.so"
    source = Path(__file__).parent / "fake_nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source], check=True)
    return made


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    own = Path(shutil.copy(library, tmp_path / "libnvidia-ml-fake.so"))
    monkeypatch.setenv("PARED_NVML", str(own))
    return Fake(own)


class Clock:
    """Time that passes where somebody sleeps or runs, and nowhere else."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(nvml, "time", found)
    return found


def test_idle_power_is_measured_before_and_subtracted(fake: Fake, clock: Clock) -> None:
    """100 W for two seconds of idling; then 4 runs of half a second at 300 W: 100 J above idle each."""
    fake.readings([1000, 201_000, 201_000, 801_000])

    def run() -> int:
        clock.now += 0.5
        return 1

    energy, idle = energy_metrics(BUS, run, seconds=2.0)
    assert (idle.name, idle.unit, idle.value) == ("gpu_idle_power", "W", pytest.approx(100, rel=0.02))
    assert (energy.name, energy.unit) == ("gpu_energy_per_run", "mJ")
    assert energy.value == pytest.approx(100_000, rel=0.02)
    assert "4 runs" in energy.how
    assert "subtracted" in energy.how
    assert (fake.bus, fake.open) == (BUS, 0)


def test_energy_below_idle_is_no_figure(fake: Fake, clock: Clock) -> None:
    fake.readings([0, 100_000, 100_000, 110_000])
    energy, idle = energy_metrics(BUS, lambda: (clock.sleep(0.5), 1)[1], seconds=1.0)
    assert energy.value is None
    assert "not above idle" in energy.how
    assert idle.value is not None


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda f: f.unsupported(3), "nvmlDeviceGetTotalEnergyConsumption: Not Supported"),
        (lambda f: f.refuse(6), "nvmlDeviceGetHandleByPciBusId_v2: Not Found"),
    ],
)
def test_a_device_that_does_not_count_says_why(fake: Fake, clock: Clock, break_it, why: str) -> None:  # type: ignore[no-untyped-def]
    break_it(fake)
    for metric in energy_metrics(BUS, lambda: 1, seconds=1.0):
        assert metric.value is None
        assert metric.how == why
    assert fake.open == 0


def test_too_short_a_time_for_the_counter_is_refused(fake: Fake) -> None:
    energy, _ = energy_metrics(BUS, lambda: 1, seconds=0.1)
    assert energy.value is None
    assert "0.5 s" in energy.how


def test_without_nvml_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARED_NVML", "/nowhere/libnvidia-ml.so.1")
    for metric in (*energy_metrics(BUS, lambda: 1, seconds=1.0), *state_metrics(BUS, "now")):
        assert metric.value is None
        assert "/nowhere/libnvidia-ml.so.1" in metric.how


def test_temperature_and_clocks_are_told(fake: Fake) -> None:
    found = {metric.name: (metric.value, metric.unit) for metric in state_metrics(BUS, "now")}
    assert found == {
        "gpu_temperature": (41, "C"), "gpu_clock": (1980, "MHz"), "gpu_memory_clock": (2619, "MHz"),
    }  # fmt: skip


def test_what_a_device_does_not_tell_is_left_open(fake: Fake) -> None:
    fake.unsupported(3)
    assert all(m.value is None and m.how == "the device does not tell" for m in state_metrics(BUS, "now"))
