"""A device that is none: kernels as TVM compiles them for this CPU, from the functions before scheduling.

It shows on machines without a GPU that addresses, launches and arithmetic of a program are right; the mapping
of loops to threads is not in it, and neither is any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from ...compiler.backend import Array
from .device import Bytes
from .program import DeviceFunction, Dims

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

# TVM's kernels expect whole cache lines.
_ALIGNMENT = 256


def describe(functions: Mapping[str, tirx.PrimFunc], found: Mapping[str, DeviceFunction]) -> str:
    """Return what `EmulatedDevice` needs: the functions, and which of their parameters a kernel takes where.

    A function of several kernels runs as a whole at its first one.
    """
    import tvm

    kernels: dict[str, object] = {}
    for name, function in found.items():
        for position, kernel in enumerate(function.kernels):
            alone = len(function.kernels) == 1
            order = [_position(kernel.parameters, parameter, alone) for parameter in function.parameters]
            kernels[kernel.name] = {"function": name, "order": order, "runs": position == 0}
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    return json.dumps({"kernels": kernels, "module": tvm.ir.save_json(module)})


def _position(parameters: Sequence[str], name: str, alone: bool) -> int:
    """Return which buffer of a launch a parameter is; -1: none, since nothing in the function reads it."""
    if name not in parameters:
        assert alone, f"a kernel does not take {name}; only functions of one kernel are emulated"
        return -1
    return parameters.index(name)


@dataclass
class _Kernel:
    """A kernel: its function, the launch's buffers in the function's order, their shapes and types."""

    function: str
    runs: bool
    order: Sequence[int]
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str]


@dataclass
class EmulatedDevice:
    """Runs a program's launches on the CPU, in order and at once.

    Args:
        text: of `describe`.
        arch: what it stands for.
    """

    text: str
    arch: str
    place: tuple[int, int] = (1, 0)  # kDLCPU
    alignment: int = 64  # what TVM asks of tensors
    stream: int | None = None
    _memory: dict[int, Bytes] = field(default_factory=dict)
    _queue: list[tuple[int, Sequence[int]]] | None = None
    _kernels: list[_Kernel] = field(default_factory=list)
    _calls: dict[str, Callable[..., object]] = field(default_factory=dict)
    _graphs: dict[int, list[tuple[int, Sequence[int]]]] = field(default_factory=dict)
    _blanks: dict[tuple[int, ...], int] = field(default_factory=dict)

    @cached_property
    def _stored(self) -> dict[str, dict[str, dict[str, object]]]:
        stored: dict[str, dict[str, dict[str, object]]] = json.loads(self.text)
        return stored

    @cached_property
    def _module(self) -> tvm.IRModule:
        import tvm

        return tvm.ir.load_json(self._stored["module"])

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of this machine's memory."""
        return self.lend(count)

    def lend(self, count: int) -> int:
        """Return the address of `count` bytes that stay until `take_back`."""
        room = _aligned(count)
        self._memory[int(room.ctypes.data)] = room
        return int(room.ctypes.data)

    def take_back(self, address: int) -> None:
        """Forget what was lent."""
        self._memory.pop(address, None)

    def pinned(self, count: int) -> Bytes:
        """Return memory at a whole multiple of the alignment."""
        return _aligned(count)

    def upload(self, address: int, data: Bytes, stream: int = 0) -> None:
        """Copy at once."""
        _view(address, (data.size,), "uint8")[:] = data

    def download(self, data: Bytes, address: int, stream: int = 0) -> None:
        """Copy at once."""
        data[:] = _view(address, (data.size,), "uint8")

    def fetch(self, data: Bytes, address: int) -> None:
        """Copy at once."""
        self.download(data, address)

    def copy(self, target: int, source: int, count: int) -> None:
        """Copy at once."""
        _view(target, (count,), "uint8")[:] = _view(source, (count,), "uint8")

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Look kernels up; the functions behind them are compiled when they run first."""
        return {name: self._found(name) for name in names}

    def _found(self, name: str) -> int:
        kernel = cast(Mapping[str, object], self._stored["kernels"][name])
        function = str(kernel["function"])
        types = [p.ty for p in self._module[function].params]
        self._kernels.append(
            _Kernel(
                function, bool(kernel["runs"]), cast(Sequence[int], kernel["order"]),
                [tuple(int(n) for n in t.shape) for t in types], [str(t.dtype) for t in types],
            )
        )  # fmt: skip
        return len(self._kernels) - 1

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Run one kernel, or record it."""
        if self._queue is not None:
            self._queue.append((function, buffers))
            return
        self._compile([function])
        self._run(function, buffers)

    def _compile(self, kernels: Iterable[int]) -> None:
        """Compile for this CPU what a graph needs, all in one go."""
        import tvm

        names = {self._kernels[index].function for index in kernels} - set(self._calls)
        if names:
            built = tvm.compile(tvm.IRModule({name: self._module[name] for name in sorted(names)}), "llvm")
            self._calls |= {name: built[name] for name in names}

    def _run(self, function: int, buffers: Sequence[int]) -> None:
        kernel = self._kernels[function]
        if not kernel.runs:
            return
        tensors = [
            _tensor(buffers[index] if index >= 0 else self._unread(shape), shape, dtype)
            for index, shape, dtype in zip(kernel.order, kernel.shapes, kernel.dtypes, strict=True)
        ]
        self._calls[kernel.function](*tensors)

    def _unread(self, shape: tuple[int, ...]) -> int:
        """Return memory for a parameter that nobody reads."""
        if shape not in self._blanks:
            self._blanks[shape] = self.allocate(8 * max(1, int(np.prod(shape))))
        return self._blanks[shape]

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
        self._compile(function for function, _ in self._graphs[graph])
        for function, buffers in self._graphs[graph]:
            self._run(function, buffers)

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
        """Forget what is recorded; memory goes with whoever holds it."""
        self._graphs.clear()


def _aligned(count: int) -> Bytes:
    room = np.zeros(count + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + count]


def _tensor(address: int, shape: tuple[int, ...], dtype: str) -> tvm.runtime.Tensor:
    """Return memory as TVM has it; NumPy hands over no bfloat16, so its bits go as integers."""
    from tvm.runtime import from_dlpack

    if dtype != "bfloat16":
        return from_dlpack(_view(address, shape, dtype))
    return from_dlpack(_view(address, shape, "uint16"))._create_view(shape, dtype)


def _view(address: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Return memory as an array."""
    import ctypes

    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    room = (ctypes.c_uint8 * count).from_address(address)
    return np.ctypeslib.as_array(room).view(kind).reshape(shape)
