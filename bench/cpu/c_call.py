"""How long `pared_run` takes without Python around it: a loop in C, compiled with the system's compiler."""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path

from ...backends.cpu.native.isa import Isa
from ...backends.cpu.native.link import link

_SOURCE = """
typedef int (*run)(const void *const *, void *const *, void *);
void repeat(run call, const void *const *in, void *const *out, void *arena, int count) {
    for (int i = 0; i < count; i++) call(in, out, arena);
}
"""
SHORTEST_NS = 2e6


def c_call_ms(library: ctypes.CDLL, arguments: tuple[object, ...], isa: Isa, rounds: int = 15) -> float:
    """Return the least mean time of a call, in ms, over `rounds` of at least 2 ms each.

    Args:
        library: a model's.
        arguments: inputs, outputs and arena as `pared_run` takes them.
        isa: this machine's.
        rounds: how many means the least is taken of.
    """
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as folder:
        source, made = Path(folder) / "repeat.c", Path(folder) / "repeat.so"
        source.write_text(_SOURCE)
        link([source], made, isa)
        repeat = ctypes.CDLL(str(made)).repeat
    repeat.restype = None
    call = ctypes.cast(library.pared_run, ctypes.c_void_p)
    times: list[float] = []
    count = 1
    while len(times) < rounds:
        start = time.perf_counter_ns()
        repeat(call, *arguments, ctypes.c_int(count))
        took = time.perf_counter_ns() - start
        if took < SHORTEST_NS:
            count *= 2
        else:
            times.append(took / count / 1e6)
    return min(times)
