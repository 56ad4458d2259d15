"""Products of two activations in float32, batched, both sides anywhere: the products of attention.

    out[b..., m, n] = clip(alpha * sum over k of left[b..., m, k] * right[b..., k, n] + added[b..., m, n])

Operands have strides (`strided.py`), so that the transposes in front of and behind attention's products cost
nothing: heads are an axis of stride D of a [sequence, heads * D] buffer. The addend may be broadcast.

Tile: a panel of the right side, all K by up to 2 vectors of columns, is copied to the stack, 16 columns side
by side, transposed where they are not contiguous; then 14 rows x 2 vectors of sums stay in registers as in
`gemm_f32`. The panel keeps rows of 2^n bytes out of each other's cache sets. Copying costs one element per
2 M / 16 cycles of products when transposed: 11 % at M = 128 in the worst case, less than 2 % otherwise. One
task is one panel.

Measured on one core of Zen 4 (peak 58 GMAC/s; predicted 85-90 %), four heads of 64 at 128 positions: scores
47 GMAC/s (81 %), mixing 50 (86 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Verdict
from .gemm_f32 import accumulators
from .strided import LANES, Operand, bytes_of
from .window import groups_of, tile_size

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa
    from .tile_f32 import Tile

PANEL_BYTES = 128 << 10
WIDE = 2


@dataclass(frozen=True)
class MatmulF32Spec:
    """Static shape; parameters: left, right, added?, out.

    Attributes:
        batch: sizes of the outer axes.
        rows, depth, columns: M, K, N.
        left: strides of the outer axes, M and K.
        right: strides of the outer axes, K and N.
        output: strides of the outer axes, M and N; the last is 1.
        alpha: factor of the product.
        added: strides as the output's, 0 where broadcast; None: nothing is added.
    """

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    left: Operand
    right: Operand
    output: Operand
    alpha: float = 1.0
    added: Operand | None = None

    @property
    def vectors(self) -> int:
        """Vectors of columns of a panel."""
        wide = min(WIDE, groups_of(self.columns))
        return wide if wide * LANES * 4 * self.depth <= PANEL_BYTES else 1

    @property
    def panels(self) -> int:
        """Panels of one product."""
        return -(-groups_of(self.columns) // self.vectors)

    def tasks(self) -> int:
        """Length of the parallel loop: panels of all products."""
        return int(np.prod(self.batch, dtype=np.int64)) * self.panels

    def macs(self) -> int:
        """Multiply-accumulates."""
        return int(np.prod(self.batch, dtype=np.int64)) * self.rows * self.depth * self.columns

    def bytes(self) -> int:
        """Bytes of both sides and of the output."""
        sides = ((self.rows, self.depth, self.left), (self.depth, self.columns, self.right),
                 (self.rows, self.columns, self.output))  # fmt: skip
        return sum(bytes_of((*self.batch, *sizes), operand) for *sizes, operand in sides)


def supports(spec: MatmulF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min((*spec.batch, spec.rows, spec.depth, spec.columns)) < 1:
        return Verdict.no(f"an empty product: {spec.batch} {spec.rows} x {spec.depth} x {spec.columns}")
    if spec.depth * LANES * 4 > PANEL_BYTES:
        return Verdict.no(f"depth {spec.depth}; panels of at most {PANEL_BYTES // 4 // LANES} fit the stack")
    if spec.columns > 1 and spec.output.last != 1:
        return Verdict.no("columns of the output that are not contiguous")
    return Verdict.yes()


def pack(spec: MatmulF32Spec) -> list[np.ndarray]:
    """Return no constants."""
    return []


def build(spec: MatmulF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: left, right, added?, out, `begin`, `end`."""
    return _Matmul(spec, isa).module()


