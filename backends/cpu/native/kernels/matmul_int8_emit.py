"""Writes the TIR of quantized products of rank-N tensors; `matmul_int8.py` says how. Needs TVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt

from . import emit
from .dot_int8 import dot_lanes
from .int8_emit import bind, dot, i32, i64, loop, put, rounded, tasks, vector
from .math_f32 import finish, lit
from .matmul_int8 import QUAD, MatmulInt8Spec
from .strided import LANES
from .strided_tir import ints, load, parameter, place, quantized, store, wide
from .tile_f32 import present
from .window import groups_of, tile_size

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

# Sums in registers: 28 of 32 zmm, 6 of 16 ymm pairs.
SUMS, FEW_SUMS = 28, 6


def build_matmul(spec: MatmulInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    return _Matmul(spec, isa).module()


class _Matmul:
    """The kernel being written."""

    def __init__(self, spec: MatmulInt8Spec, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        lanes, panel = spec.panels * spec.vectors * LANES, spec.panel_bytes(spec.vectors)
        self.left, self.out = parameter("left", spec.left), parameter("out", spec.output)
        self.right = None if spec.right is None else parameter("right", spec.right)
        self.residual = None if spec.residual is None else parameter("residual", spec.residual)
        size = panel if self.right is not None else panel * spec.panels
        self.panel = emit.parameter("weights", "int8", (size,))
        self.bias = emit.parameter("bias", "int32", (lanes,))
        self.factor = emit.parameter("factor", "float32", (lanes,))
        self.addend = emit.parameter("addend", "float32", (lanes,)) if spec.addend else None
        self.rows = emit.parameter("row_sums", "int32", (spec.rows,))
        self.columns = emit.parameter("column_sums", "int32", (spec.vectors * LANES,))
        self.outer: list[Expr] = []
        self.block: Expr = i64(0)

    def module(self) -> tvm.IRModule:
        weights = [self.panel] if self.right is None else []
        given = [
            self.left, *present(self.right, self.residual), *weights, self.bias, self.factor,
            *present(self.addend), self.out,
        ]  # fmt: skip
        return emit.module(given, lambda begin, end: [tasks(begin, end, self.task)])

    def task(self, task: Expr) -> list[Stmt]:
        """Return one chunk of rows times one panel."""
        spec = self.spec
        chunk, rest = tirx.truncmod(task, i64(spec.chunks)), tirx.truncdiv(task, i64(spec.chunks))
        self.block, rest = tirx.truncmod(rest, i64(spec.panels)), tirx.truncdiv(rest, i64(spec.panels))
        self.outer = []
        for size in reversed(spec.batch):
            self.outer.insert(0, tirx.truncmod(rest, i64(size)))
            rest = tirx.truncdiv(rest, i64(size))
        own = [] if self.right is None else emit.allocate([self.panel, self.rows, self.columns])
        whole, part = divmod(spec.columns, spec.vectors * LANES)
        full, last = (self.columns_of(chunk, n) if n else [] for n in (spec.vectors * LANES, part))
        if not part:
            return [*own, *full]
        if not whole:
            return [*own, *last]
        return [*own, tirx.IfThenElse(self.block < i64(whole), emit.sequence(full), emit.sequence(last))]

    def columns_of(self, chunk: Expr, columns: int) -> list[Stmt]:
        """Return one chunk of rows times a panel of `columns` columns."""
        spec = self.spec
        packed = [] if self.right is None else [*self.pack(columns), *self.sum_rows()]
        rest = spec.rows % spec.chunk
        full = self.tiles(chunk * i64(spec.chunk), spec.chunk, columns)
        if not rest:
            return [*packed, *full]
        last = self.tiles(chunk * i64(spec.chunk), rest, columns)
        choice = tirx.IfThenElse(chunk < i64(spec.chunks - 1), emit.sequence(full), emit.sequence(last))
        return [*packed, choice]

    def tiles(self, first: Expr, count: int, columns: int) -> list[Stmt]:
        """Return the tiles of `count` rows."""
        most = SUMS if self.isa.vector_bytes >= 64 else FEW_SUMS
        size = tile_size(count, max(1, most // groups_of(columns)))
        whole, rest = divmod(count, size)
        every = [loop("m", whole, lambda m: self.tile(first + m * i64(size), size, columns))]
        return [*every, *(self.tile(first + i64(whole * size), rest, columns) if rest else [])]

    # --- activations on the right -------------------------------------------------------------------

    def pack(self, columns: int) -> list[Stmt]:
        """Return the packing of a panel, shifted by 128, and the sums of its columns."""
        spec = self.spec
        pitch = spec.vectors * LANES * QUAD
        first = self.block * i64(spec.vectors * LANES)
        whole, rest = divmod(spec.depth, QUAD)
        vectors = range(groups_of(columns))
        zeros = [put(self.columns, i32(0), i64(j * LANES)) for j in vectors]

        def step(k: Expr, count: int) -> list[Stmt]:
            made: list[Stmt] = []
            for j in vectors:
                lanes = min(LANES, columns - j * LANES)
                at = k * i64(pitch) + i64(j * LANES * QUAD)
                if lanes == LANES:
                    made += self.quads(k, first + i64(j * LANES), at, count, j)
                else:
                    made += self.single(k, first + i64(j * LANES), at, count, lanes, j)
            return made

        every = [loop("k", whole, lambda k: step(k, QUAD))] if whole else []
        return [*zeros, *every, *(step(i64(whole), rest) if rest else [])]

    def quads(self, k: Expr, column: Expr, at: Expr, count: int, j: int) -> list[Stmt]:
        """Return the packing of `count` of 4 values of K for 16 columns."""
        spec, right = self.spec, self.right
        assert right is not None, "only activations are packed"
        assert spec.right is not None, "only activations are packed"
        total: Expr | None = None
        for q in range(count):
            start = place(spec.right, [*self.outer, k * i64(QUAD) + i64(q), column])
            index = tirx.Ramp(start, i64(spec.right.last), LANES)
            shifted = tirx.Cast(wide("int32", LANES), tirx.BufferLoad(right, [index])) - ints(128, LANES)
            part = tirx.bitwise_and(shifted, ints(255, LANES))
            part = tirx.shift_left(part, ints(8 * q, LANES)) if q else part
            total = part if total is None else tirx.bitwise_or(total, part)
        assert total is not None, "count is at least 1"
        name, bound = bind("quads", total)
        data = tirx.reinterpret("int8x64", name)
        held = vector(self.columns, i64(j * LANES))
        sums = put(self.columns, dot(self.isa, held, tirx.IntImm("int32", 0x01010101), data), i64(j * LANES))
        return [bound, put(self.panel, data, at, LANES * QUAD), sums]

    def single(self, k: Expr, column: Expr, at: Expr, count: int, lanes: int, j: int) -> list[Stmt]:
        """Return the packing of a few columns, byte by byte; the other lanes are zero."""
        spec, right = self.spec, self.right
        assert right is not None, "only activations are packed"
        assert spec.right is not None, "only activations are packed"
        made = [put(self.panel, tirx.Broadcast(tirx.IntImm("int8", 0), LANES * QUAD), at, LANES * QUAD)]
        for lane in range(lanes):
            for q in range(count):
                start = place(spec.right, [*self.outer, k * i64(QUAD) + i64(q), column + i64(lane)])
                value = tirx.Cast("int32", tirx.BufferLoad(right, [start])) - ints(128, 1)
                made.append(emit.store(self.panel, tirx.Cast("int8", value), at + i64(lane * QUAD + q)))
        data = vector(self.panel, at, LANES * QUAD)
        held = vector(self.columns, i64(j * LANES))
        sums = dot(self.isa, held, tirx.IntImm("int32", 0x01010101), data)
        return [*made, put(self.columns, sums, i64(j * LANES))]

    @property
    def offset(self) -> int:
        """What the shifted right side lacks: its zero point is 128 - offset."""
        return 128 - self.spec.right_zero

    def sum_rows(self) -> list[Stmt]:
        """Return the sums of the left side's rows, where the right side's zero point asks for them."""
        if not self.offset:
            return []
        spec, wide_bytes = self.spec, LANES * QUAD
        held, one = emit.register("held", "int32", LANES), emit.register("one", "int32", 2)
        whole, rest = divmod(spec.depth, wide_bytes)
        ones = tirx.Broadcast(tirx.IntImm("int8", 1), wide_bytes)

        def row(m: Expr) -> list[Stmt]:
            start = place(spec.left, [*self.outer, m, i64(0)])

            def add(k: Expr) -> list[Stmt]:
                data = vector(self.left, start + k * i64(wide_bytes), wide_bytes)
                return [put(held, dot_lanes(self.isa, vector(held, 0), data, ones), 0)]

            def last(k: Expr) -> list[Stmt]:
                at = start + (k + i64(whole * wide_bytes))
                value = tirx.Cast("int32", tirx.BufferLoad(self.left, [at]))
                return [emit.store(one, emit.load(one, 0) + value, 0)]

            parts = [emit.load(held, i) for i in range(LANES)]
            while len(parts) > 1:
                parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
            return [
                *emit.allocate([held, one]), put(held, i32(0), 0), emit.store(one, emit.const(0), 0),
                *([loop("k", whole, add)] if whole else []),
                *([loop("r", rest, last)] if rest else []),
                emit.store(self.rows, parts[0] + emit.load(one, 0), m),
            ]  # fmt: skip

        return [loop("m", spec.rows, row)]

    # --- products -----------------------------------------------------------------------------------

    def tile(self, row: Expr, size: int, columns: int) -> list[Stmt]:
        """Return one tile of rows times the panel."""
        spec, vectors = self.spec, groups_of(columns)
        sums = [[emit.register(f"sum{i}_{j}", "int32", LANES) for j in range(vectors)] for i in range(size)]
        pitch = spec.vectors * LANES * QUAD
        origin = i64(0) if self.right is not None else self.block * i64(spec.panel_bytes(spec.vectors))
        first = self.block * i64(spec.vectors * LANES)

        def step(k: Expr) -> list[Stmt]:
            body: list[Stmt] = []
            weights = []
            for j in range(vectors):
                at = origin + k * i64(pitch) + i64(j * LANES * QUAD)
                name, bound = bind("weight", vector(self.panel, at, LANES * QUAD))
                weights.append(name)
                body.append(bound)
            for i in range(size):
                at = place(spec.left, [*self.outer, row + i64(i), k * i64(QUAD)])
                data = tirx.reinterpret("int32", vector(self.left, at, QUAD))
                name, bound = bind("data", data)
                body.append(bound)
                body += [
                    put(sums[i][j], dot(self.isa, vector(sums[i][j], 0), name, weights[j]), 0)
                    for j in range(vectors)
                ]
            return body

        starts = [
            put(sums[i][j], self.start(row + i64(i), first, j), 0)
            for i in range(size)
            for j in range(vectors)
        ]
        ends = [
            stmt for i in range(size) for j in range(vectors)
            for stmt in self.finish(vector(sums[i][j], 0), row + i64(i), first, j, columns)
        ]  # fmt: skip
        every = emit.allocate([cell for line in sums for cell in line])
        return [*every, *starts, loop("k", spec.steps, step), *ends]

    def start(self, row: Expr, first: Expr, j: int) -> Expr:
        """Return what a sum begins with: bias and zero points."""
        spec = self.spec
        value = vector(self.bias, first + i64(j * LANES))
        if self.right is None:
            return value
        if spec.left_zero:
            value = value - vector(self.columns, i64(j * LANES)) * i32(spec.left_zero)
        if self.offset:
            rows = emit.load(self.rows, row) * ints(self.offset, 1)
            value = value + emit.splat(rows - ints(spec.left_zero * self.offset * spec.depth, 1), LANES)
        return value

    def finish(self, total: Expr, row: Expr, first: Expr, j: int, columns: int) -> list[Stmt]:
        """Return the epilogue and the store of one vector of sums."""
        spec = self.spec
        lanes = min(LANES, columns - j * LANES)
        column = first + i64(j * LANES)
        at = [*self.outer, row, column]
        held = emit.register("result", "float32", LANES)
        product = tirx.Cast(wide("float32", LANES), total) * vector(self.factor, column)
        scaled = put(held, product, 0)
        value = vector(held, 0)
        if spec.real:
            made = self.real(value, at, column, lanes)
            return [*emit.allocate([held]), scaled, *self.stores(made, at, lanes, whole=False)]
        whole, second = self.whole(value, column)
        return [*emit.allocate([held]), scaled, *second, *self.stores(whole, at, lanes, whole=True)]

    def real(self, value: Expr, at: Sequence[Expr], column: Expr, lanes: int) -> Expr:
        """Return a real result."""
        spec = self.spec
        if self.addend is not None:
            value = value + vector(self.addend, column)
        other = None
        if self.residual is not None and spec.residual is not None:
            other = self.residual_at(self.residual, at, lanes)
        return finish(value, spec.after, other, LANES)

    def residual_at(self, residual: Buffer, at: Sequence[Expr], lanes: int) -> Expr:
        """Return a vector of the residual; of a part of a vector each lane is read by itself."""
        operand = self.spec.residual
        assert operand is not None, "there is a residual"
        if lanes == LANES:
            return load(residual, operand, place(operand, at), LANES)
        reads = [
            load(residual, operand, place(operand, [*at[:-1], at[-1] + i64(min(i, lanes - 1))]), 1)
            for i in range(LANES)
        ]
        return tirx.Shuffle(reads, list(range(LANES)))

    def whole(self, value: Expr, column: Expr) -> tuple[Expr, list[Stmt]]:
        """Return a quantized result as int32, and what is computed for it before."""
        spec = self.spec
        steps = rounded(self.isa, value) + i32(spec.zero)
        bounded = tirx.Max(tirx.Min(steps, i32(spec.high)), i32(spec.low))
        if spec.then is None:
            return bounded, []
        own, quant = emit.register("own", "float32", LANES), spec.output.quant
        assert self.addend is not None, "what is added"
        assert quant is not None, "its result is quantized"
        reals = tirx.Cast(wide("float32", LANES), bounded - i32(spec.then.zero)) * lit(spec.then.scale, LANES)
        before = [*emit.allocate([own]), put(own, reals, 0)]
        total = vector(own, 0) + vector(self.addend, column)
        return tirx.Cast(wide("int32", LANES), quantized(total, quant, LANES)), before

    def stores(self, value: Expr, at: Sequence[Expr], lanes: int, *, whole: bool) -> list[Stmt]:
        """Return the stores of a vector, or of its first lanes."""
        spec = self.spec
        where = place(spec.output, at)
        if not whole and lanes == LANES:
            return [store(self.out, spec.output, value, where, LANES)]
        narrow = tirx.Cast(wide("uint8", LANES), value) if whole else value
        if lanes == LANES:
            return [tirx.BufferStore(self.out, narrow, [tirx.Ramp(where, i64(1), LANES)])]
        if not whole and spec.output.quant is not None:
            narrow = quantized(value, spec.output.quant, LANES)
        kind = "uint8" if whole or spec.output.quant is not None else "float32"
        few = emit.register("few", kind, LANES)
        single = [emit.store(self.out, emit.load(few, i), where + i64(i)) for i in range(lanes)]
        return [*emit.allocate([few]), put(few, narrow, 0), *single]
