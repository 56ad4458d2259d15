"""Describes this machine: CPU and the features that matter for kernels, cores, memory, energy meter."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .cuda import cuda_devices

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_POWERCAP = Path("/sys/class/powercap")

# Flags of /proc/cpuinfo that decide which kernels run; x86 first, then ARM (HWCAP names).
_FEATURES = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "avx_vnni",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_vpopcntdq", "avx512_bitalg", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where pared runs.

    Attributes:
        cpu_features: names as in /proc/cpuinfo, only those that matter for kernels; empty when unknown.
        cores_usable: how many this process may use (affinity), `cores_total` how many there are.
        memory_bytes: physical memory; None when unknown.
        rapl: the energy counter can be read.
        rapl_how: where it is, or why it cannot be read.
        c_compiler: what links models of engine `native`: path of a C compiler, or how to run that of the
            package ziglang; None when there is neither. Nothing else needs one.
        gpus: CUDA devices that the driver shows, as `sm_90`.
        cuda_compiler: path of nvcc, which compiles for GPUs; None where there is none. Running needs none.
    """

    system: str
    arch: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores_usable: int
    cores_total: int
    memory_bytes: int | None
    rapl: bool
    rapl_how: str
    c_compiler: str | None
    gpus: tuple[str, ...] = ()
    cuda_compiler: str | None = None

    @property
    def name(self) -> str:
        """What it is in one line of a message."""
        return " with ".join((self.arch, *self.gpus))


def find_machine() -> Machine:
    """Return what can be told about this machine without rights or tools."""
    cpuinfo = read_cpuinfo(_text(_CPUINFO))
    readable, how = rapl_state(_POWERCAP)
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=cpuinfo.get("model name") or platform.processor() or platform.machine() or "unknown",
        cpu_features=features_of(cpuinfo),
        cores_usable=_usable_cores(),
        cores_total=os.cpu_count() or 1,
        memory_bytes=memory_of(_text(_MEMINFO)),
        rapl=readable,
        rapl_how=how,
        c_compiler=_c_compiler(),
        gpus=cuda_devices(),
        cuda_compiler=shutil.which("nvcc"),
    )


def read_cpuinfo(text: str) -> dict[str, str]:
    r"""Return the fields of the first processor of a /proc/cpuinfo text.

    >>> read_cpuinfo("model name\t: EPYC\nflags\t\t: avx avx2\n\nmodel name: other")
    {'model name': 'EPYC', 'flags': 'avx avx2'}
    """
    first = text.strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def features_of(cpuinfo: Mapping[str, str]) -> tuple[str, ...]:
    """Return the kernel-relevant features, in a fixed order; x86 says `flags`, ARM `Features`."""
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return tuple(name for name in _FEATURES if name in flags)


def memory_of(meminfo: str) -> int | None:
    """Return physical memory in bytes from a /proc/meminfo text, or None.

    >>> memory_of("MemTotal:       16 kB")
    16384
    """
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    return None


def rapl_state(powercap: Path) -> tuple[bool, str]:
    """Say whether the package energy counter can be read, and where it is or why not."""
    counters = sorted(powercap.glob("intel-rapl:*/energy_uj"))
    if not counters:
        return False, f"no RAPL counter under {powercap}"
    try:
        counters[0].read_text()
    except OSError as err:
        return False, f"{counters[0]}: {err.strerror}; reading needs root or a changed file mode"
    return True, str(counters[0])


def _c_compiler() -> str | None:
    system = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    wheel = "python -m ziglang cc" if importlib.util.find_spec("ziglang") is not None else None
    return system or wheel


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
