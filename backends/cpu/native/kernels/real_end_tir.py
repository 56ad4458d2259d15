"""The statements of a real result: operations, the store, and the comparison into bits. See real_end.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, IfThenElse, Stmt

from . import emit
from .conv_binary import LANES, ConvBinarySpec
from .math_f32 import lit
from .planes_tir import planes_of
from .real_end import RealEnd, RealOp

HALF = 16


@dataclass(frozen=True)
class Half:
    """A pixel of the output and one of its blocks of 32 channels."""

    n: Expr
    y: Expr
    x: Expr
    block: Expr


class RealWriter:
    """Writes the end of one pixel in two halves of 16 channels; the last block may hold one half only."""

    def __init__(self, spec: ConvBinarySpec, end: RealEnd) -> None:
        self.spec, self.end = spec, end
        lanes = spec.blocks * LANES
        self.inputs = [emit.parameter(f"r{i}", "float32", spec.out_shape) for i in range(end.residuals)]
        self.constants = [emit.parameter(f"c{i}", d, (lanes,)) for i, d in enumerate(end.constants)]
        self.outputs: list[Buffer] = []
        if end.kept:
            self.outputs.append(emit.parameter("out", "float32", spec.out_shape))
        if end.bits is not None:
            shape = (end.bits.thresholds, spec.out_channels)
            self.limits = emit.parameter("limits", "float32", shape)
            self.sign = emit.parameter("sign", "float32", (spec.out_channels,))
            self.constants += [self.limits, self.sign] if end.signed else [self.limits]
            self.outputs.append(emit.parameter("bits", "uint32", spec.bits_shape(end.bits)))
        self.values = [emit.register(f"value{half}", "float32", HALF) for half in range(2)]

    @property
    def registers(self) -> list[Buffer]:
        """Buffers that the task allocates."""
        return self.values

    def finish(self, at: Half, sums: Sequence[Expr]) -> list[Stmt]:
        """Return the statements for a pixel whose sums are two vectors of 16 int32."""
        statements: list[Stmt] = []
        for half, total in enumerate(sums):
            channel = at.block * LANES + half * HALF
            body = self._half(at, half, channel, total)
            if half == 0 or self.spec.stored_channels % LANES == 0:
                statements += body
            else:
                statements.append(IfThenElse(channel < self.spec.stored_channels, emit.sequence(body), None))
        return statements if self.end.bits is None else statements + self._bits(at)

    def _half(self, at: Half, half: int, channel: Expr, total: Expr) -> list[Stmt]:
        value = self.values[half]
        residuals, constants = iter(self.inputs), iter(self.constants)
        statements = [emit.store(value, total.astype("float32x16"), 0, lanes=HALF)]
        for op in self.end.ops:
            result = self._apply(op, emit.load(value, 0, lanes=HALF), at, channel, residuals, constants)
            statements.append(emit.store(value, result, 0, lanes=HALF))
        if self.end.kept:
            result = emit.load(value, 0, lanes=HALF)
            statements.append(emit.store(self.outputs[0], result, at.n, at.y, at.x, channel, lanes=HALF))
        return statements

    def _apply(
        self, op: RealOp, x: Expr, at: Half, channel: Expr, residuals: Iterator[Buffer],
        constants: Iterator[Buffer],
    ) -> Expr:  # fmt: skip
        if op.name == "residual":
            return x + emit.load(next(residuals), at.n, at.y, at.x, channel, lanes=HALF)
        if op.name == "clip":
            return tirx.min(tirx.max(x, lit(op.low, HALF)), lit(op.high, HALF))
        first = emit.load(next(constants), channel, lanes=HALF)
        if op.name == "affine64":
            shift = emit.load(next(constants), channel, lanes=HALF)
            return emit.llvm("llvm.fma", "float64x16", x.astype("float64x16"), first, shift).astype(
                "float32x16"
            )
        return {"mul": lambda: _rounded(x * first), "add": lambda: x + first, "div": lambda: x / first}[
            op.name
        ]()

    def _bits(self, at: Half) -> list[Stmt]:
        code = self.end.bits
        assert code is not None, "the caller asked"
        words = []
        for i in range(code.thresholds):
            halves = [self._reached(at, i, half) for half in (0, 1)]
            words.append(halves[0] | (halves[1] << emit.const(HALF, "uint32")))
        planes = planes_of(code, words)
        first = at.block * code.planes
        out = self.outputs[-1]
        return [emit.store(out, word, at.n, at.y, at.x, first + i) for i, word in enumerate(planes)]

    def _reached(self, at: Half, threshold: int, half: int) -> Expr:
        channel = at.block * LANES + half * HALF
        value = emit.load(self.values[half], 0, lanes=HALF)
        if self.end.signed:
            value = value * emit.load(self.sign, channel, lanes=HALF)
        reached = value >= emit.load(self.limits, threshold, channel, lanes=HALF)
        return emit.reinterpret("uint16", reached).astype("uint32")


def _rounded(product: Expr) -> Expr:
    """Return a product that is rounded before it is added to: TVM's LLVM contracts the two otherwise."""
    return emit.llvm("llvm.arithmetic.fence", "float32x16", product)
