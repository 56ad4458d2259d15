"""The ways to run a model on a CPU, built without writing an artifact, so that the driver can time them."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...compiler.backend import Executable, Payload
from ...compiler.pass_api import Context
from ...compiler.target import Target
from .backend import CpuBackend


@dataclass(frozen=True)
class Candidate:
    """One way to run: a precision's model on an engine. Its name, such as `int8-ort`, is stable."""

    precision: str
    engine: str
    model: ir.Model

    @property
    def name(self) -> str:
        """Return `<precision>-<engine>`."""
        return f"{self.precision}-{self.engine}"

    def lower(self, target: Target, ctx: Context) -> Payload:
        """Make the payload; raises as `CpuBackend.lower`."""
        return CpuBackend().lower(self.model, target, self.engine, ctx)


def candidates(models: Mapping[str, ir.Model], target: Target) -> list[Candidate]:
    """Return every precision on every engine that is installed and that the target names.

    Args:
        models: precision such as `float32`, `int8` -> the model of it, float first.
        target: names the engines.
    """
    engines = CpuBackend().engines(target)
    return [Candidate(precision, engine, model) for precision, model in models.items() for engine in engines]


def open_payload(payload: Payload, threads: int | None) -> Executable:
    """Make a payload runnable; what it needs on disk lies in a temporary folder and goes with the result."""
    folder = tempfile.TemporaryDirectory(prefix="pared-candidate-")
    for name, content in payload.files.items():
        path = Path(folder.name) / name
        if isinstance(content, Path):
            os.link(content, path)  # onnxruntime refuses weights behind a symbolic link
        else:
            path.write_bytes(content)
    executable = CpuBackend().load(Path(folder.name), payload.engine, payload.options, threads)
    weakref.finalize(executable, folder.cleanup)
    return executable
