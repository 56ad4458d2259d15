"""Writes the TIR of a quantized Add, alone or at the end of a convolution. Needs TVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from .add_formula import AddFormula
from .emit import llvm, module, parameter
from .int8_emit import (
    LANES,
    SAFE_STEPS,
    bind,
    border,
    f32,
    i32,
    i64,
    loop,
    put,
    rounded,
    row_of,
    tasks,
    to_bytes,
    to_bytes64,
    vector,
    widen,
)

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa
    from .add_int8 import AddInt8Spec

LEAST = -3.0e38


def added(isa: Isa, formula: AddFormula, a: Expr, b: Expr) -> Expr:
    """Return the rounded steps (int32x16, before the zero point) of two bytes given as int32x16."""
    if formula.way == "fused":
        ka, kb, kc = formula.fused
        inner = _fma(tirx.Cast("float32x16", b), f32(kb), f32(kc))
        small = 255 * (ka + kb) + abs(kc) < SAFE_STEPS
        return rounded(isa, _fma(tirx.Cast("float32x16", a), f32(ka), inner), small=small)
    # A product that is not rounded before it is added makes another sum; the maximum keeps LLVM from that.
    total = _real(a, formula.zeros[0], formula.scales[0]) + _real(b, formula.zeros[1], formula.scales[1])
    if formula.way == "reciprocal":
        return rounded(isa, total * f32(formula.reciprocal))
    return rounded(isa, tirx.Div(total, f32(formula.scales[2])))


def _fma(a: Expr, b: Expr, c: Expr) -> Expr:
    return llvm("llvm.fma.v16f32", "float32x16", a, b, c)


def _real(value: Expr, zero: int, scale: float) -> Expr:
    product = tirx.Cast("float32x16", value - i32(zero)) * f32(scale)
    return tirx.Max(product, f32(LEAST))


def build_add(spec: AddInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`, one row per task."""
    a, b = parameter("a", "uint8", [spec.a.bytes]), parameter("b", "uint8", [spec.b.bytes])
    y = parameter("y", "uint8", [spec.y.bytes])
    formula, pixels = spec.formula, spec.y.width * spec.y.pitch
    limits = (formula.zeros[2], formula.low, formula.high)

    def chunk(at: Sequence[Expr], offset: Expr) -> list[Stmt]:
        pairs = zip(
            *(widen(vector(i, p + offset, 64)) for i, p in zip((a, b), at, strict=False)), strict=True
        )
        steps = [added(isa, formula, left, right) for left, right in pairs]
        return [put(y, to_bytes64(isa, steps, *limits), at[2] + offset, 64)]

    def rest(at: Sequence[Expr], offset: Expr) -> list[Stmt]:
        sides = [tirx.Cast("int32x16", vector(i, p + offset)) for i, p in zip((a, b), at, strict=False)]
        return [put(y, to_bytes(added(isa, formula, *sides), *limits), at[2] + offset)]

    def row(task: Var) -> list[Stmt]:
        n, first = bind("n", tirx.floordiv(task, i64(spec.y.height)))
        line, second = bind("line", tirx.floormod(task, i64(spec.y.height)))
        starts = [bind("start", row_of(i, n, line)) for i in (spec.a, spec.b, spec.y)]
        at = [name for name, _ in starts]
        body = [first, second, *(statement for _, statement in starts)]
        body += border(y, spec.y, n, line, 1, formula.zeros[2])
        whole = pixels // 64
        body += [loop("chunk", whole, lambda c: chunk(at, c * i64(64)))] if whole else []
        for offset in range(whole * 64, pixels, LANES):
            body += rest(at, i64(offset))
        return body

    return module([a, b, y], lambda begin, end: [tasks(begin, end, row)])
