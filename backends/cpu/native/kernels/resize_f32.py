"""Linear interpolation of images in float32, [N, H, W, Cp] to [N, OH, OW, Cp].

    out[n, y, x] = mix(mix(data[y0, x0], data[y0, x1], wx), mix(data[y1, x0], data[y1, x1], wx), wy)
    mix(a, b, w) = a * (1 - w) + b * w

Neighbours and weights come from tables, so that every way of counting coordinates is the same kernel.

Tile: one vector of 16 channels: 4 loads, 6 products, one store; bound by loads of the first-level cache,
about 2 cycles per vector. One task is one row of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Array, Verdict
from .window import LANES, groups_of, padded

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa

Tap = tuple[int, int, float]


@dataclass(frozen=True)
class ResizeF32Spec:
    """Static shape; parameters: data, neighbours of rows int32 [2 OH], weights [OH], of columns, out."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int

    def tasks(self) -> int:
        """Length of the parallel loop: rows of the output."""
        return self.batch * self.out_height

    def bytes(self) -> int:
        """Bytes of data and output."""
        pixels = self.height * self.width + self.out_height * self.out_width
        return 4 * self.batch * pixels * padded(self.channels)


def supports(spec: ResizeF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min(spec.batch, spec.height, spec.width, spec.channels, spec.out_height, spec.out_width) < 1:
        return Verdict.no("an empty image")
    return Verdict.yes()


def pack(spec: ResizeF32Spec, rows: Sequence[Tap], columns: Sequence[Tap]) -> list[Array]:
    """Return the tables: neighbours and weights of rows, then of columns."""
    assert (len(rows), len(columns)) == (spec.out_height, spec.out_width), "one tap per row and column"
    made: list[Array] = []
    for taps in (rows, columns):
        made.append(np.array([[first, second] for first, second, _ in taps], np.int32).reshape(-1))
        made.append(np.array([weight for *_, weight in taps], np.float32))
    return made


def build(spec: ResizeF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: data, tables, out, `begin`, `end`."""
    from tvm import tirx

    from . import emit
    from .int8_emit import i64, loop, tasks
    from .math_f32 import lit

    pitch, sizes = padded(spec.channels), (spec.out_height, spec.out_width)
    data = emit.parameter("data", "float32", (spec.batch, spec.height, spec.width, pitch))
    out = emit.parameter("out", "float32", (spec.batch, *sizes, pitch))
    places = [emit.parameter(f"places{i}", "int32", (2 * n,)) for i, n in enumerate(sizes)]
    weights = [emit.parameter(f"weights{i}", "float32", (n,)) for i, n in enumerate(sizes)]

    def tap(axis: int, index: Expr) -> tuple[Expr, Expr, Expr]:
        first, second = (tirx.Cast("int64", emit.load(places[axis], index * i64(2) + i64(i))) for i in (0, 1))
        return first, second, emit.splat(emit.load(weights[axis], index), LANES)

    def mix(a: Expr, b: Expr, weight: Expr) -> Expr:
        return a * (lit(1.0, LANES) - weight) + b * weight

    def row(task: Expr) -> list[Stmt]:
        n, y = tirx.truncdiv(task, i64(sizes[0])), tirx.truncmod(task, i64(sizes[0]))
        top, bottom, down = tap(0, y)

        def pixel(x: Expr) -> list[Stmt]:
            left, right, across = tap(1, x)

            def vector(c: Expr) -> list[Stmt]:
                corner = [
                    [
                        emit.load(data, n, line, column, c * i64(LANES), lanes=LANES)
                        for column in (left, right)
                    ]
                    for line in (top, bottom)
                ]
                above, below = (mix(one, other, across) for one, other in corner)
                value = mix(above, below, down)
                return [emit.store(out, value, n, y, x, c * i64(LANES), lanes=LANES)]

            return [loop("c", groups_of(spec.channels), vector)]

        return [loop("x", sizes[1], pixel)]

    given = [data, places[0], weights[0], places[1], weights[1], out]
    return emit.module(given, lambda begin, end: [tasks(begin, end, row)])
