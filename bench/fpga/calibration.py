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
from ..results import Page
from .designs import Design, make, named
from .routed import FOLDER

Floats = npt.NDArray[np.float64]
HEADINGS = (
    "design", "top-1 %", "device", "cutoff", "LUT4", "estimated", "error %", "formulas alone, error %", "FF",
    "estimated FF", "Fmax MHz", "estimated MHz", "clocks", "estimated clocks", "latency ns", "route s",
    "estimate s",
)  # fmt: skip
ABOUT = """`python -m pared.bench.fpga.routed`, then `python -m pared.bench.fpga.calibration`. LUT4, FF,
Fmax and latency: post-route with yosys and nextpnr-ecp5, seed 1, speed grade 6, harness of three pins
included; one result per clock. Estimated: before synthesis, from constants fitted to the other designs of
this table (each is left out of its own fit). Formulas alone: nothing of the network is traced, as for
matrices too large for that. Digits and jets as bench/fpga/nets.py makes them; top-1 on 540 or 2000 test
samples."""


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


def fit(data: list[Point]) -> Family:
    """Return the constants with the least squared relative errors."""
    lut = _relative([[p.cost, p.ports] for p in data], [p.number("lut4") for p in data])
    cutoffs, costs = np.array([p.design.cutoff for p in data]), np.array([p.cost for p in data])
    registers = np.array([max(p.number("ff") - p.ports, 1.0) for p in data])
    ones = np.ones(len(data))
    ff = np.linalg.lstsq(np.stack([ones, np.log(cutoffs)], 1), np.log(registers / costs), rcond=None)[
        0
    ].tolist()
    speed = np.log([p.number("fmax_mhz") for p in data])
    mhz = np.linalg.lstsq(np.stack([ones, np.log(cutoffs), np.log(costs)], 1), speed, rcond=None)[0].tolist()
    return Family(
        lut[0], lut[1], float(np.exp(ff[0])), ff[1], float(np.exp(mhz[0])), mhz[1], mhz[2], len(data),
        (0.0, 0.0), (0.0, 0.0),
    )  # fmt: skip


def _relative(features: list[list[float]], target: list[float]) -> list[float]:
    """Return the non-negative weights of two features with the least squared relative errors."""
    a = np.array(features) / np.array(target)[:, None]
    w = np.linalg.lstsq(a, np.ones(len(a)), rcond=None)[0]
    if w[1] < 0:
        w = np.array([(a[:, 0] @ np.ones(len(a))) / (a[:, 0] @ a[:, 0]), 0.0])
    return [float(v) for v in w]


def errors(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return median and largest error in percent of (estimated, found) pairs."""
    off = [100 * abs(guess / truth - 1) for guess, truth in pairs]
    return round(float(np.median(off)), 1), round(max(off), 1)


def main() -> None:
    """Write the page and print the constants."""
    data = points()
    page = Page(Path("docs/results/fpga_routed.md"), "Routed designs and their estimates", ABOUT, HEADINGS)
    luts, speeds, plain = [], [], []
    for index, point in enumerate(data):
        family = fit(data[:index] + data[index + 1 :])
        guess = from_costs(point.network, point.costs, family, "ecp5", point.design.cutoff)
        blind = from_costs(point.network, point.formulas, family, "ecp5", point.design.cutoff)
        luts.append((guess.lut, point.number("lut4")))
        plain.append((blind.lut, point.number("lut4")))
        speeds.append((guess.fmax_mhz or 0.0, point.number("fmax_mhz")))
        _row(page, point, guess.lut, blind.lut, guess.ff, guess.fmax_mhz or 0.0, guess.latency_cycles)
    final = replace(fit(data), error=errors(luts), fmax_error=errors(speeds))
    page.remark(
        f"Error of LUT4 over {len(data)} designs: median {final.error[0]} %, largest {final.error[1]} %; "
        f"with formulas alone median {errors(plain)[0]} %, largest {errors(plain)[1]} %. Fmax: median "
        f"{final.fmax_error[0]} %, largest {final.fmax_error[1]} %."
    )
    print(final, file=sys.stderr)


def _row(page: Page, point: Point, lut: int, blind: int, ff: int, mhz: float, cycles: int) -> None:
    found, top1 = point.found, point.found["top1"]
    real = point.number("lut4")
    page.add(
        point.design.what, "" if top1 is None else f"{float(str(top1)):.1f}", f"ECP5 {point.design.size}",
        point.design.cutoff, found["lut4"], lut, f"{100 * (lut / real - 1):+.1f}",
        f"{100 * (blind / real - 1):+.1f}", found["ff"], ff, found["fmax_mhz"], mhz, found["latency_cycles"],
        cycles, found["latency_ns"], found["route_s"], f"{point.seconds:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
