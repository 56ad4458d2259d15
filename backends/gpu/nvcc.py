"""NVIDIA's compiler: device code for one chip from CUDA C++, and a look at the instructions in it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...compiler.errors import MissingTool, ParedError
from ...compiler.temporary import folder_prefix

# A matrix product with its loops unrolled takes seconds, a whole network a minute.
_TIMEOUT_S = 600


def compile_cubin(source: str, arch: str, *, contract: bool) -> bytes:
    """Return machine code for `arch` (`sm_90`).

    Args:
        source: CUDA C++.
        arch: the chip; the code runs on no other generation.
        contract: products and sums may become fused multiply-adds, which round once.

    Raises:
        MissingTool: `nvcc-missing`.
        ParedError: `nvcc-failed`, with what it says.
    """
    return _run(source, ["-cubin", *_options(arch, contract)])


def compile_ptx(source: str, arch: str, *, contract: bool) -> str:
    """Return the virtual instructions that `compile_cubin` makes its code of, for inspection."""
    return _run(source, ["-ptx", *_options(arch, contract)]).decode()


def _options(arch: str, contract: bool) -> list[str]:
    return [f"-arch={arch}", f"-fmad={'true' if contract else 'false'}"]


def find_nvcc() -> str:
    """Return the path of nvcc; raises `MissingTool`."""
    found = shutil.which("nvcc")
    if found is None:
        raise MissingTool(
            "nvcc-missing",
            "compiling for CUDA needs nvcc, which is not on the PATH",
            "install NVIDIA's CUDA toolkit 12 or newer; running an artifact does not need it",
        )
    return found


def _run(source: str, options: Sequence[str]) -> bytes:
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory(prefix=folder_prefix("gpu")) as name:
        folder = Path(name)
        (folder / "model.cu").write_text(source, encoding="utf-8")
        command = [nvcc, "-w", "-O3", "-std=c++17", *options, "-o", "model.out", "model.cu"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as err:
            raise ParedError(
                "nvcc-failed", f"nvcc did not end in {_TIMEOUT_S} s", "use a smaller model or --fallback cpu"
            ) from err
        if done.returncode:
            text = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise ParedError("nvcc-failed", f"nvcc: {text[-500:]}", "report it with the model")
        return (folder / "model.out").read_bytes()
