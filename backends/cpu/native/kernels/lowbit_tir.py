"""The statements of the low-bit product; what they compute: lowbit_gemv.py and quantize_blocks.py."""

from __future__ import annotations

import functools
import operator

import tvm
from tvm.ir import Expr
from tvm.tirx import FloatImm, Select, Stmt

from ..isa import Isa
from . import emit
from .dot_int8 import dot_lanes
from .lowbit_gemv import LANES, MAX_ROWS, LowbitGemvSpec
from .quantize_blocks import SMALLEST, QuantizeBlocksSpec

WIDE = "float32x16"


def quantizer(spec: QuantizeBlocksSpec) -> tvm.IRModule:
    """Write the quantization of rows."""
    x = emit.parameter("x", "float32", (spec.rows, spec.depth))
    q = emit.parameter("q", "int8", (spec.rows, spec.depth))
    scale = emit.parameter("scale", "float32", (spec.rows, spec.blocks))
    correction = emit.parameter("correction", "int32", (spec.rows, spec.blocks))
    total, factor = emit.register("total", "int32", LANES), emit.register("factor", "float32", 1)
    parts = range(0, spec.block, LANES)

    def block(row: Expr, g: Expr) -> list[Stmt]:
        def part(i: int) -> Expr:
            return emit.load(x, row, g * spec.block + i, lanes=LANES)

        size = emit.llvm("llvm.fabs", WIDE, part(0))
        for i in parts[1:]:
            size = emit.llvm("llvm.maxnum", WIDE, size, emit.llvm("llvm.fabs", WIDE, part(i)))
        largest = emit.llvm("llvm.vector.reduce.fmax", "float32", size)
        limit, nothing = FloatImm("float32", 127.0), FloatImm("float32", 0.0)
        least = FloatImm("float32", SMALLEST)
        statements = [
            emit.store(scale, largest / limit, row, g),
            emit.store(factor, Select(largest >= least, limit / largest, nothing), 0),
            emit.store(total, emit.splat(emit.const(0), LANES), 0, lanes=LANES),
        ]
        for i in parts:
            steps = part(i) * emit.splat(emit.load(factor, 0), LANES)
            whole = emit.llvm("llvm.rint", WIDE, steps).astype("int32x16")
            statements.append(emit.store(q, whole.astype("int8x16"), row, g * spec.block + i, lanes=LANES))
            statements.append(emit.store(total, emit.load(total, 0, lanes=LANES) + whole, 0, lanes=LANES))
        summed = emit.llvm("llvm.vector.reduce.add", "int32", emit.load(total, 0, lanes=LANES))
        return [*statements, emit.store(correction, summed * -spec.zero, row, g)]

    def rows(row: Expr) -> list[Stmt]:
        allocated = emit.allocate([total, factor])
        return [*allocated, emit.loop("g", 0, spec.blocks, lambda g: block(row, g))]

    return emit.module(
        [x, q, scale, correction], lambda begin, end: [emit.loop("row", begin, end - begin, rows)]
    )


class GemvWriter:
    """Writes the product: rows in groups of up to 8, each of which reads a task's stream once."""

    def __init__(self, spec: LowbitGemvSpec, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        # A quad of int8 activations is read as one word.
        self.q = emit.parameter("q", "int32", (spec.rows, spec.depth // 4))
        self.x_scale = emit.parameter("x_scale", "float32", (spec.rows, spec.blocks))
        self.correction = emit.parameter("correction", "int32", (spec.rows, spec.blocks))
        self.stream = emit.parameter("stream", "uint32", (spec.tasks(), spec.blocks, spec.words))
        self.bias = [emit.parameter("bias", "float32", (spec.stored_outputs,))] if spec.bias else []
        self.y = emit.parameter("y", "float32", (spec.rows, spec.stored_outputs))
        self.sums = [emit.register(f"sum{i}", "float32", LANES) for i in range(min(spec.rows, MAX_ROWS))]

    def module(self) -> tvm.IRModule:
        """Write the loop over blocks of 16 outputs."""
        parameters = [self.q, self.x_scale, self.correction, self.stream, *self.bias, self.y]
        return emit.module(parameters, lambda begin, end: [emit.loop("task", begin, end - begin, self._task)])

    def _task(self, task: Expr) -> list[Stmt]:
        statements = emit.allocate(self.sums)
        whole, rest = divmod(self.spec.rows, MAX_ROWS)
        if whole:
            group = lambda i: self._rows(task, i * MAX_ROWS, MAX_ROWS)  # noqa: E731
            statements.append(emit.loop("group", 0, whole, group))
        if rest:
            statements += self._rows(task, emit.const(whole * MAX_ROWS), rest)
        return statements

    def _rows(self, task: Expr, first: Expr, rows: int) -> list[Stmt]:
        zero = emit.splat(FloatImm("float32", 0.0), LANES)
        statements = [emit.store(self.sums[i], zero, 0, lanes=LANES) for i in range(rows)]
        statements.append(emit.loop("g", 0, self.spec.blocks, lambda g: self._block(task, g, first, rows)))
        for i in range(rows):
            total = emit.load(self.sums[i], 0, lanes=LANES)
            for bias in self.bias:
                total = total + emit.load(bias, task * LANES, lanes=LANES)
            statements.append(emit.store(self.y, total, first + i, task * LANES, lanes=LANES))
        return statements

    def _block(self, task: Expr, g: Expr, first: Expr, rows: int) -> list[Stmt]:
        spec = self.spec
        statements: list[Stmt] = []
        scale = emit.reinterpret(WIDE, self._vector(task, g, spec.vectors))
        for i in range(rows):
            row = first + i
            chains = [emit.splat(emit.const(0), LANES) for _ in range(4 if spec.block > 32 else 2)]
            chains[0] = emit.splat(emit.load(self.correction, row, g), LANES)
            for v in range(spec.vectors):
                for j in range(8 // spec.bits):
                    quad = g * (spec.block // 4) + (v * (8 // spec.bits) + j)
                    data = emit.reinterpret("int8x64", emit.splat(emit.load(self.q, row, quad), LANES))
                    codes = emit.reinterpret("uint8x64", self._codes(task, g, v, j))
                    chain = (v * (8 // spec.bits) + j) % len(chains)
                    chains[chain] = dot_lanes(self.isa, chains[chain], codes, data)
            dot = functools.reduce(operator.add, chains).astype(WIDE)
            factor = scale * emit.splat(emit.load(self.x_scale, row, g), LANES)
            total = emit.llvm("llvm.fma", WIDE, dot, factor, emit.load(self.sums[i], 0, lanes=LANES))
            statements.append(emit.store(self.sums[i], total, 0, lanes=LANES))
        return statements

    def _vector(self, task: Expr, g: Expr, v: int) -> Expr:
        return emit.load(self.stream, task, g, v * LANES, lanes=LANES)

    def _codes(self, task: Expr, g: Expr, v: int, j: int) -> Expr:
        """Return quad j of a vector, one value per byte; one-bit values as 0 and 2."""
        bits, word = self.spec.bits, self._vector(task, g, v)
        shift = j * bits - (bits == 1)
        mask = 0x01010101 * (2 if bits == 1 else 2**bits - 1)
        if shift < 0:
            word = word << emit.splat(emit.const(-shift, "uint32"), LANES)
        elif shift > 0:
            word = word >> emit.splat(emit.const(shift, "uint32"), LANES)
        return word & emit.splat(emit.const(mask, "uint32"), LANES)
