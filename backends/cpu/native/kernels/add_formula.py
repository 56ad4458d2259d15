"""The arithmetic of a quantized Add, and the cheapest instructions that give it exactly. No TVM in here.

`y = clamp(rint(float32(float32(a - a0) * sa + float32(b - b0) * sb) / sy) + y0, low, high)`, every step
rounded to float32. There are only 65536 pairs of bytes: a cheaper formula is tried on all of them when the
model is compiled, and taken where not one result differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Way = Literal["fused", "reciprocal", "divide"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AddFormula:
    """How two bytes become one.

    Attributes:
        way: `fused`: `rint(fma(a, ka, fma(b, kb, kc)))`; `reciprocal`: the sum times `1 / sy`; `divide`: as
            defined.
        scales: sa, sb, sy.
        zeros: a0, b0, y0.
        low, high: limits of the output byte.
    """

    way: Way
    scales: tuple[float, float, float]
    zeros: tuple[int, int, int]
    low: int = 0
    high: int = 255

    @property
    def fused(self) -> tuple[float, float, float]:
        """Return ka, kb, kc."""
        sa, sb, sy = self.scales
        a0, b0, _ = self.zeros
        return _f32(sa / sy), _f32(sb / sy), _f32(-(a0 * sa + b0 * sb) / sy)

    @property
    def reciprocal(self) -> float:
        """Return `1 / sy`."""
        return _f32(1 / self.scales[2])


def _f32(value: float) -> float:
    return float(np.float32(value))


def add_formula(
    scales: tuple[float, float, float], zeros: tuple[int, int, int], low: int = 0, high: int = 255
) -> AddFormula:
    """Return the cheapest formula that agrees with the definition on all pairs of bytes."""
    exact = (*(_f32(s) for s in scales),)
    ways: tuple[Way, ...] = ("fused", "reciprocal", "divide")
    formulas = [AddFormula(way, (exact[0], exact[1], exact[2]), zeros, low, high) for way in ways]
    a, b = np.arange(256, dtype=np.int32)[:, None], np.arange(256, dtype=np.int32)[None, :]
    want = add_bytes(formulas[-1], a, b)
    return next(f for f in formulas if np.array_equal(add_bytes(f, a, b), want))


def add_bytes(
    formula: AddFormula, a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """Return what the kernels make of the bytes `a` and `b`."""
    steps = np.rint(_fused_steps(formula, a, b) if formula.way == "fused" else _steps(formula, a, b))
    y = np.clip(steps.astype(np.float64) + formula.zeros[2], formula.low, formula.high)
    return np.asarray(y, np.uint8)


def _fused_steps(formula: AddFormula, a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> Floats:
    # A product of a byte and a float32 is exact in float64, the sum nearly always: an fma's one rounding.
    ka, kb, kc = formula.fused
    inner = (b * np.float64(kb) + np.float64(kc)).astype(np.float32)
    return np.asarray((a * np.float64(ka) + inner.astype(np.float64)).astype(np.float32))


def _steps(formula: AddFormula, a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> Floats:
    sa, sb, sy = (np.float32(s) for s in formula.scales)
    total = (a - formula.zeros[0]).astype(np.float32) * sa + (b - formula.zeros[1]).astype(np.float32) * sb
    return np.asarray(total * np.float32(formula.reciprocal) if formula.way == "reciprocal" else total / sy)
