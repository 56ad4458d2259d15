"""The energy meter on counters made of files, as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.bench.energy import find_counters, measure_energy


def package(powercap: Path, name: str, energy: int, wrap: int = 1_000_000) -> Path:
    folder = powercap / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    return folder


def spending(folder: Path, microjoules: int, wrap: int = 1_000_000) -> None:
    energy = int((folder / "energy_uj").read_text())
    (folder / "energy_uj").write_text(str((energy + microjoules) % wrap))


def test_energy_is_per_run_over_all_packages(tmp_path: Path) -> None:
    one, two = package(tmp_path, "intel-rapl:0", 5), package(tmp_path, "intel-rapl:1", 7)

    def run() -> None:
        spending(one, 3000)
        spending(two, 1000)

    assert measure_energy(run, seconds=0, powercap=tmp_path).value == pytest.approx(4.0)


def test_a_counter_that_wraps_is_followed(tmp_path: Path) -> None:
    folder = package(tmp_path, "intel-rapl:0", 999_000)
    metric = measure_energy(lambda: spending(folder, 3000), seconds=0, powercap=tmp_path)
    assert metric.value == pytest.approx(3.0)


def test_parts_of_a_package_are_not_counted_twice(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 0)
    package(tmp_path, "intel-rapl:0:0", 0)
    assert [c.path.name for c in find_counters(tmp_path)] == ["intel-rapl:0"]


def test_without_counters_the_value_is_none_with_the_reason(tmp_path: Path) -> None:
    metric = measure_energy(int, powercap=tmp_path / "none")
    assert metric.value is None
    assert "no RAPL counter" in metric.how


def test_an_unreadable_counter_is_none_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package(tmp_path, "intel-rapl:0", 0)
    plain = Path.read_text

    def guarded(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(folder / "energy_uj"))
        return plain(path)

    monkeypatch.setattr(Path, "read_text", guarded)
    metric = measure_energy(int, powercap=tmp_path)
    assert metric.value is None
    assert "Permission denied" in metric.how
