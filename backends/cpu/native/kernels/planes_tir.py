"""Planes of a code from words whose bits say which channels reach each threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.ir import Expr

from .bits import Code

_PLANES: dict[Code, Callable[[Sequence[Expr]], tuple[Expr, ...]]] = {
    Code.BINARY: lambda reached: (reached[0],),
    Code.TERNARY: lambda reached: (reached[1], ~(reached[0] ^ reached[1])),
    Code.INT2: lambda reached: (reached[0] ^ reached[1] ^ reached[2], ~reached[1]),
    Code.UINT2: lambda reached: (reached[0] ^ reached[1] ^ reached[2], reached[1]),
}


def planes_of(code: Code, reached: Sequence[Expr]) -> tuple[Expr, ...]:
    """Return the planes of a code from words whose bits say which channels reach each threshold."""
    return _PLANES[code](reached)
