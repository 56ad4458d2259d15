"""Writes the TIR of a quantized Add, alone or at the end of a convolution. Needs TVM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr

from .add_formula import AddFormula
from .int8_emit import f32, i32, rounded

if TYPE_CHECKING:
    from ..isa import Isa


def added(isa: Isa, formula: AddFormula, a: Expr, b: Expr) -> Expr:
    """Return the rounded steps (int32x16, before the zero point) of two bytes given as int32x16."""
    if formula.way == "fused":
        ka, kb, kc = formula.fused
        inner = tirx.fma(tirx.Cast("float32x16", b), f32(kb), f32(kc))
        return rounded(isa, tirx.fma(tirx.Cast("float32x16", a), f32(ka), inner))
    total = _real(a, formula.zeros[0], formula.scales[0]) + _real(b, formula.zeros[1], formula.scales[1])
    if formula.way == "reciprocal":
        return rounded(isa, total * f32(formula.reciprocal))
    return rounded(isa, tirx.Div(total, f32(formula.scales[2])))


def _real(value: Expr, zero: int, scale: float) -> Expr:
    return tirx.Cast("float32x16", value - i32(zero)) * f32(scale)
