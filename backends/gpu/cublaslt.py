"""NVIDIA's cuBLASLt through ctypes: what products of matrices need. It may be missing; nothing depends on it.

Names and numbers are those of cublasLt.h, cublas_api.h and library_types.h (https://docs.nvidia.com/cuda/cublas/),
the same in versions 12 and 13.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...compiler.errors import ParedError

# File of the library, for systems whose loader does not find it; a name that is no file leaves it out.
LIBRARY = "PARED_CUBLASLT"
NAME = "cuBLASLt"
# Reason of errors that say nothing of the device itself.
FAILED = "cublaslt-failed"

# As the loader finds them, also where torch has loaded them already; then in NVIDIA's wheels.
_USUAL = ("libcublasLt.so.13", "libcublasLt.so.12")
_WHEELS = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


class Header:
    """Numbers by their names in the headers."""

    CUBLAS_STATUS_SUCCESS = 0
    CUBLAS_STATUS_ALLOC_FAILED = 3
    CUBLAS_STATUS_NOT_SUPPORTED = 15
    CUBLAS_OP_N = 0
    CUBLAS_OP_T = 1
    CUBLAS_COMPUTE_32F = 68
    CUBLAS_COMPUTE_32I = 72
    CUDA_R_32F = 0
    CUDA_R_16F = 2
    CUDA_R_8I = 3
    CUDA_R_32I = 10
    CUDA_R_16BF = 14
    CUBLASLT_MATMUL_DESC_TRANSA = 3
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2


class MatmulAlgo(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", MatmulAlgo),
        ("workspaceSize", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("wavesCount", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


_P, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_PARAMETERS: Mapping[str, tuple[type, ...]] = {
    "cublasLtCreate": (_P,),
    "cublasLtDestroy": (_P,),
    "cublasLtMatmulDescCreate": (_P, _INT, _INT),
    "cublasLtMatmulDescDestroy": (_P,),
    "cublasLtMatmulDescSetAttribute": (_P, _INT, _P, _SIZE),
    "cublasLtMatrixLayoutCreate": (_P, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_P,),
    "cublasLtMatmulPreferenceCreate": (_P,),
    "cublasLtMatmulPreferenceDestroy": (_P,),
    "cublasLtMatmulPreferenceSetAttribute": (_P, _INT, _P, _SIZE),
    "cublasLtMatmulAlgoGetHeuristic": (_P, _P, _P, _P, _P, _P, _P, _INT, _P, _P),
    "cublasLtMatmul": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _SIZE, _P),
}


class LtApi:
    """The library, loaded.

    Args:
        library: with the functions of cublasLt.h.

    Raises:
        AttributeError: it has not all of them.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, kinds in _PARAMETERS.items():
            getattr(library, name).argtypes = kinds
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        library.cublasLtGetStatusName.restype = ctypes.c_char_p

    @property
    def version(self) -> int:
        """As it numbers itself: 131000 is 13.10.0."""
        return int(self._library.cublasLtGetVersion())

    def __call__(self, name: str, *args: object) -> None:
        """Call a function; raises what its status says."""
        status = self.status(name, *args)
        if status != Header.CUBLAS_STATUS_SUCCESS:
            raise self._error(name, status)

    def status(self, name: str, *args: object) -> int:
        """Call a function and return its status."""
        return int(getattr(self._library, name)(*args))

    def _error(self, name: str, status: int) -> ParedError:
        said = f"{name}: {self._library.cublasLtGetStatusName(status).decode(errors='replace')}"
        if status == Header.CUBLAS_STATUS_ALLOC_FAILED:
            return ParedError(
                "cuda-out-of-memory", said, "use a smaller batch (--shape), or free the device (nvidia-smi)"
            )
        return ParedError(FAILED, said, f"set {LIBRARY}=off to run without {NAME}")


def version_text(version: int) -> str:
    """Return a version as people write it.

    >>> version_text(131000), version_text(120804)
    ('13.10.0', '12.8.4')
    """
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def lt_api() -> LtApi | None:
    """Return the library, the one that `PARED_CUBLASLT` names or where systems have it; None: not there."""
    return _loaded(os.environ.get(LIBRARY, ""))


@functools.cache
def _loaded(name: str) -> LtApi | None:
    for candidate in [name] if name else [*_USUAL, *_in_wheels()]:
        try:
            return LtApi(ctypes.CDLL(candidate))
        except (OSError, AttributeError):
            continue
    return None


def _in_wheels() -> Iterator[str]:
    """Yield the files that NVIDIA's packages install."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from (str(path) for name in _WHEELS if (path := Path(folder) / name).is_file())
