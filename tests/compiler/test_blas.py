"""Matrix products on one thread, and the caller's setting afterwards."""

from __future__ import annotations

import pytest

from pared.compiler import blas

controls = blas._controls()
pytestmark = pytest.mark.skipif(controls is None, reason="NumPy's BLAS has no known switch for threads")


def threads() -> int:
    assert controls is not None
    return controls[0]()


@pytest.fixture(autouse=True)
def _two_threads():
    assert controls is not None
    before = threads()
    controls[1](2)
    yield
    controls[1](before)


def test_one_thread_inside_and_as_before_after_it() -> None:
    before = threads()
    with blas.one_blas_thread():
        assert threads() == 1
    assert threads() == before


def test_nested_blocks_leave_the_outer_one_in_force() -> None:
    with blas.one_blas_thread():
        with blas.one_blas_thread():
            pass
        assert threads() == 1


def test_an_error_inside_puts_the_threads_back() -> None:
    before = threads()
    with pytest.raises(KeyError), blas.one_blas_thread():
        raise KeyError
    assert threads() == before
