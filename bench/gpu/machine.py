"""What the figures were taken on: device, driver and versions."""

from __future__ import annotations

import ctypes
import platform
from importlib import metadata

import torch

from ...backends.gpu.cublaslt import NAME, lt_api, version_text
from .candidate import on_gpu

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "apache-tvm",
)


def describe() -> dict[str, object]:
    """Return names and versions; of the device only where there is one."""
    found: dict[str, object] = {"python": platform.python_version(), "versions": _versions()}
    if not on_gpu():
        return found | {"device": "none: dry run", "arch": None}
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "device": properties.name,
        "arch": f"sm_{properties.major}{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    library = lt_api()
    return found if library is None else found | {NAME: version_text(library.version)}


def _driver() -> str | None:
    """Return the driver's version as NVML has it."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, 96):
            return None
    except (OSError, AttributeError):
        return None
    return text.value.decode()
