"""What devices on this CPU share: memory is the process's own, and everything is done at once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .device import Bytes
from .program import Dims


@dataclass(frozen=True)
class Launched:
    """A launch with its arguments; `function` is the handle, `buffers` are addresses."""

    function: int
    grid: Dims
    block: Dims
    shared: int
    buffers: tuple[int, ...]


@dataclass
class HostDevice:
    """Copies, records and marks of a device; who inherits adds memory, functions and what a launch does."""

    place: tuple[int, int] = field(init=False, default=(1, 0))  # kDLCPU
    stream: int | None = field(init=False, default=None)
    _queue: list[Launched] | None = field(init=False, default=None)
    _graphs: dict[int, list[Launched]] = field(init=False, default_factory=dict)

    def _run(self, step: Launched) -> None:
        """Run one kernel."""
        raise NotImplementedError

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

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Run one kernel, or record it."""
        step = Launched(function, grid, block, shared, tuple(buffers))
        if self._queue is not None:
            self._queue.append(step)
        else:
            self._run(step)

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


def view(address: int, count: int) -> Bytes:
    """Return `count` bytes of memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
