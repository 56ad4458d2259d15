"""The bound on memory holds during the block and is gone after it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pared.compiler.ir.limits import bounded_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address space limits are Linux's")


def test_a_large_allocation_fails_inside() -> None:
    with bounded_memory(64 << 20), pytest.raises(MemoryError):
        np.empty(256 << 20, np.uint8)


def test_a_small_allocation_passes_inside() -> None:
    with bounded_memory(256 << 20):
        np.empty(16 << 20, np.uint8)


def test_the_bound_is_gone_after_an_error() -> None:
    with pytest.raises(MemoryError), bounded_memory(64 << 20):
        np.empty(256 << 20, np.uint8)
    np.empty(256 << 20, np.uint8)


def test_a_bound_that_was_there_is_kept() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with bounded_memory(64 << 20):
        pass
    assert resource.getrlimit(resource.RLIMIT_AS) == before
