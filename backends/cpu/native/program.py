"""What lowering hands to code generation: kernel calls in order, the buffers and constants they touch.

A `Program` says nothing about addresses (`planner.plan` does) and nothing about instructions (the kernel
families do). It is immutable, equal programs hash equal, and `records.to_json(program.summary())` is what the
report shows.

Layout of every buffer that is no input or output of the model: [N, H, W, Cp] or [N, Cp], row-major, Cp =
channels rounded up to 16; lanes beyond the channels hold anything (consumers have zero weights there).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from ....compiler.backend import Array
from ....compiler.records import Json

LANES = 16
ALIAS = "alias"


class KernelSpec(Hashable, Protocol):
    """Static description of one kernel: a frozen dataclass of a family in `kernels/`."""

    def tasks(self) -> int:
        """Return how many independent pieces the outermost loop has (bound of `begin`, `end`)."""
        ...


def padded(channels: int, lanes: int = LANES) -> int:
    """Return `channels` rounded up to whole vectors.

    >>> padded(3), padded(16), padded(17)
    (16, 16, 32)
    """
    return -(-channels // lanes) * lanes


@dataclass(frozen=True)
class Buffer:
    """Memory that steps read and write.

    Attributes:
        name: the ONNX value it holds, unique in the program.
        dtype: NumPy name, `float32`, `uint8`, `int32`, `uint32`, ...
        shape: sizes in memory order, padding lanes included.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size without alignment."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Constant:
    """A packed weight, bias or table in the layout of its kernel; compared by content.

    Attributes:
        name: unique in the program.
        digest: sha256 of dtype, shape and bytes.
        array: read-only, C-contiguous.
    """

    name: str
    digest: str
    array: Array = field(compare=False, repr=False)

    @classmethod
    def of(cls, name: str, array: Array) -> Constant:
        """Freeze `array` under `name`."""
        kept = np.array(array, order="C", copy=not _is_frozen(array))
        kept.flags.writeable = False
        head = f"{kept.dtype.name}{kept.shape}".encode()
        return cls(name, hashlib.sha256(head + kept.tobytes()).hexdigest(), kept)


def _is_frozen(array: Array) -> bool:
    return array.flags.c_contiguous and not array.flags.writeable and array.base is None


@dataclass(frozen=True)
class Step:
    """One kernel call: parameters are inputs, constants, outputs, scratch, in this order, then begin and end.

    Attributes:
        family: module of `kernels/` whose `build(spec, isa)` makes the kernel; `alias` for a step that only
            says that its output is its input under another shape (no code, no memory).
        spec: the family's spec; None only for an alias.
        inputs: buffers read. One buffer may come twice.
        constants: packed constants read.
        outputs: buffers written.
        covers: names of the ONNX nodes that the step computes; provenance for the report.
        in_place: index into `inputs` of a buffer that `outputs[0]` may overwrite element by element: same
            bytes, and every task reads an element before it writes it and nobody else's. None: never.
        scratch: buffers used only during the step.
    """

    family: str
    spec: KernelSpec | None
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    covers: tuple[str, ...] = ()
    in_place: int | None = None
    scratch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert (self.spec is None) == (self.family == ALIAS), f"{self.family}: a kernel needs a spec"
        assert self.outputs, f"{self.family}: a step without outputs"
        assert self.in_place is None or self.in_place < len(self.inputs), f"{self.family}: no such input"

    @property
    def touched(self) -> tuple[str, ...]:
        """Return every buffer that the step reads or writes, in parameter order."""
        return (*self.inputs, *self.outputs, *self.scratch)


@dataclass(frozen=True)
class Program:
    """A whole model for one instruction set.

    Attributes:
        steps: in the order in which they run.
        buffers: every buffer, inputs and outputs included.
        constants: every constant that a step names.
        inputs: buffers of the model's inputs, in its order; the caller's memory in ONNX layout (row-major,
            unpadded). Steps only read them.
        outputs: the same for outputs; no step reads them.
    """

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    constants: tuple[Constant, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, Buffer]:
        """Return the buffers by name."""
        return {buffer.name: buffer for buffer in self.buffers}

    @cached_property
    def constant_by_name(self) -> dict[str, Constant]:
        """Return the constants by name."""
        return {constant.name: constant for constant in self.constants}

    @property
    def kernels(self) -> tuple[tuple[str, KernelSpec], ...]:
        """Return the distinct (family, spec) pairs in order of first use: what has to be compiled."""
        calls = ((step.family, step.spec) for step in self.steps if step.spec is not None)
        return tuple(dict.fromkeys(calls))

    def check(self) -> None:
        """Assert that names are unique and known and that every buffer is written before it is read."""
        assert len(self.by_name) == len(self.buffers), "two buffers of one name"
        assert len(self.constant_by_name) == len(self.constants), "two constants of one name"
        written = set(self.inputs)
        for step in self.steps:
            _check_step(self, step, written)
            written.update(step.outputs)
        missing = set(self.outputs) - written
        assert not missing, f"outputs that no step writes: {sorted(missing)}"

    def summary(self) -> Json:
        """Return the steps for the report: what runs, on which shapes, standing for which nodes."""
        return [_step_summary(self, step) for step in self.steps]


def _check_step(program: Program, step: Step, written: set[str]) -> None:
    unknown = set(step.touched) - set(program.by_name)
    assert not unknown, f"{step.family}: unknown buffers {sorted(unknown)}"
    assert set(step.constants) <= set(program.constant_by_name), f"{step.family}: unknown constants"
    early = set(step.inputs) - written
    assert not early, f"{step.family}: reads {sorted(early)} before anything wrote them"
    again = set(step.outputs) & written
    assert not again, f"{step.family}: writes {sorted(again)} a second time"
    assert not set(step.inputs) & set(program.outputs), f"{step.family}: reads a model output"


def _step_summary(program: Program, step: Step) -> Json:
    shapes: dict[str, Json] = {name: [*program.by_name[name].shape] for name in dict.fromkeys(step.touched)}
    return {"kernel": step.family, "spec": str(step.spec), "buffers": shapes, "nodes": [*step.covers]}


def constant_bytes(program: Program) -> int:
    """Return the bytes of all packed constants."""
    return sum(constant.array.nbytes for constant in program.constants)
