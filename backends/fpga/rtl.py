"""Engine `rtl`: everything unrolled into one pipeline of adders, one result per clock, routed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.backend import Executable, Payload
from ...compiler.errors import MissingTool, TargetError, UnsupportedOp
from .circuit import Circuit, products, trace
from .devices import Device, device_of
from .executable import load as load_circuit
from .executable import pack
from .graph import Network, Requant
from .read import read_network
from .route import route
from .simulate import simulate
from .verilog import Rtl, harness, write_rtl

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.pass_api import Context
    from ...compiler.records import Json
    from ...compiler.target import Target
    from .engines import Options

# LUT4 per unit of da4ml's cost, from a routed network of 64-16-10 neurons at 3 bits.
_LUT4_PER_COST = 1.8


def lower(model: ir.Model, target: Target, options: Options, ctx: Context) -> Payload:
    """Return Verilog, the simulation's files, a report, and a bitstream where the tools are installed.

    Raises:
        UnsupportedOp: `fpga-...`: what the circuit cannot be, naming the node.
        TargetError: `fpga-does-not-fit`: more logic than the target has.
        ParedError: yosys or nextpnr failed.
    """
    network = read_network(model)
    ctx.check_cancelled()
    circuit = trace(network)
    _check_circuit(network, circuit)
    estimate = round(_LUT4_PER_COST * float(circuit.logic.cost))
    _check_fit(estimate, network, target)
    rtl = write_rtl(circuit.logic, float(options["latency_cutoff"]))
    ctx.check_cancelled()
    report, bitstream, notes = _routed(rtl, device_of(target), options)
    files: dict[str, bytes | Path] = {**pack(network, circuit), "model.v": _verilog(rtl).encode()}
    if bitstream:
        files["model.bit"] = bitstream
    report = {"estimated_lut4": estimate, "layers": _layers(network), "implementation": report}
    attachments = {"fpga.json": json.dumps(report, indent=1, sort_keys=True)}
    return Payload("rtl", files, {}, attachments=attachments, notes=notes)


def load(folder: Path, options: Mapping[str, object], threads: int | None) -> Executable:
    """Load the simulation from an artifact's folder."""
    return load_circuit(folder, threads)


def _check_circuit(network: Network, circuit: Circuit) -> None:
    """Compare with the golden integers on random codes; da4ml's interpreter errs on some wide values."""
    rng = np.random.default_rng(0)
    codes = {
        w.name: w.least + w.step * rng.integers(0, (w.most - w.least) // w.step + 1, (64, *w.shape))
        for w in network.inputs
    }
    want = simulate(network, codes)
    left = circuit.logic.predict(circuit.enter(network, codes).astype(np.float64), 1)
    got = circuit.leave(network, np.rint(left).astype(np.int64))
    if any(not np.array_equal(got[name], want[name]) for name in network.outputs):
        raise UnsupportedOp(
            "fpga-circuit-differs",
            "the traced circuit does not give the golden integers (wide products in da4ml)",
            "use powers of two, quantize{scale=pow2}, or fewer bits",
        )


def _check_fit(estimate: int, network: Network, target: Target) -> None:
    have = target.resources.lut
    if have is None or estimate <= have:
        return
    largest = max(network.layers, key=lambda layer: products(layer, network.wires))
    raise TargetError(
        "fpga-does-not-fit",
        f"about {estimate} LUT4 (estimated) are needed, target {target.name} has {have}; the largest layer "
        f"is {largest.name!r} with {products(largest, network.wires)} products",
        "use fewer bits (--precision w4a4, w2a2), fewer channels, sparsity, or a larger device",
    )


def _routed(rtl: Rtl, device: Device, options: Options) -> tuple[dict[str, Json], bytes, tuple[str, ...]]:
    try:
        if not options["route"]:
            raise MissingTool("fpga-not-routed", "option route = false", "leave it out")
        with tempfile.TemporaryDirectory(prefix="pared-fpga-") as folder:
            routed = route(rtl, device, Path(folder), int(options["seed"]), float(options["timeout_s"]))
    except MissingTool as err:
        reason = f"not routed: {err.message}"
        facts: dict[str, Json] = {
            "lut4": None,
            "fmax_mhz": None,
            "latency_cycles": rtl.stages,
            "why_null": reason,
        }
        return facts, b"", (f"{reason} ({err.next_step})",)
    data = {key: value for key, value in routed.to_json().items() if not key.endswith("_s")}
    return data, routed.bitstream, ()


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
