"""The CUDA driver through ctypes: what running a program needs, and nothing of a toolkit.

Names and numbers are those of the driver API (CUDA 12, https://docs.nvidia.com/cuda/cuda-driver-api/).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...compiler.errors import MissingTool, ParedError, TargetError
from .program import Dims

Bytes = npt.NDArray[np.uint8]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_SHARED_LIMIT = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CAPTURE_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_OUT_OF_MEMORY = 2
# From here on a context is lost: illegal addresses, launch failures, hardware faults.
_STICKY = range(700, 800)


class Device(Protocol):
    """What an executable asks of a device; addresses are plain integers."""

    @property
    def arch(self) -> str:
        """`sm_90` and the like."""
        ...

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of device memory."""
        ...

    def pinned(self, count: int) -> Bytes:
        """Return host memory that copies do not have to stage."""
        ...

    def upload(self, address: int, data: Bytes) -> None:
        """Copy to the device."""
        ...

    def download(self, data: Bytes, address: int) -> None:
        """Copy from the device, all work before it done."""
        ...

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Load machine code and return handles of its kernels."""
        ...

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Queue one kernel."""
        ...

    def begin_capture(self) -> None:
        """Record launches instead of running them."""
        ...

    def end_capture(self) -> int:
        """Return the recorded launches as a graph that `replay` takes."""
        ...

    def replay(self, graph: int) -> None:
        """Queue recorded launches."""
        ...

    def synchronize(self) -> None:
        """Wait for everything queued; raises what went wrong on the way."""
        ...

    def close(self) -> None:
        """Free everything; later calls raise."""
        ...


def open_driver(index: int = 0) -> CudaDevice:
    """Open the CUDA device `index`.

    Raises:
        MissingTool: `cuda-driver-missing`.
        TargetError: `cuda-device-missing`.
        ParedError: `cuda-failed`.
    """
    return CudaDevice(index)


class _Api:
    """libcuda with every result checked."""

    def __init__(self) -> None:
        for name in ("libcuda.so.1", "nvcuda.dll"):
            try:
                self._c = ctypes.CDLL(name)
            except OSError:
                continue
            break
        else:
            raise MissingTool(
                "cuda-driver-missing",
                "the CUDA driver (libcuda.so.1) is not on this machine",
                "run the artifact on a machine with an NVIDIA GPU; compiling needs none",
            )

    def __call__(self, name: str, *args: object) -> None:
        code = int(getattr(self._c, name)(*args))
        if code:
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> ParedError:
        text = ctypes.c_char_p()
        self._c.cuGetErrorName(code, ctypes.byref(text))
        said = (text.value or str(code).encode()).decode()
        if code == _OUT_OF_MEMORY:
            return ParedError(
                "cuda-out-of-memory", f"{name}: {said}", "use a smaller batch (--shape), or free the device"
            )
        way = (
            "load the artifact in a new process"
            if code in _STICKY
            else "check driver and device (nvidia-smi)"
        )
        return ParedError("cuda-failed", f"{name}: {said}", way)


class CudaDevice:
    """One device with a stream of its own, in its primary context."""

    def __init__(self, index: int) -> None:
        self._api = api = _Api()
        api("cuInit", 0)
        count = ctypes.c_int()
        api("cuDeviceGetCount", ctypes.byref(count))
        if index >= count.value:
            raise TargetError(
                "cuda-device-missing",
                f"device {index} was asked for, {count.value} are here",
                "use another index",
            )
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        api("cuDeviceGet", ctypes.byref(self._device), index)
        api("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._enter()
        self._stream = ctypes.c_void_p()
        api("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
        self._memory: list[int] = []
        self._host: list[int] = []
        self._closed = False

    def _enter(self) -> None:
        """Make the context current: another thread or library may have set its own."""
        self._api("cuCtxSetCurrent", self._context)

    @property
    def arch(self) -> str:
        """`sm_90` and the like."""
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._api("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            parts.append(str(value.value))
        return f"sm_{''.join(parts)}"

    @property
    def stream(self) -> int:
        """Handle of the stream that everything is queued on, for other libraries."""
        return self._stream.value or 0

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of device memory; raises `cuda-out-of-memory`."""
        self._enter()
        address = ctypes.c_uint64()
        self._api("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(count, 1)))
        self._memory.append(address.value)
        return address.value

    def pinned(self, count: int) -> Bytes:
        """Return page-locked host memory."""
        self._enter()
        address = ctypes.c_void_p()
        self._api("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(max(count, 1)), 0)
        assert address.value is not None, "the driver gave no memory"
        self._host.append(address.value)
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address.value))

    def upload(self, address: int, data: Bytes) -> None:
        """Queue a copy to the device; `data` must stay until `synchronize`."""
        self._enter()
        self._api(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.nbytes), self._stream,
        )  # fmt: skip

    def download(self, data: Bytes, address: int) -> None:
        """Queue a copy from the device; `data` is there after `synchronize`."""
        self._enter()
        self._api(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(data.nbytes), self._stream,
        )  # fmt: skip

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Load machine code and return handles of its kernels."""
        self._enter()
        module = ctypes.c_void_p()
        self._api("cuModuleLoadData", ctypes.byref(module), image)
        found = {}
        for name in names:
            handle = ctypes.c_void_p()
            self._api("cuModuleGetFunction", ctypes.byref(handle), module, name.encode())
            found[name] = handle.value or 0
        return found

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Queue one kernel whose arguments are the addresses `buffers`."""
        values = [ctypes.c_uint64(address) for address in buffers]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        handle = ctypes.c_void_p(function)
        self._enter()
        if shared:
            self._api("cuFuncSetAttribute", handle, _SHARED_LIMIT, shared)
        self._api("cuLaunchKernel", handle, *grid, *block, shared, self._stream, pointers, None)

    def begin_capture(self) -> None:
        """Record launches instead of running them."""
        self._enter()
        self._api("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD)

    def end_capture(self) -> int:
        """Return the recorded launches as a graph that `replay` takes."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._api("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._api("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        self._api("cuGraphDestroy", graph)
        return ready.value or 0

    def replay(self, graph: int) -> None:
        """Queue recorded launches."""
        self._enter()
        self._api("cuGraphLaunch", ctypes.c_void_p(graph), self._stream)

    def synchronize(self) -> None:
        """Wait for everything queued; raises what went wrong on the way."""
        self._enter()
        self._api("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free memory, stream and the hold on the context."""
        if self._closed:
            return
        self._closed = True
        self._enter()
        for address in self._memory:
            self._api("cuMemFree_v2", ctypes.c_uint64(address))
        for host in self._host:
            self._api("cuMemFreeHost", ctypes.c_void_p(host))
        self._api("cuStreamDestroy_v2", self._stream)
        self._api("cuDevicePrimaryCtxRelease_v2", self._device)
