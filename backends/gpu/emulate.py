"""A device that is none: kernels as TVM compiles them for this CPU, from the functions before scheduling.

It shows on machines without a GPU that addresses, launches and arithmetic of a program are right; the mapping
of loops to threads is not in it, and neither is any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.backend import Array
from .driver import Bytes
from .program import DeviceFunction, Dims

if TYPE_CHECKING:
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
            order = [_position(kernel.parameters, parameter) for parameter in function.parameters]
            kernels[kernel.name] = {"function": name, "order": order, "runs": position == 0}
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    return json.dumps({"kernels": kernels, "module": tvm.ir.save_json(module)})


def _position(parameters: Sequence[str], name: str) -> int:
    assert name in parameters, f"a kernel does not take {name}; only functions of one kernel are emulated"
    return parameters.index(name)


@dataclass
class _Kernel:
    """A function on the CPU, the launch's buffers in its order, and their shapes and types."""

    call: object
    order: Sequence[int]
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str]


@dataclass
class EmulatedDevice:
    """Runs a program's launches on the CPU, in order.

    Args:
        text: of `describe`.
        arch: what it stands for.
    """

    text: str
    arch: str
    _memory: list[Bytes] = field(default_factory=list)
    _queue: list[tuple[int, Sequence[int]]] | None = None
    _kernels: list[_Kernel] = field(default_factory=list)
    _graphs: list[list[tuple[int, Sequence[int]]]] = field(default_factory=list)

    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of this machine's memory."""
        return int(self.pinned(count).ctypes.data)

    def pinned(self, count: int) -> Bytes:
        """Return memory at a whole multiple of the alignment."""
        room = np.zeros(count + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        self._memory.append(room)
        return room[start : start + count]

    def upload(self, address: int, data: Bytes) -> None:
        """Copy at once."""
        _view(address, (data.size,), "uint8")[:] = data

    def download(self, data: Bytes, address: int) -> None:
        """Copy at once."""
        data[:] = _view(address, (data.size,), "uint8")

    def functions(self, image: bytes, names: Sequence[str]) -> dict[str, int]:
        """Compile the functions behind kernels for this CPU."""
        import tvm

        stored = json.loads(self.text)
        module = tvm.ir.load_json(stored["module"])
        built = tvm.compile(module, "llvm")
        found = {}
        for name in names:
            kernel = stored["kernels"][name]
            types = [p.ty for p in module[kernel["function"]].params]
            self._kernels.append(
                _Kernel(
                    built[kernel["function"]] if kernel["runs"] else None, kernel["order"],
                    [tuple(int(n) for n in t.shape) for t in types], [str(t.dtype) for t in types],
                )
            )  # fmt: skip
            found[name] = len(self._kernels) - 1
        return found

    def launch(self, function: int, grid: Dims, block: Dims, shared: int, buffers: Sequence[int]) -> None:
        """Run one kernel, or record it."""
        if self._queue is not None:
            self._queue.append((function, buffers))
            return
        self._run(function, buffers)

    def _run(self, function: int, buffers: Sequence[int]) -> None:
        from tvm.runtime import from_dlpack

        kernel = self._kernels[function]
        if kernel.call is None:
            return
        arrays = [
            _view(buffers[index], shape, dtype)
            for index, shape, dtype in zip(kernel.order, kernel.shapes, kernel.dtypes, strict=True)
        ]
        kernel.call(*(from_dlpack(array) for array in arrays))  # type: ignore[operator]

    def begin_capture(self) -> None:
        """Record launches from here on."""
        self._queue = []

    def end_capture(self) -> int:
        """Return the number of the record."""
        assert self._queue is not None, "nothing is being recorded"
        self._graphs.append(self._queue)
        self._queue = None
        return len(self._graphs) - 1

    def replay(self, graph: int) -> None:
        """Run recorded launches."""
        for function, buffers in self._graphs[graph]:
            self._run(function, buffers)

    def synchronize(self) -> None:
        """Everything is done already."""

    def close(self) -> None:
        """Forget the memory."""
        self._memory.clear()


def _view(address: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Return memory as an array."""
    import ctypes

    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    room = (ctypes.c_uint8 * count).from_address(address)
    return np.ctypeslib.as_array(room).view(kind).reshape(shape)
