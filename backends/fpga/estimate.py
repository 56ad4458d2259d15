"""Resources and latency before synthesis: seconds, no vendor tool, labelled as estimated.

    found = estimate(model, target, "rtl")
    found.lut, found.latency_ns

The constants of each family are fitted to routed designs by `python -m pared.bench.fpga.calibration`, which
also writes how far off they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.errors import UnsupportedOp
from ...compiler.estimates import Estimate, LayerEstimate, shortages
from .circuit import products
from .engines import options_of
from .estimate_folded import estimate_folded, folded_alternative
from .estimate_narrow import alternatives
from .estimate_unrolled import Cost, layer_costs
from .graph import Network
from .read import read_network

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.target import Target


@dataclass(frozen=True)
class Family:
    """Constants of a family of chips, for unrolled circuits with their harness of three pins.

    Attributes:
        lut_per_cost: LUT4 (LUT6 of xcup) per bit of adders (da4ml's cost).
        lut_per_port: LUTs per bit that enters or leaves: the harness.
        ff: `FF = ff * cost * cutoff ** ff_cutoff` besides one per port.
        mhz: `Fmax = mhz * cutoff ** mhz_cutoff * cost ** mhz_cost`; 0 where no open tool routes the family.
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
    "ecp5": Family(1.372, 0.325, 1.357, -1.226, 348.4, -0.446, -0.1026, 19, (3.4, 75.4), (7.2, 36.6)),
    "ice40": Family(1.467, 0.966, 1.521, -1.226, 343.3, -0.446, -0.1026, 6, (4.9, 17.1), (4.1, 14.8)),
    "xcup": Family(0.899, 0.0, 0.773, -1.226, 0.0, 0.0, 0.0, 6, (9.6, 39.7), (0.0, 0.0)),
}


def estimate(model: ir.Model, target: Target, engine: str) -> Estimate:
    """Estimate a quantized model on a target.

    Raises:
        UnsupportedOp: what the front refuses; `fpga-estimate`: no constants for this family or engine.
    """
    family = FAMILIES.get(target.isa.arch)
    routed = ("rtl", "folded") if target.isa.arch == "ecp5" else ("rtl",)
    if family is None or engine not in routed:
        raise UnsupportedOp(
            "fpga-estimate",
            f"target {target.name}, engine {engine}: no routed designs stand behind an estimate for "
            f"{target.isa.arch!r}",
            f"engine rtl on {', '.join(sorted(FAMILIES))} has one, engine folded on ecp5",
        )
    network = read_network(model)
    if engine == "folded":
        return estimate_folded(network, target, options_of(engine, target))
    return _unrolled(network, target, family)


def _unrolled(network: Network, target: Target, family: Family) -> Estimate:
    costs = layer_costs(network)
    cutoff = float(options_of("rtl", target)["latency_cutoff"])
    found = from_costs(network, costs, family, target.isa.arch, cutoff)
    if not shortages(found.needs(), target):
        return found
    folded = folded_alternative(network, target) if "folded" in target.engines else None
    narrower = alternatives(network, costs, family.lut_per_cost)
    return replace(found, alternatives=(*([folded] if folded else []), *narrower))


def from_costs(network: Network, costs: list[Cost], family: Family, name: str, cutoff: float) -> Estimate:
    """Turn costs into what a family's constants make of them."""
    ports = port_bits(network, costs)
    total, depth = sum(cost.cost for cost in costs), sum(cost.depth for cost in costs)
    cycles, registers = int(np.ceil(depth / cutoff)) + 1, family.ff * cutoff**family.ff_cutoff
    mhz = round(family.mhz * cutoff**family.mhz_cutoff * max(total, 1.0) ** family.mhz_cost, 1) or None
    layers = tuple(_layer(network, cost, family, registers, cutoff, mhz) for cost in costs)
    how = (
        f"constants fitted to {family.designs} routed designs; error of LUTs there, each left out of its own "
        f"fit: median {family.error[0]:g} %, largest {family.error[1]:g} %"
    )
    return Estimate(
        "rtl", name, layers, round(family.lut_per_cost * total + family.lut_per_port * ports),
        round(registers * total) + ports, 0, 0, cycles, _time(cycles, mhz), 1, mhz,
        *family.error, how,
    )  # fmt: skip


def _layer(
    network: Network, cost: Cost, family: Family, registers: float, cutoff: float, mhz: float | None
) -> LayerEstimate:
    layer = next(one for one in network.layers if one.output.name == cost.output)
    cycles = round(cost.depth / cutoff, 2)
    return LayerEstimate(
        layer.name, cost.kind, products(layer, network.wires), round(family.lut_per_cost * cost.cost),
        round(registers * cost.cost), 0, 0, cycles, _time(cycles, mhz), 1, round(cost.traced, 2),
    )  # fmt: skip


def _time(cycles: float, mhz: float | None) -> float | None:
    """Return nanoseconds."""
    return None if mhz is None else round(cycles * 1e3 / mhz, 1)


def port_bits(network: Network, costs: list[Cost]) -> int:
    """Return the bits that enter and leave."""
    entering = sum(w.bits * int(np.prod(w.shape, dtype=np.int64)) for w in network.inputs)
    return entering + sum(cost.bits_out for cost in costs if cost.output in network.outputs)
