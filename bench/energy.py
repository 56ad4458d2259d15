"""Energy per run from the CPU's own counters (RAPL), or the reason why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..compiler.records import Metric, Origin

POWERCAP = Path("/sys/class/powercap")
_NAME = "energy_per_run"


@dataclass(frozen=True)
class Counter:
    """One RAPL package domain: microjoules that wrap around at `range_uj`.

    Source: Linux kernel, Documentation/power/powercap/powercap.rst.
    """

    path: Path
    range_uj: int

    def read(self) -> int:
        """Return the counter in microjoules."""
        return int((self.path / "energy_uj").read_text())

    def since(self, before: int) -> int:
        """Return the microjoules since `before`; at most one wrap (minutes at full power) is seen."""
        spent = self.read() - before
        return spent if spent >= 0 else spent + self.range_uj


def find_counters(powercap: Path = POWERCAP) -> tuple[Counter, ...]:
    """Return one counter per CPU package; raises `OSError` where they exist but cannot be read."""
    counters = []
    # Sub-domains are `intel-rapl:0:0`; they are part of their package. AMD's counters have the same name.
    for folder in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if folder.name.count(":") == 1 and (folder / "energy_uj").exists():
            counter = Counter(folder, int((folder / "max_energy_range_uj").read_text()))
            counter.read()
            counters.append(counter)
    return tuple(counters)


def measure_energy(run: Callable[[], object], *, seconds: float = 1.0, powercap: Path = POWERCAP) -> Metric:
    """Return the energy of one run in millijoules: package energy of a busy second, divided by its runs.

    Idle power and other processes are included. Without readable counters the value is None, with the reason.
    """
    try:
        counters = find_counters(powercap)
    except OSError as err:
        why = (
            f"RAPL counter {err.filename} cannot be read: {err.strerror}; it needs root or another file mode"
        )
        return Metric(_NAME, None, "mJ", Origin.MEASURED, why)
    if not counters:
        return Metric(_NAME, None, "mJ", Origin.MEASURED, f"no RAPL counter under {powercap} on this machine")
    joules, runs = _spend(run, counters, seconds)
    how = (
        f"RAPL, {len(counters)} CPU package(s), {runs} runs back to back; idle power and other work included"
    )
    return Metric(_NAME, joules / runs * 1e3, "mJ", Origin.MEASURED, how)


def _spend(run: Callable[[], object], counters: Sequence[Counter], seconds: float) -> tuple[float, int]:
    runs = 0
    before = [counter.read() for counter in counters]
    end = time.perf_counter() + seconds
    while runs == 0 or time.perf_counter() < end:
        run()
        runs += 1
    spent = sum(counter.since(start) for counter, start in zip(counters, before, strict=True))
    return spent / 1e6, runs