class _Matmul:
    """The kernel being written."""

    def __init__(self, spec: MatmulF32Spec, isa: Isa) -> None:
        from . import emit
        from .strided_tir import parameter

        self.spec, self.isa = spec, isa
        self.left, self.right = parameter("left", spec.left), parameter("right", spec.right)
        self.added = None if spec.added is None else parameter("added", spec.added)
        self.out = parameter("out", spec.output)
        self.panel = emit.parameter("panel", "float32", (spec.depth * spec.vectors * LANES,))
        self.outer: list[Expr] = []

    def module(self) -> tvm.IRModule:
        from .emit import module
        from .int8_emit import tasks
        from .tile_f32 import present

        given = [self.left, self.right, *present(self.added), self.out]
        return module(given, lambda begin, end: [tasks(begin, end, self.task)])

    def task(self, task: Expr) -> list[Stmt]:
        """Return one panel of one product."""
        from tvm import tirx

        from . import emit
        from .int8_emit import i64

        spec = self.spec
        block, number = tirx.truncmod(task, i64(spec.panels)), tirx.truncdiv(task, i64(spec.panels))
        self.outer = []
        for size in reversed(spec.batch):
            self.outer.insert(0, tirx.truncmod(number, i64(size)))
            number = tirx.truncdiv(number, i64(size))
        whole, rest = divmod(spec.columns, spec.vectors * LANES)
        full = self.block(block, spec.vectors * LANES)
        if rest and not whole:
            body = self.block(block, rest)
        elif rest:
            last = self.block(block, rest)
            body = [tirx.IfThenElse(block < i64(whole), emit.sequence(full), emit.sequence(last))]
        else:
            body = full
        return [*emit.allocate([self.panel]), *body]

    def block(self, block: Expr, columns: int) -> list[Stmt]:
        """Return the panel of `columns` columns, and all rows times it."""
        from .int8_emit import i64, loop

        spec = self.spec
        first = block * i64(spec.vectors * LANES)
        size = tile_size(spec.rows, max(1, accumulators(self.isa) // groups_of(columns)))
        whole, rest = divmod(spec.rows, size)
        tiles = [loop("m", whole, lambda m: self.tile(m * i64(size), size, first, columns))] if whole else []
        last = self.tile(i64(whole * size), rest, first, columns) if rest else []
        return [*self.copy(first, columns), *tiles, *last]

    def copy(self, first: Expr, columns: int) -> list[Stmt]:
        """Return the copy of the right side's columns to the panel; lanes beyond them are zero."""
        from . import emit
        from .int8_emit import i64, loop
        from .math_f32 import lit
        from .strided_tir import load, place

        spec = self.spec
        pitch = groups_of(columns) * LANES

        def vector(k: Expr, j: int, lanes: int) -> Stmt:
            at = place(spec.right, [*self.outer, k, first + i64(j)])
            return emit.store(
                self.panel, load(self.right, spec.right, at, lanes), k * i64(pitch) + i64(j), lanes=lanes
            )

        def line(k: Expr) -> list[Stmt]:
            whole, rest = divmod(columns, LANES)
            made = [vector(k, j * LANES, LANES) for j in range(whole)]
            if not rest:
                return made
            zero = emit.store(self.panel, lit(0.0, LANES), k * i64(pitch) + i64(whole * LANES), lanes=LANES)
            return [*made, zero, *(vector(k, whole * LANES + j, 1) for j in range(rest))]

        return [loop("k", spec.depth, line)]

    def tile(self, row: Expr, size: int, first: Expr, columns: int) -> list[Stmt]:
        """Return one tile of rows times the panel."""
        from . import emit
        from .int8_emit import i64, loop
        from .math_f32 import lit
        from .strided_tir import load, place
        from .tile_f32 import Tile

        spec, vectors = self.spec, groups_of(columns)
        tile = Tile.of(size, vectors)

        def products(k: Expr) -> list[Stmt]:
            def left(i: int) -> Expr:
                return load(self.left, spec.left, place(spec.left, [*self.outer, row + i64(i), k]), 1)

            def right(j: int) -> Expr:
                return emit.load(self.panel, (k * i64(vectors) + i64(j)) * i64(LANES), lanes=LANES)

            return tile.products(range(size), left, right)

        stores = [stmt for i in range(size) for stmt in self.store(tile, row, i, first, columns)]
        return [
            *emit.allocate(tile.buffers),
            *tile.fill(size, lambda _: lit(0.0, LANES)),
            loop("k", spec.depth, products),
            *stores,
        ]

    def store(self, tile: Tile, row: Expr, i: int, first: Expr, columns: int) -> list[Stmt]:
        """Return the stores of one row of a tile; a part of a vector goes element by element."""
        from . import emit
        from .int8_emit import i64

        made: list[Stmt] = []
        for j in range(groups_of(columns)):
            count = min(LANES, columns - j * LANES)
            at = [*self.outer, row + i64(i), first + i64(j * LANES)]
            if count == LANES:
                made.append(self.put(tile.value(i, j), at, LANES))
                continue
            for lane in range(count):
                value = emit.load(tile.cells[i][j], lane)
                made.append(self.put(value, [*at[:-1], first + i64(j * LANES + lane)], 1))
        return made

    def put(self, value: Expr, at: Sequence[Expr], lanes: int) -> Stmt:
        """Return the store of finished sums."""
        from .math_f32 import lit
        from .strided_tir import load, place, store

        spec = self.spec
        if spec.alpha != 1.0:
            value = value * lit(spec.alpha, lanes)
        if spec.added is not None:
            value = value + load(self.added, spec.added, place(spec.added, at), lanes)
        return store(self.out, spec.output, value, place(spec.output, at), lanes)


def transposed(right: Operand) -> Operand:
    """Return the right side with its last two axes swapped."""
    order = [*range(len(right.strides) - 2), len(right.strides) - 1, len(right.strides) - 2]
    return replace(right, strides=tuple(right.strides[axis] for axis in order))
