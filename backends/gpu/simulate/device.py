"""A device whose kernels run on this CPU thread by thread, each launch twice in opposite orders."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..program import Dims
from .compiled import Library, library, runtime
from .errors import SimulationError

Bytes = npt.NDArray[np.uint8]

_STATIC_LIMIT = 49152
# Most shared memory of a block, static and dynamic: CUDA C++ Programming Guide, compute capabilities.
_SHARED_LIMITS = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10}

_CONTRACTED = b"// fused multiply-adds are permitted\n"


def images(sources: tuple[str, str]) -> list[bytes]:
    """Return what stands for the machine code of `Kernels.sources` on a simulated device."""
    return [_CONTRACTED + sources[0].encode(), sources[1].encode()]


@dataclass(frozen=True)
class _Launch:
    function: int
    grid: Dims
    block: Dims
    shared: int
    buffers: tuple[int, ...]


@dataclass
class SimulatedDevice:
    """Takes `images(sources)` for machine code.

    Args:
        arch: what it stands for.
        orders: run every launch in both orders and compare; else ascending alone.
    """

    arch: str = "sm_90"
    orders: bool = True
    place: tuple[int, int] = (1, 0)  # kDLCPU
    alignment: int = 16
    stream: int | None = None
    _memory: dict[int, int] = field(default_factory=dict)
    _lent: set[int] = field(default_factory=set)
    _kernels: list[tuple[Library, str]] = field(default_factory=list)
    _queue: list[_Launch] | None = None
    _graphs: dict[int, list[_Launch]] = field(default_factory=dict)

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes between pages that cannot be touched."""
        address = int(runtime().sim_allocate(max(count, 1)) or 0)
        if not address:
            raise SimulationError("simulation-memory", f"no {count} bytes are left", "use a smaller model")
        self._memory[address] = max(count, 1)
        return address

    def lend(self, count: int) -> int:
        """Return the address of `count` bytes that stay until `take_back`."""
        address = self.allocate(count)
        self._lent.add(address)
        return address

    def take_back(self, address: int) -> None:
        """Free what was lent."""
        self._lent.discard(address)
        self._memory.pop(address)
        runtime().sim_release(address)

    def pinned(self, count: int) -> Bytes:
        """Return host memory."""
        return np.zeros(count, np.uint8)

    def upload(self, address: int, data: Bytes, stream: int = 0) -> None:
        """Copy at once."""
        view(address, data.size)[:] = data

    def download(self, data: Bytes, address: int, stream: int = 0) -> None:
        """Copy at once."""
        data[:] = view(address, data.size)

    def fetch(self, data: Bytes, address: int) -> None:
        """Copy at once."""
        self.download(data, address)

    def copy(self, target: int, source: int, count: int) -> None:
        """Copy at once."""
        view(target, count)[:] = view(source, count)

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Compile a source for this CPU; raises `SimulationError`."""
        contract = image.startswith(_CONTRACTED)
        built = library(image.decode(), self.arch, contract=contract)
        first = len(self._kernels)
        self._kernels += [(built, name) for name in names]
        return {name: first + index for index, name in enumerate(names)}

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Run one kernel, or record it."""
        step = _Launch(function, grid, block, shared, tuple(buffers))
        if self._queue is not None:
            self._queue.append(step)
        else:
            self._run(step)

    def _run(self, step: _Launch) -> None:
        used = {self._allocation(address) for address in step.buffers}
        if not self.orders:
            self._once(step, backwards=False)
            return
        before = self._read(used)
        self._once(step, backwards=False)
        after = self._read(used)
        self._write(before)
        self._once(step, backwards=True)
        self._compare(step, after, self._read(used))
        self._write(after)

    def _read(self, starts: Iterable[int]) -> dict[int, Bytes]:
        """Return copies: a view in the frame of an error would outlive the memory."""
        return {start: view(start, self._memory[start]).copy() for start in starts}

    def _write(self, contents: Mapping[int, Bytes]) -> None:
        for start, content in contents.items():
            view(start, content.size)[:] = content

    def _allocation(self, address: int) -> int:
        for start, count in self._memory.items():
            if start <= address < start + count:
                return start
        raise SimulationError(
            "simulation-launch", f"address {address:#x} is not of this device", "pass what allocate returned"
        )

    def _once(self, step: _Launch, *, backwards: bool) -> None:
        built, name = self._kernels[step.function]
        static = built.run(name, step.grid, step.block, step.shared, step.buffers, backwards=backwards)
        limit = _SHARED_LIMITS.get(self.arch, _STATIC_LIMIT)
        if static > _STATIC_LIMIT or static + step.shared > limit:
            raise SimulationError(
                "simulation-shared", f"{name}: {static} static, {step.shared} dynamic bytes of shared memory",
                f"at most {_STATIC_LIMIT} and together {limit} on {self.arch}",
            )  # fmt: skip

    def _compare(
        self, step: _Launch, ascending: Mapping[int, Bytes], descending: Mapping[int, Bytes]
    ) -> None:
        for start, content in ascending.items():
            differ = np.flatnonzero(content != descending[start])
            if differ.size:
                raise SimulationError(
                    "simulation-race",
                    f"{self._kernels[step.function][1]}: threads in the opposite order give {differ.size} "
                    f"other bytes, from byte {differ[0]} of the buffer at {start:#x}",
                    "a barrier is missing, or something is read that nothing wrote",
                )

    def begin_capture(self) -> None:
        """Record launches from here on."""
        self._queue = []

    def end_capture(self) -> int:
        """Return the number of the record."""
        assert self._queue is not None, "nothing is being recorded"
        queue, self._queue = self._queue, None
        number = max(self._graphs, default=0) + 1
        self._graphs[number] = queue
        return number

    def drop_capture(self) -> None:
        """Forget what was recorded."""
        self._queue = None

    def replay(self, graph: int) -> None:
        """Run recorded launches."""
        for step in self._graphs[graph]:
            self._run(step)

    def forget(self, graph: int) -> None:
        """Drop a record."""
        del self._graphs[graph]

    def make_stream(self) -> int:
        """Everything is done at once, in the order of the calls."""
        return 0

    def make_event(self) -> int:
        """Everything is done at once."""
        return 0

    def mark(self, event: int, stream: int = 0) -> None:
        """Everything is done already."""

    def follow(self, event: int, stream: int = 0) -> None:
        """Everything is done already."""

    def wait_for(self, event: int) -> None:
        """Everything is done already."""

    def synchronize(self) -> None:
        """Everything is done already."""

    def close(self) -> None:
        """Give back the memory that is not lent."""
        for address in set(self._memory) - self._lent:
            runtime().sim_release(address)
            del self._memory[address]
        self._graphs.clear()


def view(address: int, count: int) -> Bytes:
    """Return memory as bytes."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
