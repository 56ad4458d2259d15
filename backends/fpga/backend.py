"""The FPGA backend: quantized models as hardware; its engines stand in engines.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...compiler.backend import Executable, Payload, Verdict
from ..reference.backend import has_kernel
from .engines import module_of, option_names, options_of, usable

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.estimates import Estimate
    from ...compiler.pass_api import Context
    from ...compiler.target import Target

GRAPH = "model.onnx"
_STEPS = frozenset({"Scan", "Loop", "LSTM", "GRU", "RNN"})


class FpgaBackend:
    """Integer hardware of quantized models, simulated here, routed where the open tools are installed."""

    name: ClassVar[str] = "fpga"
    beyond_nodes: ClassVar[str] = (
        "that all between the layers is quantized, and that it fits (pared estimate tells beforehand)"
    )
    option_names: ClassVar[frozenset[str]] = option_names()

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Take what the target allows and the reference computes; `lower` judges the graph as a whole."""
        limit = target.allows(node)
        if node.op_type in _STEPS:
            return Verdict.no(f"no circuit keeps state over steps, as {node.op_type} does")
        if not limit.ok or has_kernel(node.domain, node.op_type):
            return limit
        return Verdict.no(f"nothing computes {node.domain or 'ai.onnx'}::{node.op_type}")

    def engines(self, target: Target) -> Sequence[str]:
        """Return the target's engines that are installed here."""
        return usable(target)

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Lower a model with one engine. The graph goes along as `model.onnx`, for comparing layers.

        Raises:
            UnsupportedOp: `fpga-...`: what the hardware cannot be, naming the node.
            TargetError: `fpga-does-not-fit`: more logic than the target has; `engine-option`.
            MissingTool: a package or program is not installed.
            ParedError: a tool failed or took too long.
        """
        from ...compiler.ir.export import to_bytes
        from .report import with_layers

        module = module_of(engine)
        payload = module.lower(model, target, options_of(engine, target), ctx)
        payload = replace(payload, files={GRAPH: to_bytes(model), **payload.files})
        return with_layers(payload, model, target, ctx.calibration)

    def estimate(self, model: ir.Model, target: Target, engine: str) -> Estimate:
        """Estimate resources and latency before synthesis; see estimate.py."""
        from .estimate import estimate

        return estimate(model, target, engine)

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load the simulation from an artifact's folder."""
        return module_of(engine).load(folder, options, threads)
