"""Fits the estimator's constants to the routed designs and writes how far off it is.

    python -m pared.bench.fpga.calibration

Every design is estimated with constants that were fitted to the others. Prints the table entry for
backends/fpga/estimate.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...backends.fpga.estimate import Family, from_costs, port_bits
from ...backends.fpga.estimate_unrolled import Cost, layer_costs
from ...backends.fpga.graph import Network
from ...backends.fpga.read import read_network
from ...compiler.estimates import Estimate
from ..results import Page
from .designs import Design, make, named
from .routed import FOLDER

Floats = npt.NDArray[np.float64]
_FEWEST = 4
_ROUNDS = 50
_LEAST_ERROR = 1e-3
HEADINGS = (
    "design", "top-1 %", "device", "cutoff", "LUT", "estimated", "error %", "formulas alone, error %", "FF",
    "estimated FF", "Fmax MHz", "estimated MHz", "clocks", "estimated clocks", "latency ns", "route s",
    "estimate s",
)  # fmt: skip
ABOUT = """`python -m pared.bench.fpga.routed`, then `python -m pared.bench.fpga.calibration`. LUT (LUT4; LUT6
for xcup), FF, Fmax and latency: post-route with yosys and nextpnr, seed 1, ECP5 at speed grade 6, harness of
three pins included; one result per clock. xcup (AMD UltraScale+) is synthesized only, so it has no Fmax.
Estimated: before synthesis, from constants fitted to the other designs of the same family in this table (each
is left out of its own fit; ice40 and xcup take the exponents from ECP5). Formulas alone: nothing of the
network is traced, as for matrices too large for that. Digits and jets as bench/fpga/nets.py makes them, jets
by scikit-learn's make_classification in the shape of the hls4ml data; top-1 on 540 or 2000 test samples."""


@dataclass(frozen=True, eq=False)
class Point:
    """A routed design and what the estimator sees of it."""

    design: Design
    network: Network
    costs: list[Cost]
    formulas: list[Cost]
    found: dict[str, object]
    seconds: float

    def number(self, key: str) -> float:
        """Return a figure of the routed design."""
        return float(str(self.found[key]))

    @property
    def lut(self) -> float:
        """LUT4, or LUT6 where the family has these."""
        return self.number("lut4" if "lut4" in self.found else "lut6")

    @property
    def mhz(self) -> float | None:
        """Frequency, where an open tool routes the family."""
        return None if self.found["fmax_mhz"] is None else self.number("fmax_mhz")

    @property
    def cost(self) -> float:
        """Estimated da4ml cost."""
        return sum(cost.cost for cost in self.costs)

    @property
    def ports(self) -> int:
        """Bits that enter and leave."""
        return port_bits(self.network, self.costs)


def points() -> list[Point]:
    """Return every design that was routed."""
    found = []
    for design in named([]):
        path = FOLDER / f"{design.name}.json"
        made = make(design) if path.is_file() else None
        if made is None:
            continue
        network, begin = read_network(made.model), time.process_time()
        costs = layer_costs(network)
        spent = time.process_time() - begin
        facts = json.loads(path.read_text())
        found.append(Point(design, network, costs, layer_costs(network, tracing=False), facts, spent))
    return found


def fit(data: list[Point], base: Family | None = None) -> Family:
    """Return the constants with the least squared relative errors.

    Args:
        data: of one family.
        base: gives the exponents, for families of few designs.
    """
    lut = _relative([[p.cost, p.ports] for p in data], [p.lut for p in data])
    cutoffs, costs = np.log([p.design.cutoff for p in data]), np.log([p.cost for p in data])
    registers = np.log([max(p.number("ff") - p.ports, 1.0) for p in data]) - costs
    ff = _line(registers, [cutoffs], None if base is None else [base.ff_cutoff])
    timed = [i for i, p in enumerate(data) if p.mhz is not None]
    speeds = np.log([data[i].mhz or 0.0 for i in timed])
    mhz = _line(
        speeds, [cutoffs[timed], costs[timed]], None if base is None else [base.mhz_cutoff, base.mhz_cost]
    )
    if not timed:
        mhz = [-np.inf, 0.0, 0.0]
    return Family(
        lut[0], lut[1], float(np.exp(ff[0])), ff[1], float(np.exp(mhz[0])), mhz[1], mhz[2], len(data),
        (0.0, 0.0), (0.0, 0.0),
    )  # fmt: skip


