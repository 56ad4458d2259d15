"""A device whose kernels run on this CPU thread by thread, each launch twice in opposite orders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..device import Bytes
from ..host_device import HostDevice, Launched, view
from .compiled import Library, library, runtime
from .errors import SimulationError

_STATIC_LIMIT = 49152
# Most shared memory of a block, static and dynamic: CUDA C++ Programming Guide, compute capabilities.
_SHARED_LIMITS = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10}

_CONTRACTED = b"// fused multiply-adds are permitted\n"


def images(sources: tuple[str, str]) -> list[bytes]:
    """Return what stands for the machine code of `Kernels.sources` on a simulated device."""
    return [_CONTRACTED + sources[0].encode(), sources[1].encode()]


@dataclass
class SimulatedDevice(HostDevice):
    """Takes `images(sources)` for machine code.

    Args:
        arch: what it stands for.
        orders: run every launch in both orders and compare; else ascending alone.
    """

    arch: str = "sm_90"
    orders: bool = True
    alignment: int = 16
    _memory: dict[int, int] = field(default_factory=dict)
    _lent: set[int] = field(default_factory=set)
    _kernels: list[tuple[Library, str]] = field(default_factory=list)

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

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Compile a source for this CPU; raises `SimulationError`."""
        contract = image.startswith(_CONTRACTED)
        built = library(image.decode(), self.arch, contract=contract)
        first = len(self._kernels)
        self._kernels += [(built, name) for name in names]
        return {name: first + index for index, name in enumerate(names)}

    def _run(self, step: Launched) -> None:
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

    def _once(self, step: Launched, *, backwards: bool) -> None:
        built, name = self._kernels[step.function]
        static = built.run(name, step.grid, step.block, step.shared, step.buffers, backwards=backwards)
        limit = _SHARED_LIMITS.get(self.arch, _STATIC_LIMIT)
        if static > _STATIC_LIMIT or static + step.shared > limit:
            raise SimulationError(
                "simulation-shared", f"{name}: {static} static, {step.shared} dynamic bytes of shared memory",
                f"at most {_STATIC_LIMIT} and together {limit} on {self.arch}",
            )  # fmt: skip

    def _compare(
        self, step: Launched, ascending: Mapping[int, Bytes], descending: Mapping[int, Bytes]
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

    def close(self) -> None:
        """Give back the memory that is not lent."""
        for address in set(self._memory) - self._lent:
            runtime().sim_release(address)
            del self._memory[address]
        self._graphs.clear()
