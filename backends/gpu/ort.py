"""Engine `ort`: a plain `model.onnx` that onnxruntime runs with its CUDA provider, wholly on the device.

Nothing falls back to the CPU: where the provider is missing, or leaves a node out, loading refuses.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...compiler import ort
from ...compiler.backend import Array, Arrays, Payload, Signature
from ...compiler.errors import ArtifactError
from ...compiler.inputs import InputChecker
from ...compiler.ir.compact import compact
from ...compiler.ir.export import save, to_bytes, weight_bytes
from ...compiler.ops import expand_custom_ops
from ...compiler.ort_provider import Provider, has_provider, need_provider
from ...compiler.temporary import folder_prefix

ENGINE = "ort"
PROVIDER = "CUDAExecutionProvider"
PAYLOAD = "model.onnx"

# Of the provider: float32 products stay float32, the fastest convolution is looked for at load time.
_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
# Above this the weights lie in a file of their own.
_EXTERNAL_BYTES = 256 << 20


def installed() -> bool:
    """Tell whether the installed onnxruntime has the CUDA provider."""
    return has_provider(PROVIDER)


def lower(model: ir.Model) -> Payload:
    """Write the model as standard ONNX, own operators expanded, names shortened; `model` is not edited.

    Raises:
        MissingTool: `ort-provider-missing`: what is compiled here could not be checked here.
    """
    need_provider(PROVIDER)
    copy = model.clone()
    if expand_custom_ops(copy):
        RemoveUnusedNodesPass()(copy)
    attachments = {"names.json": json.dumps(compact(copy), indent=0) + "\n"}
    folder = Path(tempfile.mkdtemp(prefix=folder_prefix("lower")))
    payload = Payload(ENGINE, _write(copy, folder), {"provider": PROVIDER, **_OPTIONS}, attachments)
    weakref.finalize(payload, shutil.rmtree, folder, ignore_errors=True)
    return payload


def _write(model: ir.Model, folder: Path) -> Mapping[str, bytes | Path]:
    if weight_bytes(model) <= _EXTERNAL_BYTES:
        return {PAYLOAD: to_bytes(model)}
    return {path.name: path for path in save(model, folder / PAYLOAD, external_threshold=1024)}


class OrtCudaExecutable:
    """A session of onnxruntime on a device; `run` may be called from several threads at once.

    Args:
        path: of the model.
        provider: what runs every node.

    Raises:
        MissingTool: `ort-provider-missing`.
        UnsupportedOp: `ort-provider-refused`.
    """

    def __init__(self, path: Path, provider: Provider) -> None:
        self._session = ort.make_session(path, provider=provider)
        self._signature = ort.session_signature(self._session)
        self._check = InputChecker(self._signature)
        self._outputs = [port.name for port in self._signature.outputs]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order; sizes that onnxruntime does not know have the empty name."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        return ort.run_checked(self._session, self._check(inputs), self._outputs)

    def close(self) -> None:
        """Free the session."""
        del self._session


def load(folder: Path, options: Mapping[str, object]) -> OrtCudaExecutable:
    """Load a payload from an artifact's folder.

    Args:
        folder: with the payload's files.
        options: of the payload; `device`, an index, where one is asked for.

    Raises:
        ArtifactError: it is not there.
        MissingTool, UnsupportedOp: it does not run wholly on a device here.
    """
    path = folder / PAYLOAD
    if not path.is_file():
        raise ArtifactError("artifact-file-missing", f"{folder} has no {PAYLOAD}", "compile it again")
    asked = {key: str(options[key]) for key in _OPTIONS if key in options}
    device = options.get("device")
    if isinstance(device, int):
        asked["device_id"] = str(device)
    return OrtCudaExecutable(path, Provider(str(options.get("provider", PROVIDER)), asked))
