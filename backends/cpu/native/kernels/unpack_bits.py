"""Bit planes back into float32 values: `out[p, c] = scale * code[p, c]`, as a quantizer gives them.

Layouts: data [pixels, words * planes] uint32 (bits.py), out [pixels, Cp] float32, Cp = channels up to 16.
One task is one pixel; 16 channels at a time: broadcast the word, shift by the lane, mask. Bound by the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .bits import WORD, Code, words_of

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa

HALF = 16


@dataclass(frozen=True)
class UnpackBitsSpec:
    """Static shape; parameters: data, scale [16], out, begin, end."""

    pixels: int
    channels: int
    code: Code

    @property
    def out_shape(self) -> tuple[int, int]:
        """Shape of the output in memory."""
        return self.pixels, -(-self.channels // HALF) * HALF

    def tasks(self) -> int:
        """Length of the parallel loop: pixels."""
        return self.pixels

    def bytes(self) -> int:
        """Bytes of data and output."""
        return 4 * (int(np.prod(self.out_shape)) + self.pixels * words_of(self.channels) * self.code.planes)


def supports(spec: UnpackBitsSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`: always."""
    return Verdict.yes()


def pack(spec: UnpackBitsSpec, scale: float) -> list[npt.NDArray[np.generic]]:
    """Return the scale in every lane."""
    return [np.full(HALF, scale, np.float32)]


def build(spec: UnpackBitsSpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel."""
    from tvm import tirx

    from . import emit

    planes = spec.code.planes
    data = emit.parameter("data", "uint32", (spec.pixels, words_of(spec.channels) * planes))
    scale, out = emit.parameter("scale", "float32", (HALF,)), emit.parameter("out", "float32", spec.out_shape)

    def bits(pixel: Expr, first: int, plane: int) -> Expr:
        word = emit.load(data, pixel, first // WORD * planes + plane).astype("int32")
        lanes = tirx.Ramp(emit.const(first % WORD), emit.const(1), HALF)
        return (emit.splat(word, HALF) >> lanes) & emit.splat(emit.const(1), HALF)

    def row(pixel: Expr) -> list[Stmt]:
        statements = []
        for first in range(0, spec.out_shape[1], HALF):
            code = _values(spec.code, [bits(pixel, first, plane) for plane in range(planes)])
            real = code.astype("float32x16") * emit.load(scale, 0, lanes=HALF)
            statements.append(emit.store(out, real, pixel, first, lanes=HALF))
        return statements

    return emit.module([data, scale, out], lambda begin, end: [emit.loop("p", begin, end - begin, row)])


def _values(code: Code, planes: list[Expr]) -> Expr:
    """Return the integers of a code from its bits."""
    if code is Code.BINARY:
        return planes[0] * 2 - 1
    if code is Code.TERNARY:
        return (planes[0] * 2 - 1) * planes[1]
    return planes[0] + planes[1] * (-2 if code is Code.INT2 else 2)
