"""What an executable asks of a device; addresses, streams, events, functions and graphs are integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .program import Dims

Bytes = npt.NDArray[np.uint8]


class Device(Protocol):
    """Memory, and kernels queued on streams; where a stream may be named, 0 is the device's main one."""

    @property
    def arch(self) -> str:
        """`sm_90` and the like."""
        ...

    @property
    def place(self) -> tuple[int, int]:
        """Type and index of its memory as DLPack counts them."""
        ...

    @property
    def alignment(self) -> int:
        """Addresses of the caller's must be whole multiples of so many bytes."""
        ...

    @property
    def stream(self) -> int | None:
        """Main stream, for other libraries; None where nothing is queued."""
        ...

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of device memory, freed by `close`."""
        ...

    def lend(self, count: int) -> int:
        """Return the address of `count` bytes that stay, `close` or not, until `take_back`."""
        ...

    def take_back(self, address: int) -> None:
        """Free what was lent, from any thread."""
        ...

    def pinned(self, count: int) -> Bytes:
        """Return host memory that copies do not have to stage."""
        ...

    def upload(self, address: int, data: Bytes, stream: int = 0) -> None:
        """Queue a copy to the device; `data` must stay as it is until then."""
        ...

    def download(self, data: Bytes, address: int, stream: int = 0) -> None:
        """Queue a copy from the device."""
        ...

    def fetch(self, data: Bytes, address: int) -> None:
        """Copy from the device at once, past all streams and also after `close`."""
        ...

    def copy(self, target: int, source: int, count: int) -> None:
        """Queue a copy of `count` bytes on the device."""
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

    def drop_capture(self) -> None:
        """End a recording that went wrong, whatever state it is in."""
        ...

    def replay(self, graph: int) -> None:
        """Queue recorded launches."""
        ...

    def forget(self, graph: int) -> None:
        """Free a graph."""
        ...

    def make_stream(self) -> int:
        """Return one more stream."""
        ...

    def make_event(self) -> int:
        """Return a mark that streams can leave behind and wait for."""
        ...

    def mark(self, event: int, stream: int = 0) -> None:
        """Queue a mark behind what the stream has so far."""
        ...

    def follow(self, event: int, stream: int = 0) -> None:
        """Let the stream wait for the last mark."""
        ...

    def wait_for(self, event: int) -> None:
        """Wait for the last mark here; raises what went wrong on the way."""
        ...

    def synchronize(self) -> None:
        """Wait for everything on the main stream; raises what went wrong on the way."""
        ...

    def close(self) -> None:
        """Free everything but what is lent; later calls raise."""
        ...
