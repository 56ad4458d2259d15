"""Addresses: every buffer of the calls gets its place, every kernel its launch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...compiler.arena import Block, arrange, top
from ...compiler.backend import Signature
from .module import Calls
from .program import DeviceFunction, Launch, Place, PortRecord, Program, Step, Tensor

# Loads of 16 bytes per thread and of 128 bytes per warp stay whole.
_ALIGNMENT = 256


def make_program(
    calls: Calls, functions: Mapping[str, DeviceFunction], signature: Signature, arch: str, *, batched: bool
) -> tuple[Program, bytes]:
    """Return the program and the bytes of its constants."""
    (program,), weights = make_programs([calls], functions, signature, arch, batched=batched)
    return program, weights


def make_programs(
    sizes: Sequence[Calls],
    functions: Mapping[str, DeviceFunction],
    signature: Signature,
    arch: str,
    *,
    batched: bool,
) -> tuple[tuple[Program, ...], bytes]:
    """Return one program per batch size, and the bytes of the constants that all of them share."""
    weights = _Weights()
    drafts = [_program(calls, functions, signature, weights) for calls in sizes]
    data = weights.data()
    common = {"arch": arch, "batched": batched, "weight_bytes": len(data)}
    return tuple(Program.model_validate({**draft, **common}) for draft in drafts), data


def _program(
    calls: Calls, functions: Mapping[str, DeviceFunction], signature: Signature, weights: _Weights
) -> dict[str, object]:
    layout = _Layout(calls, functions)
    places = layout.places() | {name: weights.place(array) for name, array in calls.constants.items()}
    names = list(places)
    index = {name: number for number, name in enumerate(names)}
    launches = tuple(
        Launch(
            kernel=kernel.name, image=kernel.image, grid=kernel.grid, block=kernel.block,
            shared_bytes=kernel.shared_bytes, product=kernel.product,
            buffers=tuple(index[buffers[parameter]] for parameter in kernel.parameters),
        )
        for step, buffers in layout.steps for kernel in functions[step.function].kernels
    )  # fmt: skip
    inputs, outputs = (
        tuple(PortRecord(name=p.name, dtype=p.dtype, shape=calls.tensors[n].shape) for p, n in pairs)
        for pairs in (
            zip(signature.inputs, calls.inputs, strict=True),
            zip(signature.outputs, calls.outputs, strict=True),
        )
    )
    return {
        "inputs": inputs, "outputs": outputs, "launches": launches, "arena_bytes": layout.arena_bytes,
        "places": tuple(places[name] for name in names),
    }  # fmt: skip


class _Weights:
    """Constants one behind the other; equal ones once."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._parts: list[bytes] = []
        self._end = 0

    def place(self, array: npt.NDArray[np.generic]) -> Place:
        """Add an array, unless it is there."""
        data = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._known:
            self._known[digest] = self._end
            self._parts += [data, bytes(-len(data) % _ALIGNMENT)]
            self._end += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        return Place(where="weights", offset=self._known[digest])

    def data(self) -> bytes:
        """Return the bytes of all."""
        return b"".join(self._parts)


class _Layout:
    """Working memory: buffers live from the step that writes them to the last that reads them."""

    def __init__(self, calls: Calls, functions: Mapping[str, DeviceFunction]) -> None:
        self._calls = calls
        self.steps: list[tuple[Step, dict[str, str]]] = []
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._tensors = dict(calls.tensors)
        for index, step in enumerate(calls.steps):
            function = functions[step.function]
            buffers = dict(zip(function.parameters, [*step.inputs, *step.outputs], strict=True))
            buffers |= self._scratch(index, function.scratch)
            self.steps.append((step, buffers))
            for name in buffers.values():
                self._first.setdefault(name, index)
                self._last[name] = index
        self._place()

    def _scratch(self, index: int, scratch: Mapping[str, Tensor]) -> dict[str, str]:
        names = {own: f"s{index}.{own}" for own in scratch}
        self._tensors |= {names[own]: tensor for own, tensor in scratch.items()}
        return names

    def _place(self) -> None:
        outside = {*self._calls.inputs, *self._calls.outputs, *self._calls.constants}
        self._inner = [name for name in self._first if name not in outside]
        blocks = [
            Block(
                self._first[name], self._last[name], -(-self._tensors[name].bytes // _ALIGNMENT) * _ALIGNMENT
            )
            for name in self._inner
        ]
        self._offsets: Sequence[int] = arrange(blocks)
        self.arena_bytes = top(blocks, self._offsets)

    def places(self) -> dict[str, Place]:
        """Return the place of every buffer but the constants."""
        found = {n: Place(where="input", offset=i) for i, n in enumerate(self._calls.inputs)}
        found |= {n: Place(where="output", offset=i) for i, n in enumerate(self._calls.outputs)}
        inner = zip(self._inner, self._offsets, strict=True)
        return found | {name: Place(where="arena", offset=offset) for name, offset in inner}
