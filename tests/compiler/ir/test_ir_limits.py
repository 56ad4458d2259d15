"""The bound on memory holds during the block and is gone after it.

The tests map anonymous memory: an ordinary allocation may be served from what the process has already.
"""

from __future__ import annotations

import mmap
import sys

import pytest

from pared.compiler.ir.limits import bounded_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address space limits are Linux's")


def take(megabytes: int) -> None:
    mmap.mmap(-1, megabytes << 20).close()


def test_a_large_allocation_fails_inside() -> None:
    with bounded_memory(64 << 20), pytest.raises(OSError, match="Cannot allocate memory"):
        take(256)


def test_a_small_allocation_passes_inside() -> None:
    with bounded_memory(256 << 20):
        take(16)


def test_the_bound_is_gone_after_an_error() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"), bounded_memory(64 << 20):
        take(256)
    take(256)


def test_a_bound_that_was_there_is_kept() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with bounded_memory(64 << 20):
        pass
    assert resource.getrlimit(resource.RLIMIT_AS) == before
