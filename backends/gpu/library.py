"""Products that cuBLASLt does on a device, instead of kernels of ours; where it is not, the kernels run.

The library counts columns first. Our row-major C = A B is its column-major C' = B' A': the same memory, read
as transposed matrices in the other order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ...compiler.errors import ParedError
from .cublaslt import FAILED, NAME, Header, HeuristicResult, LtApi, MatmulAlgo, lt_api, version_text
from .device import Device
from .driver import CudaDevice
from .program import MatrixProduct, Program

# NVIDIA's advice for the largest chips (cuBLAS documentation, cublasSetWorkspace).
WORKSPACE_BYTES = 32 << 20
# What every buffer's address is a multiple of; tensors of the caller may be no better.
_ALIGNMENT = 16
# Integers need rows of whole 32-bit words (cuBLAS documentation, cublasLtMatmul).
_WORD = 4

Queue: TypeAlias = Callable[[Sequence[int]], None]


@dataclass(frozen=True)
class _Types:
    compute: int
    operand: int
    result: int

    @property
    def scale(self) -> int:
        """Type of the factors of A B and of what was in C."""
        whole = self.compute == Header.CUBLAS_COMPUTE_32I
        return Header.CUDA_R_32I if whole else Header.CUDA_R_32F

    def number(self, value: int) -> ctypes.c_int32 | ctypes.c_float:
        """Return a factor."""
        return ctypes.c_int32(value) if self.scale == Header.CUDA_R_32I else ctypes.c_float(value)


# By types of A and B, and of C; float32 is never rounded to TF32 (CUBLAS_COMPUTE_32F).
_TYPES: Mapping[tuple[str, str], _Types] = {
    ("int8", "int32"): _Types(Header.CUBLAS_COMPUTE_32I, Header.CUDA_R_8I, Header.CUDA_R_32I),
    ("float16", "float32"): _Types(Header.CUBLAS_COMPUTE_32F, Header.CUDA_R_16F, Header.CUDA_R_32F),
    ("float16", "float16"): _Types(Header.CUBLAS_COMPUTE_32F, Header.CUDA_R_16F, Header.CUDA_R_16F),
    ("bfloat16", "float32"): _Types(Header.CUBLAS_COMPUTE_32F, Header.CUDA_R_16BF, Header.CUDA_R_32F),
    ("bfloat16", "bfloat16"): _Types(Header.CUBLAS_COMPUTE_32F, Header.CUDA_R_16BF, Header.CUDA_R_16BF),
    ("float32", "float32"): _Types(Header.CUBLAS_COMPUTE_32F, Header.CUDA_R_32F, Header.CUDA_R_32F),
}


def refusal(product: MatrixProduct) -> str:
    """Return why the library does not do a product, empty where it may."""
    if (product.dtype, product.result) not in _TYPES:
        return f"{product.dtype} to {product.result}"
    if product.dtype != "int8":
        return ""
    if not product.b_by_columns:
        return "int8 weights that do not lie along k"
    return "" if product.columns % _WORD == product.depth % _WORD == 0 else "int8 rows of broken words"


@dataclass(frozen=True)
class _Problem:
    """Descriptors of a product: of the library's first and second operand, and of its result."""

    types: _Types
    operation: ctypes.c_void_p
    first: ctypes.c_void_p
    second: ctypes.c_void_p
    result: ctypes.c_void_p


@dataclass(frozen=True)
class Algorithm:
    """One way of the library's to do a product.

    Attributes:
        product: what it does.
        problem: the same for the library.
        choice: which way, as the library writes it.
        workspace_bytes: memory that it needs meanwhile.
    """

    product: MatrixProduct
    problem: _Problem
    choice: MatmulAlgo
    workspace_bytes: int


