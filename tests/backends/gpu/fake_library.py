"""A cuBLASLt that is none (`fake_cublaslt.c`), and a program with products to run on it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from fake_driver import IMAGE, Fake

from pared.backends.gpu.driver import CudaDevice, open_driver
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.program import Launch, MatrixProduct, Place, PortRecord, Program

VERSION = 131000
_Kernel = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint64))
# cudaDataType
_TYPES = {0: np.float32, 2: np.float16, 3: np.int8, 10: np.int32, 14: ml_dtypes.bfloat16}


class FakeLibrary:
    """One library with a state of its own, above a fake driver.

    Attributes:
        ran: the algorithm of every product that was computed, by its place among the proposed ones.
        wrong: algorithms that compute something else.
    """

    def __init__(self, path: Path, driver: Fake) -> None:
        self._c = ctypes.CDLL(str(path))
        self._c.fake_lt_driver(str(driver.path).encode())
        self._kernel = _Kernel(self._compute)
        self._c.fake_lt_compute(self._kernel)
        self.ran: list[int] = []
        self.wrong: set[int] = set()

    def version(self, number: int) -> None:
        """Say that it is another version."""
        self._c.fake_lt_version(ctypes.c_long(number))

    def proposals(self, count: int) -> None:
        """Have so many algorithms for every product."""
        self._c.fake_lt_proposals(count)

    def fail(self, name: str, nth: int, status: int) -> None:
        """Let the n-th call from now on fail."""
        self._c.fake_lt_fail(name.encode(), nth, status)

    def calls(self, name: str) -> int:
        """Return how often a function was called."""
        return int(self._c.fake_lt_calls(name.encode()))

    def live(self) -> int:
        """Return how much is made and not destroyed."""
        return int(self._c.fake_lt_live())

    def _compute(self, given: Sequence[int]) -> None:
        """Do D = op(A) B, all of them columns first."""
        a, b, d, kind, result, turned, m, n, k, *strides, algorithm = (given[i] for i in range(13))
        first = _matrix(a, kind, *((k, m) if turned else (m, k)), strides[0])
        second, out = _matrix(b, kind, k, n, strides[1]), _matrix(d, result, m, n, strides[2])
        wide = np.int32 if kind == 3 else np.float32
        first, second = first.astype(wide), second.astype(wide)
        out[...] = ((first.T if turned else first) @ second + (algorithm in self.wrong)).astype(out.dtype)
        self.ran.append(algorithm)


def _matrix(address: int, kind: int, rows: int, columns: int, stride: int) -> np.ndarray:
    """Return memory as [rows, columns], columns first."""
    dtype = np.dtype(_TYPES[kind])
    count = (stride * (columns - 1) + rows) * dtype.itemsize
    room = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).view(dtype)
    return np.lib.stride_tricks.as_strided(
        room, (rows, columns), (dtype.itemsize, stride * dtype.itemsize), writeable=True
    )


def product(
    dtype: str = "float32", result: str = "float32", *, rows: int = 6, columns: int = 8, depth: int = 12,
    by_columns: bool = True, version: int = VERSION, rank: int = 0,
) -> MatrixProduct:  # fmt: skip
    """Return a product whose buffers are A, B and C."""
    return MatrixProduct(
        dtype=dtype, result=result, rows=rows, columns=columns, depth=depth, b_by_columns=by_columns,
        a=0, b=1, c=2, version=version, rank=rank,
    )  # fmt: skip


_ONNX = {"float32": "FLOAT", "float16": "FLOAT16", "int8": "INT8", "int32": "INT32"}


def program_of(*products: MatrixProduct) -> Program:
    """Return the program y = x w, once for every product; its kernel is called `own`."""
    first = products[0]
    ports = [("x", first.dtype, first.depth), ("y", first.result, first.columns)]
    x, y = (PortRecord(name=n, dtype=_ONNX[kind], shape=(first.rows, wide)) for n, kind, wide in ports)
    return Program(
        arch="sm_90", inputs=(x,), outputs=(y,), batched=False,
        places=(
            Place(where="input", offset=0), Place(where="weights", offset=0), Place(where="output", offset=0),
        ),
        launches=tuple(
            Launch(
                kernel="own", image=0, grid=(1, 1, 1), block=(32, 1, 1), shared_bytes=0, buffers=(0, 1, 2),
                product=one,
            )
            for one in products
        ),
        arena_bytes=0, weight_bytes=0,
    )  # fmt: skip


def operands(one: MatrixProduct) -> tuple[np.ndarray, np.ndarray]:
    """Return small whole numbers, exact in every type: A as [i, k], B as [k, j]."""
    rng = np.random.default_rng(0)
    shapes = (one.rows, one.depth), (one.depth, one.columns)
    a, b = (rng.integers(-3, 4, shape).astype(one.dtype) for shape in shapes)
    return a, b


def loaded_product(*products: MatrixProduct, device: CudaDevice | None = None) -> GpuExecutable:
    """Return `program_of` with the weights of `operands`, on a device or the fake driver's first one."""
    _, b = operands(products[0])
    weights = np.ascontiguousarray(b.T if products[0].b_by_columns else b).tobytes()
    return GpuExecutable(program_of(*products), weights, [IMAGE, b""], device or open_driver())
