"""Gather: rows of a tensor by number, and the numbers themselves: made positive and checked.

    take       out[before..., i, behind...] = data[before..., index[i], behind...]
    indices    out[i] = index[i], + limit where it is negative; status[0] = 1 where one is out of range

`indices` runs first, on the int64 or int32 numbers as they come; the library returns an error before anything
is read where its status is not 0. Bound by memory; a vector at a time where rows are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Verdict
from .strided import Operand, bytes_of

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa


@dataclass(frozen=True)
class TakeF32Spec:
    """Static shape; parameters: data, indices int32 [count], out.

    Attributes:
        before, count, behind: sizes of the axes in front of the gathered one, of the indices, and behind.
        data, output: strides of the axes in front, of the gathered one, of those behind.
        numbers_first: the parameters are indices, data, out: inputs come before constants.
    """

    before: tuple[int, ...]
    count: int
    behind: tuple[int, ...]
    data: Operand
    output: Operand
    numbers_first: bool = False

    def tasks(self) -> int:
        """Length of the parallel loop: the indices."""
        return self.count

    def bytes(self) -> int:
        """Bytes read and written."""
        return 2 * bytes_of((*self.before, self.count, *self.behind), self.output)


def supports(spec: TakeF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min((*spec.before, spec.count, *spec.behind)) < 1:
        return Verdict.no("gathers nothing")
    return Verdict.yes()


def pack(spec: TakeF32Spec) -> list[np.ndarray]:
    """Return no constants."""
    return []


def build(spec: TakeF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: data, indices, out, `begin`, `end`."""
    from tvm import tirx

    from . import emit
    from .int8_emit import tasks
    from .strided_tir import load, nest, parameter, place, row, store

    data, out = parameter("data", spec.data), parameter("out", spec.output)
    indices = emit.parameter("indices", "int32", (spec.count,))

    def task(i: Expr) -> list[Stmt]:
        found = tirx.Cast("int64", emit.load(indices, i))

        def line(outer: list[Expr]) -> list[Stmt]:
            front, behind = outer[: len(spec.before)], outer[len(spec.before) :]

            def put(c: Expr, lanes: int) -> tuple[list[Stmt], Stmt]:
                inner = [*behind, c] if spec.behind else []
                value = load(data, spec.data, place(spec.data, [*front, found, *inner]), lanes)
                return [], store(out, spec.output, value, place(spec.output, [*front, i, *inner]), lanes)

            return row(spec.behind[-1] if spec.behind else 1, put)

        return nest((*spec.before, *spec.behind[:-1]), line)

    given = [indices, data] if spec.numbers_first else [data, indices]
    return emit.module([*given, out], lambda begin, end: [tasks(begin, end, task)])
