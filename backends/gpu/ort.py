"""Engine `ort`: a plain `model.onnx` that onnxruntime runs with its CUDA provider, wholly on the device.

Nothing falls back to the CPU: where the provider is missing, or leaves a node out, loading refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...compiler.backend import Payload
from ...compiler.ort_provider import Provider, has_provider, need_provider
from ...compiler.ort_run import OrtExecutable, payload_path

if TYPE_CHECKING:
    import onnx_ir as ir

ENGINE = "ort"
PROVIDER = "CUDAExecutionProvider"

# Of the provider: float32 products stay float32, the fastest convolution is looked for at load time.
_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}


def installed() -> bool:
    """Tell whether the installed onnxruntime has the CUDA provider."""
    return has_provider(PROVIDER)


def lower(model: ir.Model) -> Payload:
    """Write the model as standard ONNX, own operators expanded, names shortened; `model` is not edited.

    Raises:
        MissingTool: `ort-provider-missing`: what is compiled here could not be checked here.
    """
    from ...compiler.onnx_payload import expanded, onnx_payload

    need_provider(PROVIDER)
    return onnx_payload(expanded(model), ENGINE, {"provider": PROVIDER, **_OPTIONS}, {})


def load(folder: Path, options: Mapping[str, object]) -> OrtExecutable:
    """Load a payload from an artifact's folder.

    Args:
        folder: with the payload's files.
        options: of the payload; `device`, an index, where one is asked for.

    Raises:
        ArtifactError: it is not there.
        MissingTool: `ort-provider-missing`.
        UnsupportedOp: `ort-provider-refused`: it does not run wholly on a device here.
    """
    path = payload_path(folder)
    asked = {key: str(options[key]) for key in _OPTIONS if key in options}
    device = options.get("device")
    if isinstance(device, int):
        asked["device_id"] = str(device)
    return OrtExecutable(path, 1, Provider(str(options.get("provider", PROVIDER)), asked))
