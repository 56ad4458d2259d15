"""What runs a payload of plain ONNX in onnxruntime. Imports neither onnx nor the IR."""

from __future__ import annotations

from pathlib import Path

from . import ort
from .backend import Array, Arrays, Signature
from .errors import ArtifactError
from .inputs import InputChecker
from .ort_provider import Provider

PAYLOAD = "model.onnx"


class OrtExecutable:
    """A session of onnxruntime tuned for latency; `run` may be called from several threads at once.

    Args:
        model: its bytes, or where it lies.
        threads: per run; None takes every core this process may use.
        provider: runs every node; None: the CPU.

    Raises:
        MissingTool, UnsupportedOp, InvalidGraph, ModelError: as `ort.make_session`.
    """

    def __init__(self, model: bytes | Path, threads: int | None, provider: Provider | None = None) -> None:
        self._session = ort.make_session(model, threads=threads, provider=provider)
        self._signature = ort.session_signature(self._session)
        self._check = InputChecker(self._signature)
        self._outputs = [port.name for port in self._signature.outputs]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order; sizes that onnxruntime does not know have the empty name."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, dtype or shape."""
        return ort.run_checked(self._session, self._check(inputs), self._outputs)

    def close(self) -> None:
        """Free the session."""
        del self._session


def payload_path(folder: Path) -> Path:
    """Return where `model.onnx` lies in an artifact's folder; raises `ArtifactError` when it does not."""
    path = folder / PAYLOAD
    if not path.is_file():
        raise ArtifactError("artifact-file-missing", f"{folder} has no {PAYLOAD}", "compile it again")
    return path