def _line(y: Floats, x: list[Floats], slopes: list[float] | None) -> list[float]:
    """Return offset and slopes of a line; given slopes stay."""
    if slopes is not None:
        rest = y - sum((s * one for s, one in zip(slopes, x, strict=True)), start=np.zeros(len(y)))
        return [float(rest.mean()) if len(y) else 0.0, *slopes]
    found = np.linalg.lstsq(np.stack([np.ones(len(y)), *x], 1), y, rcond=None)[0]
    return [float(v) for v in found]


def _relative(features: list[list[float]], target: list[float]) -> list[float]:
    """Return the non-negative weights of two features with the least sum of relative errors.

    Absolute, not squared, errors: one design of another kind does not spoil the constants of all others.
    """
    a = np.array(features) / np.array(target)[:, None]
    used = a
    for _ in range(2):
        w, trust = np.zeros(used.shape[1]), np.ones(len(a))
        for _ in range(_ROUNDS):
            w = np.linalg.lstsq(used * trust[:, None], trust, rcond=None)[0]
            trust = 1 / np.sqrt(np.maximum(np.abs(used @ w - 1), _LEAST_ERROR))
        if w[-1] >= 0:
            break
        used = a[:, :1]
    return [float(v) for v in (*w, 0.0)[:2]]


def errors(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return median and largest error in percent of (estimated, found) pairs."""
    if not pairs:
        return 0.0, 0.0
    off = [100 * abs(guess / truth - 1) for guess, truth in pairs]
    return round(float(np.median(off)), 1), round(max(off), 1)


def judge(page: Page, data: list[Point], base: Family | None) -> Family:
    """Add a family's rows, each estimated from the others, and return its constants with their error."""
    luts, speeds, plain, name = [], [], [], data[0].design.family
    for index, point in enumerate(data):
        family = fit(data[:index] + data[index + 1 :], base)
        guess = from_costs(point.network, point.costs, family, name, point.design.cutoff)
        blind = from_costs(point.network, point.formulas, family, name, point.design.cutoff)
        luts.append((guess.lut, point.lut))
        plain.append((blind.lut, point.lut))
        if point.mhz is not None and guess.fmax_mhz is not None:
            speeds.append((guess.fmax_mhz, point.mhz))
        _row(page, point, guess, blind.lut)
    final = replace(fit(data, base), error=errors(luts), fmax_error=errors(speeds))
    fmax = f"; Fmax: median {final.fmax_error[0]} %, largest {final.fmax_error[1]} %" if speeds else ""
    page.remark(
        f"Error of LUTs, {name}, {len(data)} designs: median {final.error[0]} %, largest {final.error[1]} %; "
        f"with formulas alone median {errors(plain)[0]} %, largest {errors(plain)[1]} %{fmax}."
    )
    return final


def main() -> None:
    """Write the page and print the constants."""
    data = points()
    page = Page(Path("docs/results/fpga_routed.md"), "Routed designs and their estimates", ABOUT, HEADINGS)
    ecp5 = judge(page, [point for point in data if point.design.family == "ecp5"], None)
    print(f'"ecp5": {ecp5}', file=sys.stderr)
    for name in ("ice40", "xcup"):
        some = [point for point in data if point.design.family == name]
        if len(some) >= _FEWEST:
            print(f'"{name}": {judge(page, some, ecp5)}', file=sys.stderr)
    page.remark(
        "The convolutions of 2 bits are overestimated: sums of up to 5 bits become plain LUTs, which "
        "synthesis shares and trims; dense layers have wider sums. Both it and 64-8-10 at 2 bits failed to "
        "train well."
    )


def _row(page: Page, point: Point, guess: Estimate, blind: int) -> None:
    found, top1, chip = point.found, point.found["top1"], point.design.device
    page.add(
        point.design.what, "" if top1 is None else f"{float(str(top1)):.1f}", f"{chip.family} {chip.size}",
        point.design.cutoff, round(point.lut), guess.lut, f"{100 * (guess.lut / point.lut - 1):+.1f}",
        f"{100 * (blind / point.lut - 1):+.1f}", found["ff"], guess.ff, found["fmax_mhz"] or "",
        guess.fmax_mhz or "", found["latency_cycles"], guess.latency_cycles, found["latency_ns"] or "",
        found["route_s"], f"{point.seconds:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
