"""A CUDA driver that is none (`fake_cuda.c`), and a small program to run on it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pared.backends.gpu.device import Device
from pared.backends.gpu.driver import open_driver
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.program import Launch, Place, PortRecord, Program

HERE = Path(__file__).parent
WIDTH = 8
IMAGE = b"\x7fELF"
_Kernel = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint64))


def compile_fake(source: Path, folder: Path) -> Path:
    """Return a library made of a C file; skips where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    library = folder / f"{source.stem}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-lpthread"], check=True)
    return library


class Fake:
    """One driver with a state of its own: every copy of the library is loaded anew."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._kept: list[object] = []
        self.path = library

    def devices(self, *chips: str) -> None:
        """Show chips such as `sm_90`."""
        self._c.fake_devices(len(chips))
        for index, chip in enumerate(chips):
            self._c.fake_chip(index, int(chip[3:-1]), int(chip[-1]))

    def fail(self, name: str, nth: int, code: int) -> None:
        """Let the n-th call from now on fail."""
        self._c.fake_fail(name.encode(), nth, code)

    def memory(self, count: int) -> None:
        """Give devices so much memory."""
        self._c.fake_memory(ctypes.c_long(count))

    def event_ms(self, ms: float) -> None:
        """Let that much time pass between any two events."""
        self._c.fake_event_ms(ctypes.c_float(ms))

    def calls(self, name: str) -> int:
        """Return how often a function was called."""
        return int(self._c.fake_calls(name.encode()))

    def current(self) -> int:
        """Return the device whose context this thread has, -1 for none."""
        return int(self._c.fake_current())

    def live(self) -> dict[str, int]:
        """Return how much of each kind is allocated, what there is none of left out."""
        kinds = ("device", "host", "streams", "events", "modules", "graphs", "contexts")
        found = {kind: int(self._c.fake_live(kind.encode())) for kind in kinds}
        return {kind: count for kind, count in found.items() if count}

    def kernel(self, name: str, count: int, work: Callable[..., None]) -> None:
        """Let a kernel of `count` buffers call `work` with their addresses."""

        def call(pointers: Sequence[int]) -> None:
            work(*(pointers[i] for i in range(count)))

        self._kept.append(_Kernel(call))
        self._c.fake_kernel(name.encode(), count, self._kept[-1])


def floats(address: int, count: int) -> np.ndarray:
    """Return memory as floats."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


def affine(size: int = 1, *, batched: bool = True, arch: str = "sm_90") -> Program:
    """Return the program of `y = 2 x + w` for rows of `WIDTH` floats, two launches with memory between."""
    shape = (size, WIDTH)
    ports = [(PortRecord(name=name, dtype="FLOAT", shape=shape),) for name in "xy"]
    launches = [("double", (0, 1)), ("add", (1, 2, 3))]
    return Program(
        arch=arch, inputs=ports[0], outputs=ports[1], batched=batched,
        places=(
            Place(where="input", offset=0), Place(where="arena", offset=256),
            Place(where="weights", offset=256), Place(where="output", offset=0),
        ),
        launches=tuple(
            Launch(
                kernel=f"{name}{size}", image=0, grid=(1, 1, 1), block=(32, 1, 1), shared_bytes=0, buffers=b
            )
            for name, b in launches
        ),
        arena_bytes=256 + 4 * size * WIDTH, weight_bytes=256 + 4 * WIDTH,
    )  # fmt: skip


WEIGHTS = np.arange(WIDTH, dtype=np.float32)
WEIGHT_BYTES = bytes(256) + WEIGHTS.tobytes()


def teach(fake: Fake, *sizes: int) -> None:
    """Teach the driver the kernels of `affine`."""
    for size in sizes:
        count = size * WIDTH

        def double(x: int, t: int, count: int = count) -> None:
            floats(t, count)[:] = 2 * floats(x, count)

        def add(t: int, w: int, y: int, count: int = count) -> None:
            floats(y, count)[:] = floats(t, count) + np.tile(floats(w, WIDTH), count // WIDTH)

        fake.kernel(f"double{size}", 2, double)
        fake.kernel(f"add{size}", 3, add)


def loaded(fake: Fake, *sizes: int, device: Device | None = None, batched: bool = True) -> GpuExecutable:
    """Return `affine` for batch sizes, on the fake driver's first device."""
    teach(fake, *sizes)
    programs = [affine(size, batched=batched) for size in sizes]
    return GpuExecutable(programs, WEIGHT_BYTES, [IMAGE, b""], device or open_driver())


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Return samples."""
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def want(x: np.ndarray) -> np.ndarray:
    """Return what `affine` gives."""
    return 2 * x + WEIGHTS
