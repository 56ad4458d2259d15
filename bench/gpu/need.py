"""Says what this machine has and lacks of what the benchmark uses; exits with 1 where it cannot run at all.

    python bench/gpu/need.py [--dry]

Plain Python: nothing but the standard library is imported before a package is known to be there.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

# Module -> distribution and what it is for. Without one of these nothing runs.
NEEDED = {
    "numpy": ("numpy", "everything"),
    "torch": ("torch", "the peers, events, tensors"),
    "onnx": ("onnx", "the networks' graphs"),
    "onnx_ir": ("onnx-ir", "pared"),
    "onnxscript": ("onnxscript", "pared"),
    "onnxruntime": ("onnxruntime", "pared, a peer"),
    "pydantic": ("pydantic", "pared"),
    "yaml": ("PyYAML", "pared"),
}
_LEAST = {"onnx-ir": (1, 1), "pydantic": (2, 9), "numpy": (2, 0)}


def findings(*, dry: bool) -> Iterator[tuple[bool, bool, str]]:
    """Yield: is it there, can nothing run without it, what to say."""
    for module, (name, use) in NEEDED.items():
        yield _package(module, name, use)
    try:
        import torch

        there = torch.cuda.is_available()
        yield there, not dry, f"GPU that torch sees: {torch.cuda.get_device_name(0) if there else 'none'}"
    except ImportError:
        pass
    tvm = _package("tvm", "apache-tvm", "compiling pared's programs here, else --programs")[0]
    nvcc = shutil.which("nvcc")
    yield tvm, False, "apache-tvm: compiles pared's programs here; without it give --programs"
    yield (
        nvcc is not None,
        False,
        f"nvcc: {nvcc or 'not on the PATH; needed where programs are compiled here'}",
    )
    yield _loads("libnvidia-ml.so.1"), False, "NVML (libnvidia-ml.so.1): energy"
    yield _cuda_provider(), False, "onnxruntime with CUDA: a peer"
    yield _package("tensorrt", "tensorrt", "a peer")[0], False, "TensorRT: a peer"


def _package(module: str, name: str, use: str) -> tuple[bool, bool, str]:
    try:
        importlib.import_module(module)
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    except (ImportError, OSError) as err:
        return False, True, f"{name}: {use}: {err}"
    least = _LEAST.get(name, ())
    if tuple(int(part) for part in version.split(".")[: len(least)] if part.isdigit()) < least:
        wanted = ".".join(map(str, least))
        return False, True, f"{name} {version}: {use} needs {wanted} or newer"
    return True, True, f"{name} {version}: {use}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cuda_provider() -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def main() -> None:
    """Print one line per finding."""
    stop = False
    for there, must, text in findings(dry="--dry" in sys.argv[1:]):
        stop = stop or (must and not there)
        print(f"{'have' if there else 'MISSING' if must else 'without'}  {text}", flush=True)
    sys.exit(1 if stop else 0)


if __name__ == "__main__":
    main()
