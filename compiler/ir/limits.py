"""A bound on memory for calls into C++ that a hostile model can make allocate without end.

onnx's shape inference adds one dimension per element of a computed shape, so a shape of 10^9 elements takes
all memory of the machine, and a Slice with a step near 2^62 loops. The address space is capped for the
call; the allocation then fails and becomes an error. Linux only: elsewhere the call runs unbounded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = threading.Lock()
_STATM = Path("/proc/self/statm")


@contextmanager
def bounded_memory(extra_bytes: int) -> Iterator[None]:
    """Let the process map at most `extra_bytes` more than now; allocations beyond raise `MemoryError`.

    The bound holds for all threads while the block runs; blocks of several threads run one by one.
    """
    if sys.platform != "linux" or not _STATM.exists():
        yield
        return
    import resource

    with _LOCK:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = int(_STATM.read_text().split()[0]) * resource.getpagesize() + extra_bytes
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
