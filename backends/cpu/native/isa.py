"""Which instructions kernels may use, from a target's `[isa]` section; names are those of /proc/cpuinfo."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ....compiler.backend import Verdict
from ....compiler.machine import Machine, find_machine
from ....compiler.target import Target

# Features that code generation takes for granted beside a named one: every CPU sold with the latter has them.
_IMPLIED = {
    "avx2": ("avx", "sse4_1", "f16c", "bmi1", "bmi2", "movbe"),
    "avx512f": ("avx2", "fma"),
    "avx512bw": ("avx512f", "avx512dq", "avx512vl", "avx512cd"),
    "avx512_vnni": ("avx512bw",),
    "avx512_bf16": ("avx512bw",),
    "avx512_vpopcntdq": ("avx512bw",),
    "avx512_bitalg": ("avx512bw",),
    "avx_vnni": ("avx2", "fma"),
    "asimddp": ("asimd",),
}

# LLVM's spelling where it differs from the kernel's; features without an entry are spelt alike.
_LLVM = {
    "sse4_1": "sse4.1",
    "bmi1": "bmi",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_bitalg": "avx512bitalg",
    "avx_vnni": "avxvnni",
    "asimd": "neon",
    "asimdhp": "fullfp16",
    "asimddp": "dotprod",
}

# What kernels have a use for. A CPU's further features are left out, so that code does not depend on them.
_X86 = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "avx_vnni",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_vpopcntdq", "avx512_bitalg",
)  # fmt: skip
_ARM = ("asimd", "asimddp")


@dataclass(frozen=True)
class Isa:
    """The instructions that code may use.

    Attributes:
        arch: `x86_64` or `aarch64`.
        features: as /proc/cpuinfo names them, implied ones included, in a fixed order; a CPU must have all.
    """

    arch: str
    features: tuple[str, ...]

    @property
    def vector_bytes(self) -> int:
        """Width of a vector register."""
        return 64 if self.avx512 else 32 if self.has("avx2", "fma") else 16

    @property
    def avx512(self) -> bool:
        """Tell whether there are 64-byte vectors with byte and word lanes."""
        return self.has("avx512f", "avx512bw", "avx512vl")

    @property
    def vnni(self) -> bool:
        """Tell whether vpdpbusd works on 64-byte vectors (u8 x s8 -> s32)."""
        return self.avx512 and self.has("avx512_vnni")

    @property
    def dotprod(self) -> bool:
        """Tell whether ARM's udot and sdot are there."""
        return self.has("asimddp")

    @property
    def popcount(self) -> bool:
        """Tell whether vpopcntd works on 64-byte vectors."""
        return self.avx512 and self.has("avx512_vpopcntdq")

    @property
    def bf16(self) -> bool:
        """Tell whether vdpbf16ps works on 64-byte vectors."""
        return self.avx512 and self.has("avx512_bf16")

    @property
    def triple(self) -> str:
        """Return LLVM's name of the platform."""
        return f"{self.arch}-linux-gnu"

    @property
    def llvm_target(self) -> dict[str, str | list[str]]:
        """Return the configuration of a `tvm.target.Target`; the same on every machine that compiles."""
        baseline = "x86-64" if self.arch == "x86_64" else "generic"
        attributes = [f"+{_LLVM.get(name, name)}" for name in self.features]
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": baseline, "mattr": attributes}

    @property
    def text(self) -> str:
        """Return architecture and features, as an artifact states them."""
        return " ".join([self.arch, *self.features])

    def has(self, *names: str) -> bool:
        """Tell whether all of `names` may be used."""
        return set(names) <= set(self.features)

    def missing_on(self, machine: Machine) -> list[str]:
        """Return what `machine` lacks, empty when code for this ISA runs there."""
        if machine.arch != self.arch:
            return [self.arch]
        return [name for name in self.features if name not in machine.cpu_features]


def isa_of(target: Target) -> Isa | Verdict:
    """Return the ISA of a target, or a refusal with its reason."""
    if target.isa.arch == "host":
        return host_isa()
    return _make(target.isa.arch, target.isa.features, f"target {target.name}")


def host_isa() -> Isa | Verdict:
    """Return everything this machine's CPU has that kernels can use, or a refusal with its reason."""
    machine = find_machine()
    return _make(machine.arch, machine.cpu_features, "this machine")


def _make(arch: str, features: Collection[str], where: str) -> Isa | Verdict:
    useful = {"x86_64": _X86, "aarch64": _ARM}.get(arch)
    if useful is None:
        return Verdict.no(f"{where} is {arch}; kernels are generated for x86_64 and aarch64")
    given = _closure(features)
    if arch == "aarch64" and "asimd" not in given:
        return Verdict.no(f"{where} does not promise asimd, which kernels on {arch} need")
    return Isa(arch, tuple(name for name in useful if name in given))


def _closure(features: Collection[str]) -> set[str]:
    found: set[str] = set()
    new = set(features)
    while new:
        found |= new
        new = {implied for name in new for implied in _IMPLIED.get(name, ())} - found
    return found
