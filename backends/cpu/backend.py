"""The CPU backend: onnxruntime always, OpenVINO where it is installed, own machine code where TVM is.

Engine `mixed` runs regions of a model in own machine code and the rest in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...compiler.backend import Executable, Payload, Verdict
from ...compiler.errors import TargetError, nearest
from ...compiler.ort_run import OrtExecutable, payload_path
from . import openvino_engine
from .mixed import engine as mixed_engine
from .native import compile as native_compile
from .native import engine as native_engine

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.pass_api import Context
    from ...compiler.target import Target

ENGINES = ("ort", "openvino", "native", "mixed")

# Every imported model has at least this.
_LOWEST_OPSET = 21


class CpuBackend:
    """Runs standard ONNX, QDQ and the own operators (expanded) on a CPU."""

    name: ClassVar[str] = "cpu"

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Take what the target allows and onnxruntime has a kernel for, given the node's dtypes."""
        from . import kernels

        limit = target.allows(node)
        return limit if not limit.ok else kernels.verdict(node, _opset(node))

    def engines(self, target: Target) -> Sequence[str]:
        """Return the target's engines that are installed here, preferred first."""
        here = {
            "ort": True,
            "openvino": openvino_engine.installed(),
            "native": native_compile.installed(),
            "mixed": native_compile.installed(),
        }
        return [name for name in target.engines if here.get(name, False)]

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Lower a whole model for one engine; `model` is not edited.

        Raises:
            TargetError: unknown engine, more weights than the target holds, no code for its instructions.
            MissingTool: the engine is not installed.
            UnsupportedOp: `native` has no kernel for a node, `mixed` no division worth it; says why.
            UnsupportedOp, InvalidGraph: onnxruntime cannot run a quantized model; others show it in `load`.
        """
        from . import ort_engine

        _known(engine)
        _check_memory(model, target)
        ctx.check_cancelled()
        if engine == "native":
            return native_compile.lower(model, target, ctx)
        if engine == "mixed":
            from .mixed import lower as mixed_lower

            return mixed_lower.lower(model, target, ctx)
        return ort_engine.lower(model) if engine == "ort" else openvino_engine.lower(model)

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load a payload from an artifact's folder.

        Raises:
            ArtifactError: the payload is not there.
            MissingTool: the engine is not installed.
            UnsupportedOp, InvalidGraph, ModelError: the engine cannot run it.
            TargetError: this CPU lacks what `native` code uses.
        """
        _known(engine)
        if engine == "ort":
            return OrtExecutable(payload_path(folder), threads)
        if engine == "native":
            return native_engine.load(folder, options, threads)
        if engine == "mixed":
            return mixed_engine.load(folder, options, threads)
        return openvino_engine.load(folder, threads)


def _known(engine: str) -> None:
    if engine not in ENGINES:
        raise TargetError(
            "engine-unknown", f"backend cpu has no engine {engine!r}", nearest(engine, list(ENGINES))
        )


def _opset(node: ir.Node) -> int:
    imports = node.graph.opset_imports if node.graph is not None else {}
    # Bodies of If, Loop and Scan import nothing themselves and do not know the graph around them.
    return imports.get(node.domain) or (_LOWEST_OPSET if node.domain == "" else 1)


def _check_memory(model: ir.Model, target: Target) -> None:
    from ...compiler.ir.export import weight_bytes

    limit, need = target.memory.weights_bytes, weight_bytes(model)
    if limit is not None and need > limit:
        raise TargetError(
            "target-memory",
            f"the weights take {need} bytes, target {target.name} has {limit} (memory.weights_bytes)",
            "compress the model, for example with --precision int8",
        )
