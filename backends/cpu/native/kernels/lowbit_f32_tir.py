"""Writes the kernels of `lowbit_f32`. Needs TVM."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt

from ..isa import Isa
from . import emit
from .lowbit_f32 import LowbitF32Spec, uses_table
from .math_f32 import lit
from .tile_f32 import Output, optional, present
from .window import LANES, padded

MAX_ROWS = 8
UNROLLED = 4
WIDE = f"float32x{LANES}"


class LowbitWriter:
    """One kernel being written."""

    def __init__(self, spec: LowbitF32Spec, isa: Isa) -> None:
        self.spec = spec
        columns = padded(spec.outputs)
        shape = (spec.rows, columns)
        self.x = emit.parameter("x", "float32", (spec.rows, padded(spec.depth)))
        self.stream = emit.parameter("stream", "uint32", (spec.tasks(), spec.blocks, spec.words))
        self.table = optional(uses_table(spec, isa), "table", (LANES,))
        bias = optional(spec.after.bias, "bias", (columns,))
        residual = optional(spec.after.residual, "residual", shape)
        self.out = Output(emit.parameter("y", "float32", shape), spec.after, bias, residual)

    def module(self) -> tvm.IRModule:
        """Return the loop over groups of 16 outputs."""
        given = present(self.x, self.out.residual, self.stream, self.table, self.out.bias, self.out.to)
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self._task)])

    def _task(self, task: Expr) -> list[Stmt]:
        whole, rest = divmod(self.spec.rows, MAX_ROWS)
        statements: list[Stmt] = []
        if whole:
            group = lambda i: self._rows(task, i * MAX_ROWS, MAX_ROWS)  # noqa: E731
            statements.append(emit.loop("group", 0, whole, group))
        return statements + (self._rows(task, emit.const(whole * MAX_ROWS), rest) if rest else [])

    def _rows(self, task: Expr, first: Expr, rows: int) -> list[Stmt]:
        """Return the product of some rows with 16 columns."""
        spec = self.spec
        totals = [emit.register(f"total{i}", "float32", LANES) for i in range(rows)]
        chains = [
            [emit.register(f"s{i}_{c}", "float32", LANES) for c in range(max(1, 4 // rows))]
            for i in range(rows)
        ]
        start = [_put(total, self.out.start(task * LANES)) for total in totals]
        whole, rest = divmod(spec.depth, spec.block)
        body = emit.loop("g", 0, whole, lambda g: self._block(task, g, first, totals, chains, spec.block))
        last = self._block(task, emit.const(whole), first, totals, chains, rest) if rest else []
        ends = [self.out.put(_get(total), first + i, task * LANES) for i, total in enumerate(totals)]
        allocated = emit.allocate([*totals, *(cell for row in chains for cell in row)])
        return [*allocated, *start, body, *last, *ends]

    def _block(
        self, task: Expr, g: Expr, first: Expr, totals: list[Buffer], chains: list[list[Buffer]], depth: int
    ) -> list[Stmt]:
        """Return the first `depth` weights of a block."""
        spec = self.spec
        vectors, rest = divmod(depth, spec.per_word)
        origin = g * spec.block
        statements = [_put(cell, lit(0.0, LANES)) for row in chains for cell in row]

        def vector(v: Expr, codes: int) -> list[Stmt]:
            word = emit.load(self.stream, task, g, v * LANES, lanes=LANES)
            k = origin + v * spec.per_word
            return [x for j in range(codes) for x in self._code(task, g, word, j, k + j, first, chains)]

        if vectors <= UNROLLED:
            statements += [x for v in range(vectors) for x in vector(emit.const(v), spec.per_word)]
        else:
            statements.append(emit.loop("v", 0, vectors, lambda v: vector(v, spec.per_word)))
        if rest:
            statements += vector(emit.const(vectors), rest)
        scale = emit.reinterpret(WIDE, emit.load(self.stream, task, g, spec.vectors * LANES, lanes=LANES))
        for total, row in zip(totals, chains, strict=True):
            sums = _get(row[0])
            for cell in row[1:]:
                sums = sums + _get(cell)
            statements.append(_put(total, emit.llvm("llvm.fma", WIDE, sums, scale, _get(total))))
        return statements

    def _code(
        self, task: Expr, g: Expr, word: Expr, j: int, k: Expr, first: Expr, chains: list[list[Buffer]]
    ) -> list[Stmt]:
        """Return the products of one code per lane with a value of each row."""
        weight = self._weight(task, g, word, j)
        statements = []
        for i, row in enumerate(chains):
            cell = row[j % len(row)]
            value = emit.splat(emit.load(self.x, first + i, k), LANES)
            statements.append(_put(cell, emit.llvm("llvm.fma", WIDE, value, weight, _get(cell))))
        return statements

    def _weight(self, task: Expr, g: Expr, word: Expr, j: int) -> Expr:
        """Return code j of each lane as a float, its zero taken off."""
        spec = self.spec
        moved = word >> emit.splat(emit.const(j * spec.bits, "uint32"), LANES) if j else word
        if self.table is not None:
            table = emit.load(self.table, 0, lanes=LANES)
            indices = emit.reinterpret(f"int32x{LANES}", moved)
            value = emit.llvm("llvm.x86.avx512.permvar.sf.512", WIDE, table, indices)
        else:
            mask = emit.splat(emit.const((1 << spec.bits) - 1, "uint32"), LANES)
            value = tirx.Cast(WIDE, emit.reinterpret(f"int32x{LANES}", moved & mask))
            if spec.bipolar:
                return value * lit(2.0, LANES) - lit(1.0, LANES)
            if spec.zero:
                return value - lit(float(spec.zero), LANES)
        if spec.zero is not None or spec.bipolar:
            return value
        place = (spec.vectors + 1) * LANES
        return value - emit.reinterpret(WIDE, emit.load(self.stream, task, g, place, lanes=LANES))


def _get(cell: Buffer) -> Expr:
    return emit.load(cell, 0, lanes=LANES)


def _put(cell: Buffer, value: Expr) -> Stmt:
    return emit.store(cell, value, 0, lanes=LANES)
