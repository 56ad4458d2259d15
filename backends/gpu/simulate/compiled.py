"""Kernels as libraries of this machine: g++, ctypes, and the scheduler they share."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....compiler.errors import MissingTool
from ..program import Dims
from .errors import SimulationError
from .source import host_source

_INCLUDE = Path(__file__).parent / "include"
_TIMEOUT_S = 600
_COMMON = ("-std=c++17", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", "-fcf-protection=none")
# Wrapping integers and any cast between pointers, as on a device; a misaligned access or an index beyond a
# local array ends in a trap.
_KERNEL = (
    "-O1", "-fwrapv", "-fno-strict-aliasing",
    "-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error",
)  # fmt: skip
# -O1 alone leaves products and sums apart.
_FUSED, _APART = ("-ffp-contract=fast", "-fexpensive-optimizations"), ("-ffp-contract=off",)
_MESSAGES = {
    1: "accesses {text}",
    2: "accesses an address that is not a multiple of the access's size, or beyond an array",
    3: "divides by zero",
    4: "is stuck: {text}",
    5: "fails: {text}",
    6: "has written past a buffer: {text}",
}
_lock = threading.RLock()


class _Report(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_int), ("thread", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("address", ctypes.c_uint64), ("shared_bytes", ctypes.c_int), ("line", ctypes.c_int),
        ("text", ctypes.c_char * 232),
    )  # fmt: skip


def find_compiler() -> str:
    """Return the path of g++; raises `MissingTool`."""
    found = shutil.which("g++")
    if found is None or platform.system() != "Linux":
        raise MissingTool("simulation-compiler", "simulating kernels needs g++ on Linux", "install g++")
    return found


@functools.cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="pared-simulate-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _compile(source: Path, output: Path, options: Sequence[str]) -> None:
    command = [find_compiler(), *_COMMON, *options, f"-I{_INCLUDE}", "-o", str(output), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as err:
        raise SimulationError(
            "simulation-compiler", f"g++ did not end in {_TIMEOUT_S} s", "simulate a smaller model"
        ) from err
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise SimulationError("simulation-compiler", f"g++: {text[:1500]}", "report it with the kernel")


@functools.cache
def runtime() -> ctypes.CDLL:
    """Return the scheduler, built once per process."""
    with _lock:
        built = _folder() / "runtime.so"
        _compile(_INCLUDE / "sim_runtime.cpp", built, ["-O2"])
        library = ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)
    library.sim_allocate.restype = ctypes.c_void_p
    library.sim_allocate.argtypes = [ctypes.c_size_t]
    library.sim_release.argtypes = [ctypes.c_void_p]
    return library


@functools.cache
def fused_options() -> tuple[str, ...]:
    """Return the option for fused multiply-adds; empty where this machine has none."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ()
    return ("-mfma",) if " fma " in flags else ()


@functools.cache
def _header(options: tuple[str, ...]) -> Path:
    """Return a folder with the common header compiled for these options: half of a small kernel's time."""
    folder = _folder() / hashlib.sha256(str(options).encode()).hexdigest()[:16]
    folder.mkdir()
    _compile(_INCLUDE / "sim.h", folder / "sim.h.gch", [*options, "-x", "c++-header"])
    return folder


@dataclass(frozen=True)
class Library:
    """Compiled kernels.

    Attributes:
        handle: of the loaded library.
        threads: kernel -> most threads of a block.
    """

    handle: ctypes.CDLL
    threads: Mapping[str, int]

    def run(
        self, kernel: str, grid: Dims, block: Dims, shared: int, buffers: Sequence[int], *, backwards: bool
    ) -> int:
        """Run one launch, lanes, warps and blocks in ascending order, or `backwards`.

        Returns:
            Bytes of static shared memory.

        Raises:
            SimulationError: what no device permits, with kernel, block and thread.
        """
        self._check(kernel, grid, block)
        report = _Report()
        given = (ctypes.c_void_p * max(len(buffers), 1))(*buffers)
        sizes = (ctypes.c_int * 6)(*grid, *block)
        with _lock:
            entry = getattr(self.handle, f"sim_entry_{kernel}")
            code = runtime().sim_run(entry, given, sizes, shared, int(backwards), ctypes.byref(report))
        if code:
            raise _error(kernel, report)
        return int(report.shared_bytes)

    def _check(self, kernel: str, grid: Dims, block: Dims) -> None:
        most = self.threads.get(kernel)
        if most is None:
            raise SimulationError("simulation-launch", f"there is no kernel {kernel}", "check the name")
        count = block[0] * block[1] * block[2]
        if not 0 < count <= most or min(grid) < 1 or block[2] > 64 or max(grid[1:]) > 65535:
            raise SimulationError(
                "simulation-launch", f"{kernel}: grid {grid}, block {block}, compiled for {most} threads",
                "use sizes that a device has",
            )  # fmt: skip


def _error(kernel: str, report: _Report) -> SimulationError:
    block, thread = tuple(report.block), tuple(report.thread)
    what = _MESSAGES[report.code].format(text=report.text.decode(errors="replace"))
    where = f"{kernel}, block {block}, thread {thread}"
    return SimulationError("simulation-failed", f"{where}: {what}", "see the kernel's source")


@functools.lru_cache(maxsize=256)
def library(source: str, arch: str = "sm_90", *, contract: bool = False) -> Library:
    """Compile CUDA C++ for this CPU; kept for the life of the process.

    Args:
        source: what `Kernels.sources` holds.
        arch: what `__CUDA_ARCH__` stands for.
        contract: products and sums may become fused multiply-adds, where this machine has them.

    Raises:
        MissingTool: g++ is not here.
        SimulationError: it does not compile, or has an instruction that is not simulated.
    """
    with _lock:
        return _library(source, arch, contract)


def _library(source: str, arch: str, contract: bool) -> Library:
    host = host_source(source)
    prelude = f'#include "sim.h"\n#define __CUDA_ARCH__ {arch.removeprefix("sm_")}0\n'
    text = prelude + ('#include "sim_ptx.h"\n' if "sim_reg" in host.text else "") + host.text
    options = (*_KERNEL, *(_FUSED if contract else _APART), *(fused_options() if contract else ()))
    name = hashlib.sha256((text + str(options)).encode()).hexdigest()[:16]
    runtime()
    path = _folder() / f"{name}.cpp"
    path.write_text(text, encoding="utf-8")
    built = path.with_suffix(".so")
    _compile(path, built, [f"-I{_header(options)}", *options])
    return Library(ctypes.CDLL(str(built)), host.threads)
