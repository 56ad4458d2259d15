"""What runs on the device: kernels launched one after the other on buffers with fixed addresses.

This is also what an artifact holds (`model.json`), so that running it needs the CUDA driver alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import pydantic

from ...compiler.backend import Port, Signature

Dims = tuple[int, int, int]
# 3 has products that a library may do; what 2 says means the same in 3.
FORMAT = 3
FORMATS = (2, FORMAT)

# An artifact's files.
PROGRAM, WEIGHTS = "model.json", "model.weights"
# Kernels that may contract sums and products, and those that may not.
CODE = ("model.cubin", "model_exact.cubin")
# The functions before scheduling, for machines without a device.
EMULATION = "model.emulation.json"

Where = Literal["input", "output", "arena", "weights"]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Place(_Record):
    """Where a buffer lies.

    Attributes:
        where: one of the caller's inputs or outputs, working memory, or constants.
        offset: bytes from the start of working memory or constants; of inputs and outputs the index.
    """

    where: Where
    offset: int = pydantic.Field(ge=0)


class MatrixProduct(_Record):
    """What a kernel computes, where a library may do it: C[i, j] = sum over k of A[i, k] B[k, j], rows dense.

    Attributes:
        dtype, result: of A and B; of C.
        rows, columns, depth: how many i, j and k.
        b_by_columns: B lies as [j, k], else as [k, j].
        a, b, c: which of the kernel's buffers they are.
        version: of the library, as it numbers itself, that was timed as the fastest.
        rank: which of its algorithms, in the order in which it proposes them.
    """

    dtype: str
    result: str
    rows: int = pydantic.Field(ge=1)
    columns: int = pydantic.Field(ge=1)
    depth: int = pydantic.Field(ge=1)
    b_by_columns: bool
    a: int = pydantic.Field(ge=0)
    b: int = pydantic.Field(ge=0)
    c: int = pydantic.Field(ge=0)
    version: int
    rank: int = pydantic.Field(ge=0)


class Launch(_Record):
    """One kernel launch.

    Attributes:
        kernel: its name in the device code.
        image: which file of device code it is in, by index.
        grid, block: sizes, x first.
        shared_bytes: dynamic shared memory.
        buffers: its arguments, by index into `Program.places`.
        product: what it computes, where a library was faster; the kernel runs where the library is not.
    """

    kernel: str
    image: Literal[0, 1]
    grid: Dims
    block: Dims
    shared_bytes: int = pydantic.Field(ge=0)
    buffers: tuple[int, ...]
    product: MatrixProduct | None = None


class PortRecord(_Record):
    """An input or output, in C order.

    Attributes:
        name: as in the model.
        dtype: ONNX spelling.
        shape: all sizes fixed; where `Program.batched`, the first is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Program(_Record):
    """A compiled model, for one batch size.

    Attributes:
        arch: `sm_90` and the like: what the device code was compiled for.
        inputs, outputs: in the model's order.
        batched: the model's first size is open; this is for as many samples as the inputs' first size says.
        places: of all buffers.
        launches: in running order.
        arena_bytes, weight_bytes: sizes of working memory and constants.
    """

    arch: str
    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]
    batched: bool
    places: tuple[Place, ...]
    launches: tuple[Launch, ...]
    arena_bytes: int
    weight_bytes: int


class Programs(_Record):
    """What an artifact holds: programs of one model for different batch sizes; code and constants are shared.

    Attributes:
        version: of this format.
    """

    version: int = FORMAT
    programs: tuple[Program, ...] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class Tensor:
    """A buffer of a function's call, before it has an address."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        import numpy as np

        width = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize
        return prod(self.shape) * width


@dataclass(frozen=True)
class Step:
    """A call of a device function.

    Attributes:
        function: its name.
        inputs: buffers read, then `outputs` written, in the order of its parameters.
    """

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """How a kernel of a device function is launched.

    Attributes:
        name: in the device code.
        image: 0 where sums and products of floats may be contracted, 1 where each rounds once.
        grid, block, shared_bytes: as in `Launch`.
        parameters: names of the function's buffers.
        product: as in `Launch`.
    """

    name: str
    image: Literal[0, 1]
    grid: Dims
    block: Dims
    shared_bytes: int
    parameters: tuple[str, ...]
    product: MatrixProduct | None = None


@dataclass(frozen=True)
class DeviceFunction:
    """A scheduled function: its buffers in calling order, its kernels, and what they hand each other.

    Attributes:
        parameters: names of inputs, then outputs.
        scratch: name -> tensor, working memory between its kernels.
    """

    parameters: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    scratch: Mapping[str, Tensor]


def fixed_signature(program: Program) -> Signature:
    """Return inputs and outputs of a loaded program; an open first size is called `batch`."""
    ports = [
        tuple(Port(p.name, p.dtype, ("batch", *p.shape[1:]) if program.batched else p.shape) for p in records)
        for records in (program.inputs, program.outputs)
    ]
    return Signature(*ports)
