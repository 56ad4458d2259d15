"""One circuit routed in several ways: places of registers, seeds; the least area times latency first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...compiler.errors import MissingTool, ParedError, TargetError
from .circuit import Circuit
from .devices import Device
from .route import Routed, route
from .verilog import Rtl, write_rtl
from .workplace import workplace

if TYPE_CHECKING:
    from ...compiler.pass_api import Context
    from ...compiler.records import Json
    from .engines import Options


@dataclass(frozen=True)
class Point:
    """One way: `latency_cutoff` adders or so between registers, placed from `seed`; what came of it."""

    latency_cutoff: float
    seed: int
    rtl: Rtl
    routed: Routed

    @property
    def area_latency(self) -> float:
        """LUTs times latency in ns; times clocks where no frequency is known."""
        return self.routed.lut4 * (self.routed.latency_ns or float(self.routed.latency_cycles))

    def beaten_by(self, other: Point) -> bool:
        """Say whether `other` is no worse in area and latency, and better in one."""
        mine, theirs = ((p.routed.lut4, p.area_latency / max(p.routed.lut4, 1)) for p in (self, other))
        return theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1]


def cutoffs_of(options: Options) -> list[float]:
    """Return the cutoffs to try; raises `TargetError` `engine-option` where they are no list of numbers."""
    text = str(options["sweep"])
    if not text:
        return [float(options["latency_cutoff"])]
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise TargetError("engine-option", f"engine option sweep: {text!r} is no list", "write sweep=1,2,4,8")
    return found


def routed_points(circuit: Circuit, device: Device, options: Options, ctx: Context) -> list[Point]:
    """Route every combination; those that a tool fails on are left out while another works.

    Raises:
        MissingTool: a program is not installed.
        ParedError: none works: what the last one failed by.
    """
    points: list[Point] = []
    failed: ParedError | None = None
    for cutoff, seed in _ways(options):
        ctx.check_cancelled()
        rtl = write_rtl(circuit.logic, cutoff)
        try:
            with workplace(rtl.files, (device, seed)) as folder:
                routed = route(rtl, device, folder, seed, float(options["timeout_s"]))
        except MissingTool:
            raise
        except ParedError as err:
            failed = err
            continue
        points.append(Point(cutoff, seed, rtl, routed))
    if not points:
        assert failed is not None, "at least one way was tried"
        raise failed
    return sorted(points, key=lambda point: point.area_latency)


def _ways(options: Options) -> Iterator[tuple[float, int]]:
    first = int(options["seed"])
    return itertools.product(cutoffs_of(options), range(first, first + max(int(options["seeds"]), 1)))


def table(points: Sequence[Point]) -> list[Json]:
    """Return the points, best first, for the report; `pareto` where no other is better in both."""
    return [
        {
            "latency_cutoff": point.latency_cutoff, "seed": point.seed, "luts": point.routed.lut4,
            "ff": point.routed.ff, "fmax_mhz": point.routed.fmax_mhz,
            "latency_cycles": point.routed.latency_cycles, "latency_ns": point.routed.latency_ns,
            "pareto": not any(point.beaten_by(other) for other in points),
        }
        for point in points
    ]  # fmt: skip
