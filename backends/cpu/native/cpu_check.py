"""Writes the C function that names a feature which the code uses and the CPU lacks."""

from __future__ import annotations

from .isa import Isa

# CPUID leaf, subleaf, register and bit, and which registers the system must save: Intel SDM 2A, CPUID;
# AMD64 APM 3, appendix E.
_X86 = {
    "sse4_1": (1, 0, "ECX", 19, "NONE"),
    "avx": (1, 0, "ECX", 28, "AVX"),
    "avx2": (7, 0, "EBX", 5, "AVX"),
    "fma": (1, 0, "ECX", 12, "AVX"),
    "f16c": (1, 0, "ECX", 29, "AVX"),
    "bmi1": (7, 0, "EBX", 3, "NONE"),
    "bmi2": (7, 0, "EBX", 8, "NONE"),
    "movbe": (1, 0, "ECX", 22, "NONE"),
    "avx_vnni": (7, 1, "EAX", 4, "AVX"),
    "avx512f": (7, 0, "EBX", 16, "AVX512"),
    "avx512bw": (7, 0, "EBX", 30, "AVX512"),
    "avx512cd": (7, 0, "EBX", 28, "AVX512"),
    "avx512dq": (7, 0, "EBX", 17, "AVX512"),
    "avx512vl": (7, 0, "EBX", 31, "AVX512"),
    "avx512_vnni": (7, 0, "ECX", 11, "AVX512"),
    "avx512_bf16": (7, 1, "EAX", 5, "AVX512"),
    "avx512_vpopcntdq": (7, 0, "ECX", 14, "AVX512"),
    "avx512_bitalg": (7, 0, "ECX", 12, "AVX512"),
}
# Bits of AT_HWCAP in Linux.
_ARM = {"asimd": 1, "asimddp": 20}


def missing_feature(isa: Isa) -> str:
    """Return the source of `pared_missing_feature`; on x86 it stands on `c/cpu_x86.h`."""
    x86 = isa.arch == "x86_64"
    include = '#include "cpu_x86.h"' if x86 and isa.features else "" if x86 else "#include <sys/auxv.h>"
    tests = [f'    if (!{_test(name, x86)}) return "{name}";' for name in isa.features]
    head = "const char *pared_missing_feature(void) {"
    return "\n".join([include, head, *tests, "    return 0;", "}"]) + "\n"


def _test(name: str, x86: bool) -> str:
    if not x86:
        return f"(getauxval(AT_HWCAP) >> {_ARM[name]} & 1)"
    leaf, subleaf, word, bit, states = _X86[name]
    return f"cpu_has({leaf}, {subleaf}, {word}, {bit}, STATE_{states})"
