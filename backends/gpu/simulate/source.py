"""From CUDA C++ to C++ that a host compiler takes: shared arrays, kernels' entries, instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .instructions import rewrite_instructions

_KERNEL = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\(\s*(\d+)[^)]*\)\s*)?void\s+"
    r"(?:__launch_bounds__\s*\(\s*(\d+)[^)]*\)\s*)?(\w+)\s*\("
)
_SHARED = re.compile(
    r"(extern\s+)?__shared__\s+((?:alignas|__align__)\s*\(\s*(\d+)\s*\)\s*)?([^;=(]*?)(\w+)\s*((?:\[[^\]]*\]\s*)*);"
)


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
        SimulationError: an instruction that is not known.
    """
    threads: dict[str, int] = {}
    for found in _KERNEL.finditer(cuda):
        threads[found[3]] = int(found[1] or found[2] or 1024)
    slots = iter(range(1 << 30))
    text = _SHARED.sub(lambda found: _array(found, next(slots)), rewrite_instructions(cuda))
    entries = [f'extern "C" void sim_entry_{name}(void **a) {{ sim_call({name}, a); }}\n' for name in threads]
    return HostSource('#line 1 "kernel.cu"\n' + text + "\n" + "".join(entries), threads)


def _array(found: re.Match[str], slot: int) -> str:
    """Return a reference to memory of the block; as many lines as before."""
    extern, alignment, kind, name, sizes = found[1], found[3] or "16", found[4].strip(), found[5], found[6]
    lines = "\n" * found[0].count("\n")
    if extern:
        return f"{kind} *{name} = ({kind} *)sim_dynamic();{lines}"
    kind, sizes = kind.replace("volatile", "").strip(), sizes.strip()
    made = f'sim_shared({slot}, __PRETTY_FUNCTION__, "{name}", sizeof({kind}{sizes}), {alignment})'
    return f"{kind} (&{name}){sizes} = *({kind} (*){sizes}){made};{lines}"
