"""The GPU backend: models as CUDA kernels, compiled on any machine, run by the CUDA driver alone."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...compiler.backend import Executable, Payload, Verdict
from ...compiler.cuda import cuda_devices, runs_on
from ...compiler.errors import MissingTool
from .options import NAMES

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.pass_api import Context
    from ...compiler.target import Target

_ENGINE = "tvm"
_ENGINES = (_ENGINE, "ort")


class GpuBackend:
    """Compiles through TVM and nvcc; nothing is timed where no device is."""

    name: ClassVar[str] = "gpu"
    option_names: ClassVar[frozenset[str]] = NAMES
    devices: ClassVar[str] = "CUDA devices by index, or `emulated`"

    def __init__(self) -> None:
        self._compiled: set[str] = set()

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Take what the target allows and a rule emits; quantized layers are judged as a whole by `lower`."""
        from ...compiler.ops.constants import constant_expression
        from ..reference.backend import has_kernel
        from .emit.rules import RULES

        limit = target.allows(node)
        taken = (node.domain, node.op_type) in RULES
        taken = taken or all(constant_expression(value) is not None for value in node.outputs)
        if not limit.ok or taken or (node.domain and has_kernel(node.domain, node.op_type)):
            return limit
        return Verdict.no(f"no GPU kernel computes {node.domain or 'ai.onnx'}::{node.op_type}")

    def engines(self, target: Target) -> Sequence[str]:
        """Return the target's engines that can compile here."""
        from . import ort

        compiles = importlib.util.find_spec("tvm") is not None and shutil.which("nvcc") is not None
        here = {_ENGINE: compiles, ort.ENGINE: ort.installed()}
        return [name for name in target.engines if here.get(name, False)]

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Compile a model; `model` is not edited.

        Raises:
            MissingTool: TVM or nvcc are not here.
            TargetError: `gpu-arch`.
            UnsupportedOp: a node that no kernel takes, with the reason.
        """
        from . import ort
        from .lower import arch_of, lower

        _known(engine)
        ctx.check_cancelled()
        if engine == ort.ENGINE:
            return ort.lower(model)
        self._compiled.add(arch_of(target))
        return lower(model, target, ctx.decisions)

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load a payload onto a device; raises `MissingTool` or `TargetError` where none fits.

        What this instance compiled for a chip that is not here, it checks on an emulated device.
        """
        _known(engine)
        if engine != _ENGINE:
            from . import ort

            return ort.load(folder, options)
        # Nothing from here on needs more than NumPy, pydantic and the CUDA driver.
        from .loading import EMULATED, load

        device = options.get("device")
        assert device is None or isinstance(device, int | str), "an index or a word"
        arch = str(options.get("arch", ""))
        if device is None and arch in self._compiled and not any(runs_on(arch, c) for c in cuda_devices()):
            device = EMULATED
        return load(folder, device)


def _known(engine: str) -> None:
    if engine not in _ENGINES:
        raise MissingTool(
            "unknown-engine", f"the gpu backend has no engine {engine!r}", f"use {_ENGINE!r} or 'ort'"
        )
