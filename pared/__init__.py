"""pared compiles ONNX models into verified, measured artifacts for CPU, GPU, FPGA and event machines.

    import pared

    artifact = pared.compile("model.onnx", precision="int8", calibration="calib.npz", output="out")
    with pared.load("out") as model:
        outputs = model.run({"image": image})

Names are loaded on first use, so that `import pared` stays cheap in a deployed process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench.bench import bench_artifact as bench
    from .compiler.artifact.read import Artifact
    from .compiler.backend import Executable
    from .compiler.driver import compile_model as compile
    from .compiler.errors import ParedError
    from .compiler.runtime import load
    from .compiler.verify import verify_artifact as verify

# onnxruntime's Linux wheels (1.31) keep a device id and usage events under ~/.cache, to be sent to the maker.
# This is read when onnxruntime is first used, here or in the processes that bench starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["Artifact", "Executable", "ParedError", "bench", "compile", "load", "verify"]

_HOMES = {
    "Artifact": ("compiler.artifact.read", "Artifact"),
    "Executable": ("compiler.backend", "Executable"),
    "ParedError": ("compiler.errors", "ParedError"),
    "bench": ("bench.bench", "bench_artifact"),
    "compile": ("compiler.driver", "compile_model"),
    "load": ("compiler.runtime", "load"),
    "verify": ("compiler.verify", "verify_artifact"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pared' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"pared.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
