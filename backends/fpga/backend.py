"""The FPGA backend: quantized models as circuits that compute one result per clock."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...compiler.backend import Executable, Payload, Verdict
from ...compiler.errors import MissingTool, TargetError, UnsupportedOp
from ..reference.backend import has_kernel

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.pass_api import Context
    from ...compiler.records import Json
    from ...compiler.target import Target
    from .circuit import Circuit
    from .graph import Network
    from .route import Device
    from .verilog import Rtl

_ENGINE = "rtl"
# About four adders between registers.
LATENCY_CUTOFF = 4.0
# LUT4 per unit of da4ml's cost, from a routed network of 64-16-10 neurons at 3 bits.
_LUT4_PER_COST = 1.8
_SEED = 1


class FpgaBackend:
    """Unrolled integer circuits in Verilog, simulated here, routed where the open tools are installed."""

    name: ClassVar[str] = "fpga"

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Take what the target allows and the reference computes; `lower` judges the graph as a whole."""
        limit = target.allows(node)
        if not limit.ok or has_kernel(node.domain, node.op_type):
            return limit
        return Verdict.no(f"nothing computes {node.domain or 'ai.onnx'}::{node.op_type}")

    def engines(self, target: Target) -> Sequence[str]:
        """Return the target's engines that are installed here."""
        here = importlib.util.find_spec("da4ml") is not None
        return [name for name in target.engines if name == _ENGINE and here]

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Return Verilog, the simulation's files, a report, and a bitstream where the tools are installed.

        Raises:
            UnsupportedOp: `fpga-...`: what the circuit cannot be, naming the node.
            TargetError: `fpga-does-not-fit`: more logic than the target has.
            MissingTool: da4ml is not installed.
            ParedError: yosys or nextpnr failed.
        """
        from .circuit import trace
        from .executable import need_da4ml, pack
        from .read import read_network
        from .verilog import write_rtl

        _check_engine(engine)
        need_da4ml()
        network = read_network(model)
        ctx.check_cancelled()
        circuit = trace(network)
        _check_circuit(network, circuit)
        estimate = round(_LUT4_PER_COST * float(circuit.logic.cost))
        _check_fit(estimate, network, target)
        rtl = write_rtl(circuit.logic, LATENCY_CUTOFF)
        ctx.check_cancelled()
        report, bitstream, notes = _routed(rtl, device_of(target))
        files: dict[str, bytes | Path] = {**pack(network, circuit), "model.v": _verilog(rtl).encode()}
        if bitstream:
            files["model.bit"] = bitstream
        report = {"estimated_lut4": estimate, "layers": _layers(network), "implementation": report}
        attachments = {"fpga.json": json.dumps(report, indent=1, sort_keys=True)}
        return Payload(_ENGINE, files, {}, attachments=attachments, notes=notes)

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load the simulation from an artifact's folder."""
        from .executable import load

        _check_engine(engine)
        return load(folder, threads)


def _check_engine(engine: str) -> None:
    if engine != _ENGINE:
        raise MissingTool("unknown-engine", f"the fpga backend has no engine {engine!r}", f"use {_ENGINE!r}")


def device_of(target: Target) -> Device:
    """Return the chip that a target's `isa` names; raises `TargetError` on a family without a road."""
    from .route import Device

    facts = dict(feature.split("=", 1) for feature in target.isa.features if "=" in feature)
    if target.isa.arch != "ecp5" or not {"size", "package", "speed"} <= facts.keys():
        raise TargetError(
            "fpga-device",
            f"target {target.name}: isa.arch = {target.isa.arch!r} with features {list(target.isa.features)}",
            'use isa.arch = "ecp5" and features ["size=25k", "package=CABGA256", "speed=6"]',
        )
    return Device(facts["size"], facts["package"], int(facts["speed"]))


def _check_circuit(network: Network, circuit: Circuit) -> None:
    """Compare with the golden integers on random codes; da4ml's interpreter errs on some wide values."""
    from .simulate import simulate

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
    from .circuit import products

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


def _routed(rtl: Rtl, device: Device) -> tuple[dict[str, Json], bytes, tuple[str, ...]]:
    from .route import route

    try:
        with tempfile.TemporaryDirectory(prefix="pared-fpga-") as folder:
            routed = route(rtl, device, Path(folder), _SEED)
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
    from .circuit import products
    from .graph import Requant

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
    from .verilog import harness

    return "\n".join([*(rtl.files[name] for name in sorted(rtl.files) if name.endswith(".v")), harness(rtl)])
