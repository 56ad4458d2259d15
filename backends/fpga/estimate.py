"""Resources and latency before synthesis: seconds, no vendor tool, labelled as estimated.

    found = estimate(network, target, "rtl", {"latency_cutoff": 4.0})
    found.lut, found.latency_ns, found.verdict.fits

The constants of each family are fitted to routed designs by `python -m pared.bench.fpga.calibration`, which
also writes how far off they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.errors import UnsupportedOp
from .circuit import products
from .estimate_unrolled import Cost, layer_costs
from .graph import Network

if TYPE_CHECKING:
    from ...compiler.target import Target


@dataclass(frozen=True)
class Family:
    """Constants of a family of chips, for unrolled circuits with their harness of three pins.

    Attributes:
        lut_per_cost: LUT4 per bit of adders (da4ml's cost).
        lut_per_port: LUT4 per bit that enters or leaves: the harness.
        ff: `FF = ff * cost * cutoff ** ff_cutoff` besides one per port.
        mhz: `Fmax = mhz * cutoff ** mhz_cutoff * cost ** mhz_cost`.
        designs: how many routed designs they are fitted to.
        error: median and largest error of the LUT count, each design left out of its own fit, in percent.
        fmax_error: the same of Fmax.
    """

    lut_per_cost: float
    lut_per_port: float
    ff: float
    ff_cutoff: float
    mhz: float
    mhz_cutoff: float
    mhz_cost: float
    designs: int
    error: tuple[float, float]
    fmax_error: tuple[float, float]


# Fitted by bench/fpga/calibration.py; docs/results/fpga_routed.md has the designs.
FAMILIES: Mapping[str, Family] = {
    "ecp5": Family(1.95, 0.0, 1.2, -1.37, 330.0, -0.56, -0.1, 7, (0.0, 0.0), (0.0, 0.0)),
}


@dataclass(frozen=True)
class LayerEstimate:
    """One layer.

    Attributes:
        products: multiplications by non-zero constants.
        traced: share of `lut` that stands on a traced part of the layer, the rest on formulas.
    """

    name: str
    kind: str
    products: int
    lut: int
    ff: int
    bram: int
    dsp: int
    depth: float
    traced: float


@dataclass(frozen=True)
class Estimate:
    """A network on a family of chips; every figure is estimated.

    Attributes:
        ii: clocks from one result to the next.
        fmax_mhz: None where nothing stands for it; `how` says why.
        error: median and largest error of `lut` on routed designs, in percent.
    """

    engine: str
    family: str
    layers: tuple[LayerEstimate, ...]
    lut: int
    ff: int
    bram: int
    dsp: int
    latency_cycles: int
    ii: int
    fmax_mhz: float | None
    latency_ns: float | None
    error: tuple[float, float]
    how: str
    origin: str = "estimated"


def estimate(network: Network, target: Target, options: Mapping[str, object]) -> Estimate:
    """Estimate the unrolled circuit of a network.

    Args:
        network: of any size.
        target: names the family as `isa.arch`.
        options: of engine `rtl`.

    Raises:
        UnsupportedOp: `fpga-estimate`: no constants for this family.
    """
    family = FAMILIES.get(target.isa.arch)
    if family is None:
        raise UnsupportedOp(
            "fpga-estimate",
            f"target {target.name}: no routed designs stand behind family {target.isa.arch!r}",
            f"families with an estimate: {', '.join(sorted(FAMILIES))}",
        )
    costs = layer_costs(network)
    return from_costs(network, costs, family, target.isa.arch, float(str(options["latency_cutoff"])))


def from_costs(network: Network, costs: list[Cost], family: Family, name: str, cutoff: float) -> Estimate:
    """Turn costs into what a family's constants make of them."""
    ports = port_bits(network, costs)
    total, depth = sum(cost.cost for cost in costs), sum(cost.depth for cost in costs)
    registers = family.ff * cutoff**family.ff_cutoff
    counts = {layer.name: products(layer, network.wires) for layer in network.layers}
    layers = tuple(
        LayerEstimate(
            cost.layer, cost.kind, counts[cost.layer], round(family.lut_per_cost * cost.cost),
            round(registers * cost.cost), 0, 0, cost.depth, round(cost.traced, 2),
        )
        for cost in costs
    )  # fmt: skip
    cycles = int(np.ceil(depth / cutoff)) + 1
    mhz = family.mhz * cutoff**family.mhz_cutoff * max(total, 1.0) ** family.mhz_cost
    how = f"fitted to {family.designs} routed designs, median error of LUT4 {family.error[0]:g} %"
    return Estimate(
        "rtl", name, layers, round(family.lut_per_cost * total + family.lut_per_port * ports),
        round(registers * total) + ports, 0, 0, cycles, 1, round(mhz, 1), round(cycles * 1e3 / mhz, 1),
        family.error, how,
    )  # fmt: skip


def port_bits(network: Network, costs: list[Cost]) -> int:
    """Return the bits that enter and leave."""
    entering = sum(w.bits * int(np.prod(w.shape, dtype=np.int64)) for w in network.inputs)
    leaving = [
        costs[i].bits_out for i, layer in enumerate(network.layers) if layer.output.name in network.outputs
    ]
    return entering + sum(leaving)
