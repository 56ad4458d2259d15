"""A device that is none: kernels as TVM compiles them for this CPU, from the functions before scheduling.

It shows on machines without a GPU that addresses, launches and arithmetic of a program are right; the mapping
of loops to threads is not in it, and neither is any time. A function of several kernels runs at its last one;
what its kernels hand each other (scratch) is left alone.
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
from .host_device import HostDevice, Launched, view
from .program import DeviceFunction

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

# TVM's kernels expect whole cache lines.
_ALIGNMENT = 256
# Most functions run a few times. Level 1 compiles in two thirds of the time of the default, code as fast.
_TARGET = {"kind": "llvm", "opt-level": 1}


def describe(functions: Mapping[str, tirx.PrimFunc], found: Mapping[str, DeviceFunction]) -> str:
    """Return what `EmulatedDevice` needs: the functions, and which of their parameters a kernel takes where.

    A function of several kernels runs as a whole at its last one, when all its buffers are known.
    """
    import tvm

    kernels: dict[str, object] = {}
    for name, function in found.items():
        for kernel in function.kernels:
            order = [_position(kernel.parameters, parameter) for parameter in function.parameters]
            runs = kernel is function.kernels[-1]
            kernels[kernel.name] = {"function": name, "order": order, "runs": runs}
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    return json.dumps({"kernels": kernels, "module": tvm.ir.save_json(module)})


def _position(parameters: Sequence[str], name: str) -> int:
    """Return which buffer of a launch a parameter is; -1: this kernel does not take it."""
    return parameters.index(name) if name in parameters else -1


@dataclass
class _Kernel:
    """A kernel: its function, the launch's buffers in the function's order, their shapes and types.

    `runs`: it is the function's last.
    """

    function: str
    runs: bool
    order: Sequence[int]
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str]


@dataclass
class EmulatedDevice(HostDevice):
    """Runs a program's launches on the CPU, in order and at once.

    Args:
        text: of `describe`.
        arch: what it stands for.
    """

    text: str
    arch: str
    alignment: int = 64  # what TVM asks of tensors
    _memory: dict[int, Bytes] = field(default_factory=dict)
    _kernels: list[_Kernel] = field(default_factory=list)
    _calls: dict[str, Callable[..., object]] = field(default_factory=dict)
    _noted: dict[str, dict[int, int]] = field(default_factory=dict)
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

    def _compile(self, kernels: Iterable[int]) -> None:
        """Compile for this CPU what a graph needs, all in one go."""
        import tvm

        names = {self._kernels[index].function for index in kernels} - set(self._calls)
        if names:
            built = tvm.compile(tvm.IRModule({name: self._module[name] for name in sorted(names)}), _TARGET)
            self._calls |= {name: built[name] for name in names}

    def _run(self, step: Launched) -> None:
        """Note a kernel's buffers; at a function's last kernel run the function on those of all."""
        kernel = self._kernels[step.function]
        noted = self._noted.setdefault(kernel.function, {})
        noted |= {place: step.buffers[index] for place, index in enumerate(kernel.order) if index >= 0}
        if not kernel.runs:
            return
        del self._noted[kernel.function]
        self._compile([step.function])
        tensors = [
            _tensor(noted[place] if place in noted else self._unread(shape), shape, dtype)
            for place, (shape, dtype) in enumerate(zip(kernel.shapes, kernel.dtypes, strict=True))
        ]
        self._calls[kernel.function](*tensors)

    def _unread(self, shape: tuple[int, ...]) -> int:
        """Return memory for a parameter that no kernel takes, since nothing reads it."""
        if shape not in self._blanks:
            self._blanks[shape] = self.allocate(8 * max(1, int(np.prod(shape))))
        return self._blanks[shape]

    def replay(self, graph: int) -> None:
        """Run recorded launches; what they need is compiled in one go."""
        self._compile(step.function for step in self._graphs[graph])
        super().replay(graph)

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
    kind = np.dtype(dtype)
    return view(address, int(np.prod(shape, dtype=np.int64)) * kind.itemsize).view(kind).reshape(shape)
