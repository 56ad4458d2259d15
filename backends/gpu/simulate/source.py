"""From CUDA C++ to C++ that a host compiler takes: shared arrays, kernels' entries, instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import SimulationError
from .instructions import rewrite_instructions

_MOST_THREADS = 1024
_BOUNDS = r"(?:__launch_bounds__\s*\(([^)]*)\)\s*)?"
_KERNEL = re.compile(rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(")
_ALIGNED = r"(?:(?:alignas|__align__)\s*\(\s*(\d+)\s*\)\s*)?"
_SHARED = re.compile(rf"{_ALIGNED}(extern\s+)?__shared__\s+{_ALIGNED}([^;=(]*?)(\w+)\s*((?:\[[^\]]*\]\s*)*);")


@dataclass(frozen=True)
class HostSource:
    """A translation unit for the host.

    Attributes:
        text: C++.
        threads: kernel -> most threads of a block that it is compiled for.
    """

    text: str
    threads: Mapping[str, int]


def host_source(cuda: str) -> HostSource:
    """Rewrite CUDA C++.

    Raises:
        SimulationError: an instruction that is not known, a shared array outside all functions.
    """
    threads: dict[str, int] = {}
    for found in _KERNEL.finditer(cuda):
        bound = (found[1] or found[2] or "").split(",")[0].strip()
        threads[found[3]] = int(bound) if bound.isdigit() else _MOST_THREADS
    slots = iter(range(1 << 30))
    text = rewrite_instructions(cuda)
    text = _SHARED.sub(lambda found: _array(found, next(slots), _is_global(text, found.start())), text)
    entries = [f'extern "C" void sim_entry_{name}(void **a) {{ sim_call({name}, a); }}\n' for name in threads]
    return HostSource('#line 1 "kernel.cu"\n' + text + "\n" + "".join(entries), threads)


def _is_global(text: str, at: int) -> bool:
    """Tell whether a declaration is outside all functions."""
    return text.count("{", 0, at) == text.count("}", 0, at)


def _array(found: re.Match[str], slot: int, is_global: bool) -> str:
    """Return a reference to memory of the block; as many lines as before."""
    extern, kind, name, sizes = found[2], found[4].strip(), found[5], found[6].strip()
    alignment = found[1] or found[3] or "16"
    lines = "\n" * found[0].count("\n")
    if is_global:
        raise SimulationError(
            "simulation-source",
            f"shared array {name} is declared outside a kernel",
            "declare it in the kernel",
        )
    if extern:
        return f"{kind} *{name} = ({kind} *)sim_dynamic();{lines}"
    kind = kind.replace("volatile", "").strip()
    made = f'sim_shared({slot}, __PRETTY_FUNCTION__, "{name}", sizeof({kind}{sizes}), {alignment})'
    return f"{kind} (&{name}){sizes} = *({kind} (*){sizes}){made};{lines}"
