"""Reductions of rank-N tensors over any axes in float32: sum, mean, max, min, prod, L1, L2, sum of squares.

    out[kept...] = finish(join over the reduced axes of change(data[kept..., reduced...]))

Operands lie anywhere (`strided.py`). Tile: where the innermost axis is reduced and contiguous, up to four
vectors of partial results along it; otherwise 16 results side by side along the innermost kept axis, and
element by element where there are fewer. Bound by reading the data once. One task is one index of the
outermost kept axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .....compiler.backend import Verdict
from .strided import Operand, bytes_of

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa

Kind = Literal["sum", "mean", "max", "min", "prod", "l1", "l2", "sum-square"]


@dataclass(frozen=True)
class ReduceF32Spec:
    """Static shape; parameters: data, out.

    Attributes:
        kept: sizes of the axes of the output, outermost first.
        reduced: sizes of the axes that go.
        data: strides of the kept axes, then of the reduced ones.
        output: strides of the kept axes.
        kind: what is computed.
    """

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    data: Operand
    output: Operand
    kind: Kind

    @property
    def count(self) -> int:
        """Elements per result."""
        return int(np.prod(self.reduced, dtype=np.int64))

    def tasks(self) -> int:
        """Length of the parallel loop: the outermost kept axis."""
        return self.kept[0] if len(self.kept) > 1 else 1

    def bytes(self) -> int:
        """Bytes of data and output."""
        return bytes_of((*self.kept, *self.reduced), self.data) + bytes_of(self.kept, self.output)


def supports(spec: ReduceF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min((*spec.kept, *spec.reduced), default=1) < 1 or not spec.reduced:
        return Verdict.no(f"a reduction of {spec.kept} over {spec.reduced}")
    return Verdict.yes()


def pack(spec: ReduceF32Spec) -> list[np.ndarray]:
    """Return no constants."""
    return []


def build(spec: ReduceF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: data, out, `begin`, `end`."""
    from .emit import module
    from .int8_emit import tasks
    from .strided_tir import parameter

    kernel = _Reduce(spec, parameter("data", spec.data), parameter("out", spec.output))
    return module([kernel.data, kernel.out], lambda begin, end: [tasks(begin, end, kernel.task)])


class _Reduce:
    """The kernel being written."""

    def __init__(self, spec: ReduceF32Spec, data: object, out: object) -> None:
        self.spec, self.data, self.out = spec, data, out

    def task(self, task: Expr) -> list[Stmt]:
        from .strided_tir import nest

        kept = self.spec.kept
        outer = [task] if len(kept) > 1 else []
        if self.along:
            return nest(kept[len(outer) :], lambda inner: self.one([*outer, *inner]))
        return nest(kept[len(outer) : -1], lambda inner: self.many([*outer, *inner]))

    @property
    def along(self) -> bool:
        """Whether results are made one by one."""
        return self.spec.data.last == 1 or not self.spec.kept

    def one(self, at: Sequence[Expr]) -> list[Stmt]:
        """Return one result: rows joined vector by vector, then with each other."""
        from . import emit
        from .math_f32 import lit
        from .reduce_tir import total
        from .strided_tir import load, nest, place, store

        spec, held = self.spec, emit.register("held", "float32", 2)
        start, join = self.start(), self.join()

        def row(outer: list[Expr]) -> list[Stmt]:
            def value(c: Expr, lanes: int) -> Expr:
                place_of = place(spec.data, [*at, *outer, c])
                return self.change(load(self.data, spec.data, place_of, lanes), lanes)

            return total(
                spec.reduced[-1], value, join, start,
                lambda made: emit.store(held, join(emit.load(held, 0), made), 0),
            )  # fmt: skip

        result = store(self.out, spec.output, self.finish(emit.load(held, 0), 1), place(spec.output, at), 1)
        return [
            *emit.allocate([held]),
            emit.store(held, lit(start, 1), 0),
            *nest(spec.reduced[:-1], row),
            result,
        ]

    def many(self, at: Sequence[Expr]) -> list[Stmt]:
        """Return results side by side along the innermost kept axis."""
        from .strided_tir import row

        return row(self.spec.kept[-1], lambda c, lanes: self.side_by_side(at, c, lanes))

    def side_by_side(self, at: Sequence[Expr], c: Expr, lanes: int) -> tuple[list[Stmt], Stmt]:
        from dataclasses import replace

        from . import emit
        from .math_f32 import lit
        from .strided_tir import load, nest, place, store

        spec, held = self.spec, emit.register("held", "float32", lanes)
        across = replace(spec.data, strides=(spec.data.strides[len(spec.kept) - 1],))

        def add(inner: list[Expr]) -> list[Stmt]:
            given = self.change(load(self.data, across, place(spec.data, [*at, c, *inner]), lanes), lanes)
            joined = self.join()(emit.load(held, 0, lanes=lanes), given)
            return [emit.store(held, joined, 0, lanes=lanes)]

        before = [
            *emit.allocate([held]),
            emit.store(held, lit(self.start(), lanes), 0, lanes=lanes),
            *nest(spec.reduced, add),
        ]
        value = self.finish(emit.load(held, 0, lanes=lanes), lanes)
        return before, store(self.out, spec.output, value, place(spec.output, [*at, c]), lanes)

    # --- what is computed ---------------------------------------------------------------------------

    def start(self) -> float:
        return {"max": float("-inf"), "min": float("inf"), "prod": 1.0}.get(self.spec.kind, 0.0)

    def join(self) -> Callable[[Expr, Expr], Expr]:
        from tvm import tirx

        known: dict[str, Callable[[Expr, Expr], Expr]] = {
            "max": tirx.max, "min": tirx.min, "prod": lambda a, b: a * b
        }  # fmt: skip
        return known.get(self.spec.kind, lambda a, b: a + b)

    def change(self, value: Expr, lanes: int) -> Expr:
        from tvm import tirx

        from .math_f32 import lit

        if self.spec.kind in ("l2", "sum-square"):
            return value * value
        return tirx.max(value, lit(0.0, lanes) - value) if self.spec.kind == "l1" else value

    def finish(self, value: Expr, lanes: int) -> Expr:
        from tvm import tirx

        from .math_f32 import lit

        if self.spec.kind == "mean":
            return value * lit(1 / self.spec.count, lanes)
        return tirx.sqrt(value) if self.spec.kind == "l2" else value
