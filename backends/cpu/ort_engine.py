"""Engine `ort`: a plain `model.onnx` that any onnxruntime runs, in a session tuned for latency."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from ...compiler import ort
from ...compiler.backend import Array, Arrays, Payload, Signature
from ...compiler.errors import ArtifactError
from ...compiler.inputs import InputChecker
from ...compiler.ir.export import save, to_bytes, weight_bytes
from ...compiler.ops import expand_custom_ops

PAYLOAD = "model.onnx"
NAMES = "names.json"

# Above this the weights lie in a file of their own, which is mapped into memory instead of parsed.
EXTERNAL_BYTES = 256 << 20


class OrtExecutable:
    """A session of onnxruntime; `run` may be called from several threads at once."""

    def __init__(self, model: bytes | Path, threads: int | None) -> None:
        self._session = ort.make_session(model, threads=threads)
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


def lower(model: ir.Model, engine: str = "ort") -> Payload:
    """Write the model as standard ONNX, own operators expanded, names shortened; `model` is not edited.

    Weights beyond 256 MiB go to a second file. The attachment `names.json` maps short names to original ones.

    Raises:
        UnsupportedOp, InvalidGraph, ModelError: onnxruntime cannot run it.
    """
    copy = model.clone()
    expand_custom_ops(copy)
    names: dict[str, str] = {}
    folder = Path(tempfile.mkdtemp(prefix="pared-lower-"))
    files = _write(copy, folder)
    payload = Payload(engine, files, {}, {NAMES: json.dumps(names, indent=0)} if names else {})
    # The writer moves the files out; what is left goes with the payload.
    weakref.finalize(payload, shutil.rmtree, folder, ignore_errors=True)
    ort.make_session(files[PAYLOAD], optimize="none", low_memory=True)
    return payload


def load(folder: Path, threads: int | None) -> OrtExecutable:
    """Load the payload from an artifact's folder; raises `ArtifactError` when it is not there."""
    return OrtExecutable(payload_path(folder), threads)


def payload_path(folder: Path) -> Path:
    """Return where `model.onnx` lies in an artifact's folder; raises `ArtifactError` when it does not."""
    path = folder / PAYLOAD
    if not path.is_file():
        raise ArtifactError("artifact-file-missing", f"{folder} has no {PAYLOAD}", "compile it again")
    return path


def _write(model: ir.Model, folder: Path) -> Mapping[str, bytes | Path]:
    if weight_bytes(model) <= EXTERNAL_BYTES:
        return {PAYLOAD: to_bytes(model)}
    return {path.name: path for path in save(model, folder / PAYLOAD, external_threshold=1024)}
