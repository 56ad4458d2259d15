"""Elementwise operations by name: how many values they take, and their TIR.

Truth values are floats, 1 and 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .after_f32 import FUNCTIONS

if TYPE_CHECKING:
    from tvm.ir import Expr

    from .elementwise_f32 import Op

_ARGUMENTS = {
    "const": 0, "add": 2, "sub": 2, "mul": 2, "div": 2, "min": 2, "max": 2, "prelu": 2, "pow": 2,
    "equal": 2, "less": 2, "greater": 2, "less-equal": 2, "greater-equal": 2, "where": 3,
    "neg": 1, "abs": 1, "relu": 1, "clip": 1, "sqrt": 1, "reciprocal": 1, "floor": 1, "ceil": 1, "round": 1,
    "erf": 1, "log": 1, "sin": 1, "cos": 1,
}  # fmt: skip


def arguments_of(name: str) -> int | None:
    """Return how many values an operation takes, None for an unknown one."""
    return 1 if name in FUNCTIONS else _ARGUMENTS.get(name)


def formula(op: Op, args: Sequence[Expr], lanes: int) -> Expr:
    """Return the result of an operation on vectors of `lanes` floats."""
    from .math_f32 import apply

    if op.name in FUNCTIONS:
        return apply(op.name, args[0], lanes, op.alpha, op.beta)
    return _formulas(op, lanes)[op.name](*args)


def _formulas(op: Op, lanes: int) -> dict[str, Callable[..., Expr]]:
    from tvm import tirx

    from . import emit
    from .math_f32 import erf, lit
    from .strided_tir import wide

    zero, one = lit(0.0, lanes), lit(1.0, lanes)
    low, high = lit(op.alpha, lanes), lit(op.beta, lanes)

    def truth(condition: Expr) -> Expr:
        return tirx.Select(condition, one, zero)

    def rounded(name: str) -> Callable[[Expr], Expr]:
        return lambda a: emit.llvm(f"llvm.{name}", wide("float32", lanes), a)

    return {
        "const": lambda: low,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "min": tirx.min,
        "max": tirx.max,
        "prelu": lambda a, b: tirx.Select(a < zero, a * b, a),
        "pow": tirx.pow,
        "equal": lambda a, b: truth(tirx.EQ(a, b)),
        "less": lambda a, b: truth(a < b),
        "greater": lambda a, b: truth(b < a),
        "less-equal": lambda a, b: truth(a <= b),
        "greater-equal": lambda a, b: truth(b <= a),
        "where": lambda c, a, b: tirx.Select(tirx.NE(c, zero), a, b),
        "neg": lambda a: zero - a,
        "abs": lambda a: tirx.max(a, zero - a),
        # The second operand is what a comparison with NaN leaves: NaN stays.
        "relu": lambda a: tirx.max(zero, a),
        "clip": lambda a: tirx.min(high, tirx.max(low, a)),
        "sqrt": tirx.sqrt,
        "reciprocal": lambda a: one / a,
        "floor": rounded("floor"),
        "ceil": rounded("ceil"),
        "round": rounded("rint"),
        "erf": lambda a: erf(a, lanes),
        "log": tirx.log,
        "sin": tirx.sin,
        "cos": tirx.cos,
    }
