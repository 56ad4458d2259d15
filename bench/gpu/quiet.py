"""Keeps the GPU for one process at a time while several compile: whoever times kernels holds a lock.

torch.compile chooses kernels by timing them; a choice made beside other work would not be its best.
"""

from __future__ import annotations

import fcntl
import functools
from collections.abc import Callable
from pathlib import Path

# Timers call each other; the second lock of one process would wait for the first.
_holding: list[bool] = []
_TIMER = "benchmark_gpu"


def lock_timing(file: Path) -> bool:
    """Make every timing of torch's compiler take the lock `file`; returns whether its timer was found."""
    try:
        from torch._inductor.runtime import benchmarking
    except ImportError:
        return False
    found = False
    for cls in (benchmarking.TritonBenchmarker, getattr(benchmarking, "InductorBenchmarker", None)):
        if cls is not None and _TIMER in vars(cls):
            setattr(cls, _TIMER, _locked(vars(cls)[_TIMER], file))
            found = True
    return found


def _locked(method: Callable[..., object], file: Path) -> Callable[..., object]:
    @functools.wraps(method)
    def run(*args: object, **kwargs: object) -> object:
        if _holding:
            return method(*args, **kwargs)
        with file.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _holding.append(True)
            try:
                return method(*args, **kwargs)
            finally:
                _holding.pop()

    return run
