"""Chains of elementwise operations over rank-N tensors in one pass; broadcasts and transposes by strides.

    out[i, j, ...] = last value of a list: inputs first, then each operation applied to earlier values

Unlike `elementwise_f32`, which runs over images in one layout, every operand has strides of its own
(`strided.py`), may be quantized (dequantized on the way in, quantized on the way out), and an empty chain
copies: that is how tensors change their layout.

Tile: one vector of 16 elements along the innermost axis, the last one of a row moved back; rows shorter than
a vector go element by element. Axes that run on in all operands are joined first, so that tensors without
broadcast are one row. Bound by memory when all innermost strides are 0 or 1, by one load or store per element
where one is transposed. One task is one index of the outermost axis. May run in place where input and output
have the same strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Verdict
from .elementwise_f32 import Op
from .formulas_f32 import arguments_of
from .strided import DTYPES, LANES, Operand, bytes_of

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Buffer, Stmt

    from ..isa import Isa

TASK_ELEMENTS = 16384


@dataclass(frozen=True)
class ChainF32Spec:
    """Static nest; parameters: inputs in order, output.

    Attributes:
        sizes: of the loops, outermost first; see `strided.merged`.
        inputs, output: where operands lie.
        ops: the chain; without operations the first input is copied.
        lanes: elements per innermost row of the output; those beyond its size are set to zero.
    """

    sizes: tuple[int, ...]
    inputs: tuple[Operand, ...]
    output: Operand
    ops: tuple[Op, ...] = ()
    lanes: int = 0

    @property
    def length(self) -> int:
        """Elements of the innermost axis."""
        return self.sizes[-1] if self.sizes else 1

    @property
    def pieces(self) -> int:
        """Rows that a long innermost axis is cut into, when it is the only one."""
        if len(self.sizes) != 1 or self.lanes > self.length:
            return 1
        fitting = [n for n in range(self.length // TASK_ELEMENTS, 1, -1) if self.length % (n * LANES) == 0]
        return fitting[0] if fitting else 1

    def tasks(self) -> int:
        """Length of the parallel loop."""
        return self.sizes[0] if len(self.sizes) > 1 else self.pieces

    def bytes(self) -> int:
        """Bytes of all operands."""
        return sum(bytes_of(self.sizes, operand) for operand in (*self.inputs, self.output))


def supports(spec: ChainF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if not spec.inputs or min(spec.sizes, default=1) < 1:
        return Verdict.no(f"a chain over {len(spec.inputs)} inputs of sizes {spec.sizes}")
    for operand in (*spec.inputs, spec.output):
        if operand.dtype not in DTYPES or not operand.inside(spec.sizes):
            return Verdict.no(f"an operand of {operand.dtype} that leaves its buffer")
    for number, op in enumerate(spec.ops, len(spec.inputs)):
        wanted = arguments_of(op.name)
        if wanted is None:
            return Verdict.no(f"operation {op.name!r}")
        if len(op.args) != wanted or any(not 0 <= a < number for a in op.args):
            return Verdict.no(f"operation {op.name!r} takes {wanted} earlier values, not {op.args}")
    return Verdict.yes()


def pack(spec: ChainF32Spec) -> list[np.ndarray]:
    """Return no constants: they are inputs."""
    return []


def build(spec: ChainF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: inputs, output, `begin`, `end`."""
    from .emit import module
    from .int8_emit import tasks
    from .strided_tir import parameter

    inputs = [parameter(f"in{i}", operand) for i, operand in enumerate(spec.inputs)]
    out = parameter("out", spec.output)
    kernel = _Chain(spec, inputs, out)
    return module([*inputs, out], lambda begin, end: [tasks(begin, end, kernel.task)])


class _Chain:
    """The kernel being written."""

    def __init__(self, spec: ChainF32Spec, inputs: Sequence[Buffer], out: Buffer) -> None:
        self.spec, self.inputs, self.out = spec, inputs, out

    def task(self, task: Expr) -> list[Stmt]:
        """Return one index of the outermost axis, or one piece of the only one."""
        from .int8_emit import i64
        from .strided_tir import nest

        spec = self.spec
        if len(spec.sizes) > 1:
            return nest(spec.sizes[1:-1], lambda inner: self.row([task, *inner], i64(0), spec.length))
        length = spec.length // spec.pieces
        return self.row([], task * i64(length), length)

    def row(self, outer: Sequence[Expr], first: Expr, length: int) -> list[Stmt]:
        """Return the chain over one row, and zeros behind it."""
        from . import emit
        from .int8_emit import i64, loop
        from .math_f32 import lit
        from .strided_tir import place, row

        spec = self.spec
        made = row(length, lambda c, lanes: self.vector(outer, first + c, lanes))
        if spec.lanes <= length:
            return made
        at = place(spec.output, outer)
        zero = spec.output.quant[1] if spec.output.quant else None
        value = lit(0.0, 1) if zero is None else emit.const(zero, "uint8")
        fill = loop("z", spec.lanes - length, lambda z: [emit.store(self.out, value, at + (z + i64(length)))])
        return [*made, fill]

    def vector(self, outer: Sequence[Expr], c: Expr, lanes: int) -> tuple[list[Stmt], Stmt]:
        """Return the chain for some elements, and its store."""
        from . import emit
        from .formulas_f32 import formula
        from .strided_tir import load, place, store

        spec = self.spec
        held = [emit.register(f"v{i}", "float32", lanes) for i in range(len(spec.inputs) + len(spec.ops))]
        values = [emit.load(buffer, 0, lanes=lanes) for buffer in held]
        wanted = [
            load(buffer, operand, place(operand, [*outer, c]), lanes)
            for buffer, operand in zip(self.inputs, spec.inputs, strict=True)
        ]
        wanted += [formula(op, [values[a] for a in op.args], lanes) for op in spec.ops]
        steps = [
            emit.store(buffer, value, 0, lanes=lanes) for buffer, value in zip(held, wanted, strict=True)
        ]
        write = store(
            self.out, spec.output, values[-1 if spec.ops else 0], place(spec.output, [*outer, c]), lanes
        )
        return [*emit.allocate(held), *steps], write
