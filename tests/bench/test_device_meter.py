"""Time on a device and its share of the roofs, with a meter whose times are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from pared.bench.device_meter import Work, device_metrics, warm_up
from pared.compiler.metering import Roofs
from pared.compiler.records import Metric, Origin

ROOFS = Roofs(2e12, {"half": 5e14}, "by small kernels", {"int8": "cuModuleLoadData: no"})


@dataclass
class Meter:
    """Runs take what `later` says, the first ones what `early` says."""

    early: Iterator[float] = field(default_factory=lambda: iter(()))
    later: float = 2.0
    device: str = "Fake (sm_90)"
    bus_id: str = "0000:10:00.0"
    memory_bytes: int = 1000
    notes: tuple[str, ...] = ()

    def times_ms(self, runs: int) -> list[float]:
        return [next(self.early, self.later) for _ in range(runs)]

    def least_bytes(self) -> int:
        return 10**9

    def roofs(self) -> Roofs:
        return ROOFS


@pytest.fixture(autouse=True)
def _no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARED_NVML", "/nowhere")


def measured(kind: str = "half", macs: int | None = 10**11, **changes: float) -> dict[str, Metric]:
    found = device_metrics(Meter(**changes), Work(macs, kind), runs=5, seconds=1.0)  # type: ignore[arg-type]
    return {metric.name: metric for metric in found}


def test_shares_are_of_the_roofs_of_the_same_run() -> None:
    """10^9 bytes in 2 ms are 500 GB/s, a quarter of 2 TB/s; 2 x 10^11 operations are 100 of 500 T/s."""
    found = measured()
    assert found["device_time_median"].value == 2.0
    assert found["memory_roof_share"].value == pytest.approx(0.25)
    assert found["compute_roof_share"].value == pytest.approx(0.2)
    assert found["copy_bandwidth"].value == pytest.approx(2000)
    assert found["half_rate"].value == pytest.approx(500)


def test_every_figure_says_how_it_was_taken_and_is_measured() -> None:
    for metric in measured().values():
        assert metric.how
        assert metric.unit
        assert metric.origin is Origin.MEASURED


@pytest.mark.parametrize(
    ("kind", "macs", "why"),
    [("int8", 10, "cuModuleLoadData"), ("float", 10, "no roof"), ("half", None, "cannot be counted")],
)
def test_a_share_without_a_roof_is_null_with_the_reason(kind: str, macs: int | None, why: str) -> None:
    share = measured(kind, macs)["compute_roof_share"]
    assert share.value is None
    assert why in share.how


def test_a_rate_that_could_not_be_measured_is_null_with_the_reason() -> None:
    assert (measured()["int8_rate"].value, measured()["int8_rate"].how) == (None, "cuModuleLoadData: no")


def test_times_count_once_they_are_stable() -> None:
    settling = Meter(early=(10.0 - block for block in range(5) for _ in range(20)))
    assert warm_up(settling) == (140, True)
    assert device_metrics(settling, Work(1, "half"), runs=3, seconds=0)[0].value == 2.0


def test_times_that_never_settle_are_told() -> None:
    restless = Meter(early=(1.0 + block % 2 for block in range(10_000) for _ in range(20)))
    runs, stable = warm_up(restless)
    assert (runs, stable) == (1000, False)
    assert "had not settled" in device_metrics(restless, Work(1, "half"), runs=3, seconds=0)[0].how