class Library:
    """cuBLASLt on one device; what it holds is freed when the device is closed.

    Raises:
        ParedError: `cublaslt-failed`: it does not run here; `cuda-out-of-memory`.
    """

    def __init__(self, api: LtApi, device: CudaDevice) -> None:
        self._api, self._device = api, device
        self._made: list[tuple[str, ctypes.c_void_p]] = []
        self._workspace, self._workspace_bytes = 0, 0
        device.at_close(self._free)
        with device.current():
            self._handle = self._make("cublasLt")
            self._wishes = self._preferences()

    def _make(self, kind: str, *args: object) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._api(f"{kind}Create", ctypes.byref(handle), *args)
        self._made.append((f"{kind}Destroy", handle))
        return handle

    def _free(self) -> None:
        for name, handle in reversed(self._made):
            self._api.status(name, handle)
        self._made.clear()

    def _preferences(self) -> ctypes.c_void_p:
        wishes = self._make("cublasLtMatmulPreference")
        alignments = (
            Header.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Header.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Header.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Header.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        )
        # Parts of a sum are never rounded to a half float's precision.
        summed = ctypes.c_uint32(Header.CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
        for name, value in (
            (Header.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES)),
            (Header.CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, summed),
            *((name, ctypes.c_uint32(_ALIGNMENT)) for name in alignments),
        ):
            size = ctypes.sizeof(value)
            self._api("cublasLtMatmulPreferenceSetAttribute", wishes, name, ctypes.byref(value), size)
        return wishes

    @property
    def version(self) -> int:
        """As the library numbers itself."""
        return self._api.version

    def algorithms(self, product: MatrixProduct, count: int) -> list[Algorithm]:
        """Return up to `count` ways to do a product, the one it expects to be the fastest first."""
        if refusal(product):
            return []
        with self._device.current():
            problem = self._problem(product)
            found = self._proposed(problem, count)
        algorithms = [Algorithm(product, problem, one.algo, int(one.workspaceSize)) for one in found]
        self._reserve(max((one.workspace_bytes for one in algorithms), default=0))
        return algorithms

    def _problem(self, product: MatrixProduct) -> _Problem:
        types = _TYPES[product.dtype, product.result]
        rows, columns, depth = product.rows, product.columns, product.depth
        operation = self._make("cublasLtMatmulDesc", types.compute, types.scale)
        turned = ctypes.c_int32(Header.CUBLAS_OP_T if product.b_by_columns else Header.CUBLAS_OP_N)
        name, size = Header.CUBLASLT_MATMUL_DESC_TRANSA, ctypes.sizeof(turned)
        self._api("cublasLtMatmulDescSetAttribute", operation, name, ctypes.byref(turned), size)
        high, wide = (depth, columns) if product.b_by_columns else (columns, depth)
        return _Problem(
            types,
            operation,
            self._make("cublasLtMatrixLayout", types.operand, high, wide, high),
            self._make("cublasLtMatrixLayout", types.operand, depth, rows, depth),
            self._make("cublasLtMatrixLayout", types.result, columns, rows, columns),
        )

    def _proposed(self, problem: _Problem, count: int) -> list[HeuristicResult]:
        results, found = (HeuristicResult * count)(), ctypes.c_int()
        status = self._api.status(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, problem.operation, problem.first, problem.second,
            problem.result, problem.result, self._wishes, count, results, ctypes.byref(found),
        )  # fmt: skip
        if status != Header.CUBLAS_STATUS_SUCCESS:
            return []
        return [one for one in results[: found.value] if one.state == Header.CUBLAS_STATUS_SUCCESS]

    def _reserve(self, count: int) -> None:
        """Have so many bytes of working memory; nothing may be recorded with the memory before."""
        if count > self._workspace_bytes:
            self._workspace, self._workspace_bytes = self._device.allocate(count), count

    def queue(self, algorithm: Algorithm, buffers: Sequence[int]) -> None:
        """Put a product on the device's main stream; buffers are those of the kernel that it stands for."""
        product, problem = algorithm.product, algorithm.problem
        one, zero = problem.types.number(1), problem.types.number(0)
        with self._device.current():
            self._api(
                "cublasLtMatmul", self._handle, problem.operation, ctypes.byref(one), buffers[product.b],
                problem.first, buffers[product.a], problem.second, ctypes.byref(zero), buffers[product.c],
                problem.result, buffers[product.c], problem.result, ctypes.byref(algorithm.choice),
                self._workspace, algorithm.workspace_bytes, self._device.stream,
            )  # fmt: skip

    def ready(self, product: MatrixProduct) -> Queue | None:
        """Return what queues a product, by the algorithm that was timed where the version is the same."""
        rank = product.rank if product.version == self.version else 0
        found = self.algorithms(product, rank + 1)
        if not found:
            return None
        algorithm = found[rank] if rank < len(found) else found[0]
        return lambda buffers: self.queue(algorithm, buffers)


def open_library(device: CudaDevice) -> tuple[Library | None, str]:
    """Return the library on a device, or why it is not there."""
    api = lt_api()
    if api is None:
        return None, f"{NAME} is not installed"
    try:
        return Library(api, device), ""
    except ParedError as err:
        if err.reason != FAILED:
            raise
        return None, f"{NAME} {version_text(api.version)} does not run here: {err.message}"


def queued(
    products: Mapping[MatrixProduct, Queue], product: MatrixProduct | None, buffers: Sequence[int]
) -> bool:
    """Let the library do a launch, where the launch is a product of its; False: the kernel has to."""
    queue = products.get(product) if product is not None else None
    if queue is not None:
        queue(buffers)
    return queue is not None


def use_library(device: Device, programs: Sequence[Program]) -> tuple[dict[MatrixProduct, Queue], str]:
    """Return how to queue those products of programs that the library does, and what is not as it was timed.

    Raises:
        ParedError: `cuda-out-of-memory` and what else the driver says.
    """
    products = (launch.product for program in programs for launch in program.launches)
    wanted = list(dict.fromkeys(product for product in products if product is not None))
    if not wanted or not isinstance(device, CudaDevice):
        return {}, ""
    library, why = open_library(device)
    if library is None:
        return {}, f"{why}: products that it was faster at ({len(wanted)}) run as kernels"
    found = {product: queue for product in wanted if (queue := library.ready(product)) is not None}
    return found, _note(library.version, wanted, len(found))


def _note(version: int, wanted: Sequence[MatrixProduct], found: int) -> str:
    timed = {product.version for product in wanted}
    said, here = [], f"{NAME} {version_text(version)}"
    if timed != {version}:
        others = ", ".join(version_text(one) for one in sorted(timed))
        said.append(f"products were timed with {NAME} {others}, this is {here}")
    if found < len(wanted):
        said.append(f"{here} takes {found} of {len(wanted)} products, kernels do the others")
    return "; ".join(said)
