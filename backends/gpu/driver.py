"""A CUDA device through ctypes: what running a program needs, and nothing of a toolkit.

Names and numbers are those of the driver API (CUDA 12, https://docs.nvidia.com/cuda/cuda-driver-api/).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from ...compiler.cuda import cuda_devices, driver_name
from ...compiler.errors import ParedError, TargetError
from .api import driver_api
from .context import DeviceContext
from .device import Bytes
from .program import Dims

_SHARED_LIMIT = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CAPTURE_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_PROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_UNTIMED = 2  # CU_EVENT_DISABLE_TIMING
_CLOCKS = 32  # runs that are timed before their times are read
_DLPACK_CUDA = 2  # kDLCUDA


def open_driver(index: int = 0) -> CudaDevice:
    """Open the CUDA device `index`.

    Raises:
        MissingTool: `cuda-driver-missing`.
        TargetError: `cuda-device-missing`.
        ParedError: `cuda-failed`, `cuda-forked`; `cuda-context-lost`, an earlier failure took the device.
    """
    return CudaDevice(index)


class CudaDevice:
    """One device with streams of its own, in its primary context; calls may come from any thread."""

    def __init__(self, index: int) -> None:
        self._api = driver_api(driver_name())
        self._index = index
        count = ctypes.c_int()
        self._api("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= index < count.value:
            raise TargetError(
                "cuda-device-missing",
                f"device {index} was asked for, {count.value} are here",
                "use another index",
            )
        self._context = DeviceContext(self._api, index)
        self._try = self._context.attempt
        self._closed = False
        self._memory: list[int] = []
        self.memory_bytes = 0
        self._host: list[int] = []
        self._lent: set[int] = set()
        self._late: list[int] = []
        self._modules: list[int] = []
        self._graphs: set[int] = set()
        self._streams: list[int] = []
        self._events: list[int] = []
        self._clock: list[tuple[int, int]] = []
        self._shared: dict[int, int] = {}
        self._recording = False
        self._closing: list[Callable[[], None]] = []
        try:
            self._main = self.make_stream()
        except ParedError:
            self.close()
            raise

    def _call(self, name: str, *args: object) -> None:
        """Call the driver in this device's context; raises what goes wrong."""
        assert not self._closed, "a closed device was used"
        self._context.call(name, *args)

    def current(self) -> AbstractContextManager[None]:
        """Make this device the thread's, for calls of a library; afterwards the one before is again."""
        return self._context.current()

    def at_close(self, work: Callable[[], None]) -> None:
        """Let `close` call this first, once nothing runs any more, with the device current."""
        self._closing.append(work)

    @property
    def arch(self) -> str:
        """`sm_90` and the like."""
        return cuda_devices()[self._index]

    @property
    def place(self) -> tuple[int, int]:
        """Type and index of its memory as DLPack counts them."""
        return _DLPACK_CUDA, self._index

    @property
    def alignment(self) -> int:
        """As many bytes as a thread loads at once."""
        return 16

    @property
    def stream(self) -> int:
        """Handle of the main stream, for other libraries."""
        return self._main

    @property
    def index(self) -> int:
        """Number among the devices that the driver shows."""
        return self._index

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of device memory; raises `cuda-out-of-memory`."""
        self._memory.append(self._take(count))
        self.memory_bytes += count
        return self._memory[-1]

    def lend(self, count: int) -> int:
        """Return the address of `count` bytes that stay until `take_back`."""
        address = self._take(count)
        self._lent.add(address)
        return address

    def _take(self, count: int) -> int:
        address = ctypes.c_uint64()
        try:
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(count, 1)))
        except ParedError as err:
            if err.reason != "cuda-out-of-memory":
                raise
            raise ParedError(err.reason, f"{err.message} for {count} bytes", err.next_step) from err
        return address.value

    def take_back(self, address: int) -> None:
        """Free what was lent; during a recording, which must not see it, afterwards."""
        if self._recording:
            self._late.append(address)
            return
        self._lent.discard(address)
        self._try("cuMemFree_v2", ctypes.c_uint64(address))
        self._release()

    def pinned(self, count: int) -> Bytes:
        """Return page-locked host memory."""
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(max(count, 1)), 0)
        assert address.value is not None, "the driver gave no memory"
        self._host.append(address.value)
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address.value))

    def upload(self, address: int, data: Bytes, stream: int = 0) -> None:
        """Queue a copy to the device; `data` must stay as it is until then."""
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.nbytes), self._on(stream),
        )  # fmt: skip

    def download(self, data: Bytes, address: int, stream: int = 0) -> None:
        """Queue a copy from the device."""
        self._call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(data.nbytes), self._on(stream),
        )  # fmt: skip

    def fetch(self, data: Bytes, address: int) -> None:
        """Copy lent memory from the device at once, past all streams and also after `close`."""
        self._context.fetch(
            "cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(data.nbytes),
        )  # fmt: skip

    def copy(self, target: int, source: int, count: int) -> None:
        """Queue a copy of `count` bytes on the device."""
        self._call(
            "cuMemcpyDtoDAsync_v2", ctypes.c_uint64(target), ctypes.c_uint64(source),
            ctypes.c_size_t(count), self._on(0),
        )  # fmt: skip

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Load machine code (or PTX, ending in a zero byte) and return handles of its kernels."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        self._modules.append(module.value or 0)
        found = {}
        for name in names:
            handle = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(handle), module, name.encode())
            found[name] = handle.value or 0
        return found

    @contextmanager
    def loaded(self, image: bytes, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """Yield handles of the kernels of machine code that is unloaded afterwards."""
        handles = self.functions(image, names)
        try:
            yield handles
        finally:
            self._try("cuModuleUnload", ctypes.c_void_p(self._modules.pop()))

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Queue one kernel whose arguments are the addresses `buffers`."""
        values = (ctypes.c_uint64 * len(buffers))(*buffers)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(buffers))(*range(start, start + 8 * len(buffers), 8))
        handle = ctypes.c_void_p(function)
        if shared > self._shared.get(function, 0):
            self._call("cuFuncSetAttribute", handle, _SHARED_LIMIT, shared)
            self._shared[function] = shared
        self._call("cuLaunchKernel", handle, *grid, *block, shared, self._on(0), pointers, None)

    def begin_capture(self) -> None:
        """Record launches instead of running them."""
        self._call("cuStreamBeginCapture_v2", self._on(0), _CAPTURE_THREAD)
        self._recording = True

    def end_capture(self) -> int:
        """Return the recorded launches as a graph that `replay` takes."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._call("cuStreamEndCapture", self._on(0), ctypes.byref(graph))
        finally:
            self._after_recording()
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self._try("cuGraphDestroy", graph)
        self._graphs.add(ready.value or 0)
        return ready.value or 0

    def drop_capture(self) -> None:
        """End a recording that went wrong, whatever state it is in."""
        graph = ctypes.c_void_p()
        if not self._try("cuStreamEndCapture", self._on(0), ctypes.byref(graph)):
            self._try("cuGraphDestroy", graph)
        self._after_recording()

    def _after_recording(self) -> None:
        self._recording = False
        late, self._late = self._late, []
        for address in late:
            self.take_back(address)

    def replay(self, graph: int) -> None:
        """Queue recorded launches."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._on(0))

    def forget(self, graph: int) -> None:
        """Free a graph."""
        self._graphs.discard(graph)
        self._try("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def make_stream(self) -> int:
        """Return one more stream."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self._streams.append(stream.value or 0)
        return self._streams[-1]

    def make_event(self, *, timed: bool = False) -> int:
        """Return a mark; only marks that are `timed` tell the time."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0 if timed else _UNTIMED)
        self._events.append(event.value or 0)
        return self._events[-1]

    def mark(self, event: int, stream: int = 0) -> None:
        """Queue a mark behind what the stream has so far."""
        self._call("cuEventRecord", ctypes.c_void_p(event), self._on(stream))

    def follow(self, event: int, stream: int = 0) -> None:
        """Let the stream wait for the last mark."""
        self._call("cuStreamWaitEvent", self._on(stream), ctypes.c_void_p(event), 0)

    def wait_for(self, event: int) -> None:
        """Wait for the last mark here; raises what went wrong on the way."""
        self._call("cuEventSynchronize", ctypes.c_void_p(event))

    def elapsed_ms(self, first: int, last: int) -> float:
        """Return the milliseconds between two timed marks that were waited for."""
        found = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(found), ctypes.c_void_p(first), ctypes.c_void_p(last))
        return found.value

    def times_ms(self, queue: Callable[[], None], runs: int) -> list[float]:
        """Return the device's time of each of `runs` pieces of work that `queue` puts on the main stream."""
        if not self._clock:
            self._clock = [(self.make_event(timed=True), self.make_event(timed=True)) for _ in range(_CLOCKS)]
        found: list[float] = []
        while len(found) < runs:
            pairs = self._clock[: runs - len(found)]
            for first, last in pairs:
                self.mark(first)
                queue()
                self.mark(last)
            self.synchronize()
            found += [self.elapsed_ms(first, last) for first, last in pairs]
        return found

    @property
    def processors(self) -> int:
        """How many multiprocessors it has."""
        found = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(found), _PROCESSORS, self._context.device)
        return found.value

    @property
    def name(self) -> str:
        """What NVIDIA calls it."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._context.device)
        return text.value.decode(errors="replace")

    @property
    def bus_id(self) -> str:
        """Where it sits, `0000:17:00.0`, as other libraries of NVIDIA name it."""
        text = ctypes.create_string_buffer(32)
        self._call("cuDeviceGetPCIBusId", text, len(text), self._context.device)
        return text.value.decode()

    def synchronize(self) -> None:
        """Wait for everything on the main stream; raises what went wrong on the way."""
        self._call("cuStreamSynchronize", self._on(0))

    def _on(self, stream: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(stream or self._main)

    def close(self) -> None:
        """Free everything but what is lent; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for stream in self._streams:
            self._try("cuStreamSynchronize", ctypes.c_void_p(stream))
        self._context.finish(self._closing)
        for name, handles in (
            ("cuGraphExecDestroy", self._graphs),
            ("cuModuleUnload", self._modules),
            ("cuEventDestroy_v2", self._events),
            ("cuStreamDestroy_v2", self._streams),
            ("cuMemFreeHost", self._host),
        ):
            for handle in handles:
                self._try(name, ctypes.c_void_p(handle))
        for address in self._memory:
            self._try("cuMemFree_v2", ctypes.c_uint64(address))
        self._release()

    def _release(self) -> None:
        """Let go of the context when nothing of it is used any more."""
        if self._closed and not self._lent:
            self._context.release()
