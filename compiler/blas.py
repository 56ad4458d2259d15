"""NumPy's matrix products on one thread, for results that do not depend on the machine's cores.

OpenBLAS splits a product by the number of its threads, so sums, and with them bounds and rounded weights,
would differ from machine to machine. Its threads also wait in a busy loop: on a shared machine, or pinned
to fewer cores than it counted, that costs 10 to 50 times the work itself (seen with 2 cores and load 4).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

# (getter, setter) in the library that NumPy was linked to: NumPy's own wheels, distributions, conda.
_NAMES = (
    ("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads64_", "openblas_set_num_threads64_"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep NumPy's matrix products on the calling thread; does nothing where the library is unknown.

    The number of threads belongs to the process and is put back at the end.
    """
    found = _controls()
    if found is None:
        yield
        return
    get, put = found
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


@functools.cache
def _controls() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    from numpy.linalg import _umath_linalg  # the module that BLAS is linked to

    try:
        library = ctypes.CDLL(_umath_linalg.__file__)
    except OSError:
        return None
    for getter, setter in _NAMES:
        # A look-up in a library goes on in those that it was linked to.
        if hasattr(library, getter) and hasattr(library, setter):
            return getattr(library, getter), getattr(library, setter)
    return None
