"""Engine `rtl`: everything unrolled into one pipeline of adders, one result per clock, routed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.backend import Executable, Payload
from ...compiler.errors import MissingTool, TargetError, UnsupportedOp
from .circuit import Circuit, products, trace
from .devices import Device, device_of
from .estimate_unrolled import layer_costs
from .executable import load as load_circuit
from .executable import pack
from .golden import Golden, golden, simulated
from .graph import Network, Requant
from .read import read_network
from .sweep import Point, cutoffs_of, routed_points, table
from .verilog import Rtl, harness, write_rtl

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.pass_api import Context
    from ...compiler.records import Json
    from ...compiler.target import Target
    from .engines import Options

# LUT4 per unit of da4ml's cost: 1.44 on a routed network of 64-16-10 neurons at 3 bits, and some room.
_LUT4_PER_COST = 1.6
# Times the device's LUT4 that formulas must say before a network is refused untraced, as they are rough.
_SURELY = 3.0


def lower(model: ir.Model, target: Target, options: Options, ctx: Context) -> Payload:
    """Return Verilog, the simulation's files, a report, and a bitstream where the tools are installed.

    Raises:
        UnsupportedOp: `fpga-...`: what the circuit cannot be, naming the node.
        TargetError: `fpga-does-not-fit`: more logic than the target has.
        ParedError: yosys or nextpnr failed.
    """
    network = read_network(model)
    ctx.check_cancelled()
    # formulas of the layers, before tracing, which takes minutes where the network is far too large
    untraced = sum(cost.cost for cost in layer_costs(network, tracing=False))
    if target.resources.lut is not None and _LUT4_PER_COST * untraced > _SURELY * target.resources.lut:
        _check_fit(round(_LUT4_PER_COST * untraced), network, target)
    circuit = trace(network)
    wanted = golden(network, circuit, ctx.calibration, int(options["simulate"]) or 64)
    _check_circuit(circuit, wanted)
    estimate = round(_LUT4_PER_COST * float(circuit.logic.cost))
    _check_fit(estimate, network, target)
    ctx.check_cancelled()
    points, why = _points(circuit, device_of(target), options, ctx)
    best = points[0] if points else None
    rtl = write_rtl(circuit.logic, cutoffs_of(options)[0]) if best is None else best.rtl
    ctx.check_cancelled()
    files: dict[str, bytes | Path] = {**pack(network, circuit), "model.v": _verilog(rtl).encode()}
    files |= wanted.files(circuit)
    if best is not None and best.routed.bitstream:
        files["model.bit"] = best.routed.bitstream
    report = {
        "estimated_lut4": estimate, "layers": _layers(network), "sweep": table(points),
        "implementation": _unrouted(rtl, why) if best is None else _facts(best),
        "simulated": _simulated(rtl, circuit, wanted, options),
    }  # fmt: skip
    attachments = {"fpga.json": json.dumps(report, indent=1, sort_keys=True)}
    return Payload("rtl", files, {}, attachments=attachments, notes=(why,) if why else ())


def load(folder: Path, options: Mapping[str, object], threads: int | None) -> Executable:
    """Load the simulation from an artifact's folder."""
    return load_circuit(folder, threads)


def _check_circuit(circuit: Circuit, wanted: Golden) -> None:
    """Compare da4ml's interpreter with the golden integers: it errs on some wide values."""
    left = circuit.logic.predict(wanted.entering.astype(np.float64), 1)
    if not np.array_equal(np.rint(left).astype(np.int64), wanted.leaving):
        raise UnsupportedOp(
            "fpga-circuit-differs",
            "the traced circuit does not give the golden integers (wide products in da4ml)",
            "use powers of two, quantize{scale=pow2}, or fewer bits",
        )


def _simulated(rtl: Rtl, circuit: Circuit, wanted: Golden, options: Options) -> dict[str, Json]:
    if not options["simulate"]:
        return {"tool": None, "samples": 0, "differing": None, "why_null": "option simulate = 0"}
    return simulated(rtl, circuit, wanted, float(options["timeout_s"]))


def _check_fit(estimate: int, network: Network, target: Target) -> None:
    have = target.resources.lut
    if have is None or estimate <= have:
        return
    other = "--engine folded, " if "folded" in target.engines else ""
    largest = max(network.layers, key=lambda layer: products(layer, network.wires))
    raise TargetError(
        "fpga-does-not-fit",
        f"about {estimate} LUT4 (estimated) are needed, target {target.name} has {have}; the largest layer "
        f"is {largest.name!r} with {products(largest, network.wires)} products",
        f"use fewer bits (--precision w4a4, w2a2), fewer channels, {other}or a larger device",
    )


def _points(circuit: Circuit, device: Device, options: Options, ctx: Context) -> tuple[Sequence[Point], str]:
    """Return routed points, best first; none, and why, where the tools are missing or not wanted."""
    if not options["route"]:
        return (), "not routed: option route = false"
    try:
        return routed_points(circuit, device, options, ctx), ""
    except MissingTool as err:
        return (), f"not routed: {err.message} ({err.next_step})"


def _unrouted(rtl: Rtl, why: str) -> dict[str, Json]:
    return {"lut4": None, "fmax_mhz": None, "latency_cycles": rtl.stages, "why_null": why}


def _facts(point: Point) -> dict[str, Json]:
    data = {key: value for key, value in point.routed.to_json().items() if not key.endswith("_s")}
    return {**data, "latency_cutoff": point.latency_cutoff}


def _layers(network: Network) -> list[Json]:
    return [
        {
            "name": layer.name, "kind": type(layer).__name__.lower(), "output": layer.output.name,
            "shape": list(layer.output.shape), "bits": layer.output.bits, "low": layer.output.least,
            "high": layer.output.most, "products": products(layer, network.wires),
            "unproven_thresholds": layer.unproven if isinstance(layer, Requant) else 0,
        }
        for layer in network.layers
    ]  # fmt: skip


def _verilog(rtl: Rtl) -> str:
    return "\n".join([*(rtl.files[name] for name in sorted(rtl.files) if name.endswith(".v")), harness(rtl)])
