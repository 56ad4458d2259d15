"""The reference as a backend: slow, exact, runs everything it has a kernel for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import onnx
import onnx_ir as ir
from onnx.reference.ops import load_op

from ...compiler import ops
from ...compiler.backend import Array, Arrays, Executable, Payload, Signature, Verdict
from ...compiler.errors import ArtifactError, MissingTool
from .evaluator import KERNELS, Evaluator

if TYPE_CHECKING:
    from ...compiler.pass_api import Context
    from ...compiler.target import Target

_ENGINE = "reference"
_FILE = "model.onnx"


class ReferenceExecutable:
    """A model run by the reference evaluator."""

    def __init__(self, model: ir.Model) -> None:
        self._evaluator: Evaluator | None = Evaluator(model)
        self._signature = self._evaluator.signature

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if self._evaluator is None:
            raise ArtifactError("closed", "this executable was closed", "load the artifact again")
        return self._evaluator.run(inputs)

    def close(self) -> None:
        """Free the weights; later calls of `run` raise."""
        self._evaluator = None


class ReferenceBackend:
    """Runs any model on any target, as the semantics say."""

    name: ClassVar[str] = "reference"

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Say whether there is a kernel for `node`."""
        if has_kernel(node.domain, node.op_type):
            return Verdict.yes()
        return Verdict.no(f"the reference has no kernel for {node.domain or 'ai.onnx'}::{node.op_type}")

    def engines(self, target: Target) -> Sequence[str]:
        """Return the one engine."""
        return (_ENGINE,)

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Store the model as it is, own operators included."""
        _check_engine(engine)
        proto = ir.to_proto(model)
        return Payload(_ENGINE, {_FILE: proto.SerializeToString()}, {})

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load `model.onnx` from `folder`; the number of threads is BLAS's business."""
        _check_engine(engine)
        ops.register()
        return ReferenceExecutable(ir.load(folder / _FILE))


def _check_engine(engine: str) -> None:
    if engine != _ENGINE:
        raise MissingTool(
            "unknown-engine", f"the reference backend has no engine {engine!r}", f"use {_ENGINE!r}"
        )


@functools.cache
def has_kernel(domain: str, op_type: str) -> bool:
    """Say whether the reference runs an operator, by a kernel or by its definition as a function."""
    if any((kernel.op_domain, kernel.__name__) == (domain, op_type) for kernel in KERNELS):
        return True
    if domain not in ("", "ai.onnx") or not onnx.defs.has(op_type):
        return False
    schema = onnx.defs.get_schema(op_type)
    # both properties are missing from onnx' type stubs
    as_function = getattr(schema, "has_function", False) or getattr(
        schema, "has_context_dependent_function", False
    )
    return bool(as_function) or _in_onnx(op_type)


def _in_onnx(op_type: str) -> bool:
    try:
        load_op("", op_type)
    except (NotImplementedError, RuntimeError):
        return False
    return True
