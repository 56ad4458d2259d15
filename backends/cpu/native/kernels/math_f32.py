"""Elementary functions on vectors of float32, as TIR expressions. Needs TVM.

exp: x = n ln 2 + r, |r| <= ln 2 / 2 (n ln 2 in two parts, Cody and Waite), Taylor of degree 7 in r
(remainder 5e-9), times 2^n in two factors, so that denormals and infinity come out; error 2 ulp.
tanh: odd Taylor polynomial below 0.5 (remainder 1e-7 relative), 1 - 2 / (exp(2x) + 1) above.
erf: Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from .after_f32 import After
from .emit import const, reinterpret, splat

LOG2E = 1.4426950408889634
# ln 2 = HIGH + LOW; HIGH has 9 bits of mantissa, so n * HIGH is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4
_TAYLOR_EXP = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
_TAYLOR_TANH = (21844 / 6081075, -1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3)
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def lit(value: float, lanes: int) -> Expr:
    """Return a vector constant."""
    one = tirx.const(value, "float32")
    return splat(one, lanes) if lanes > 1 else one


def lanes_of(value: Expr) -> int:
    """Return the lanes of a vector expression."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return int(lanes or 1)


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """Return `body` of a name for `value`, so that it is computed once."""
    name = Var("v", str(value.ty.dtype))
    return tirx.Let(name, value, body(name))


def _horner(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    total = lit(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        total = total * x + lit(coefficient, lanes)
    return total


def exp(x: Expr, lanes: int) -> Expr:
    """Return e to the power of `x`."""
    bounded = tirx.max(tirx.min(x, lit(89.0, lanes)), lit(-104.0, lanes))
    return let(bounded, lambda v: _exp_bounded(v, lanes))


def _exp_bounded(x: Expr, lanes: int) -> Expr:
    return let(tirx.floor(x * lit(LOG2E, lanes) + lit(0.5, lanes)), lambda n: _exp_reduced(x, n, lanes))


def _exp_reduced(x: Expr, n: Expr, lanes: int) -> Expr:
    rest = (x - n * lit(LN2_HIGH, lanes)) - n * lit(LN2_LOW, lanes)
    wide = "int32" if lanes == 1 else f"int32x{lanes}"

    def scaled(whole: Expr) -> Expr:
        half = tirx.shift_right(whole, _ints(1, lanes))
        power = let(rest, lambda r: _horner(r, _TAYLOR_EXP, lanes))
        return let(half, lambda h: power * _two_to(h, lanes) * _two_to(whole - h, lanes))

    return let(tirx.Cast(wide, n), scaled)


def _ints(value: int, lanes: int) -> Expr:
    return splat(const(value), lanes) if lanes > 1 else const(value)


def _two_to(n: Expr, lanes: int) -> Expr:
    bits = tirx.shift_left(n + _ints(127, lanes), _ints(23, lanes))
    return reinterpret("float32" if lanes == 1 else f"float32x{lanes}", bits)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """Return 1 / (1 + exp(-x))."""
    return lit(1.0, lanes) / (lit(1.0, lanes) + exp(lit(0.0, lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """Return the hyperbolic tangent."""
    return let(x, lambda v: _tanh(v, lanes))


def _tanh(x: Expr, lanes: int) -> Expr:
    small = let(x * x, lambda q: x + x * q * _horner(q, _TAYLOR_TANH, lanes))
    large = lit(1.0, lanes) - lit(2.0, lanes) / (exp(x + x, lanes) + lit(1.0, lanes))
    size = tirx.max(x, lit(0.0, lanes) - x)
    return tirx.Select(size < lit(0.5, lanes), small, large)


def erf(x: Expr, lanes: int) -> Expr:
    """Return the error function."""
    return let(x, lambda v: let(tirx.max(v, lit(0.0, lanes) - v), lambda size: _erf(v, size, lanes)))


def _erf(x: Expr, size: Expr, lanes: int) -> Expr:
    one, zero = lit(1.0, lanes), lit(0.0, lanes)
    t = one / (one + lit(0.3275911, lanes) * size)
    tail = let(t, lambda v: v * _horner(v, _ERF, lanes)) * exp(zero - size * size, lanes)
    return let(one - tail, lambda y: tirx.Select(x < zero, zero - y, y))


def apply(function: str, x: Expr, lanes: int, alpha: float = 0.0, beta: float = 0.0) -> Expr:
    """Return one of `after_f32.FUNCTIONS` of `x`."""
    return let(x, lambda v: _TABLE[function](v, lanes, alpha, beta))


def _leaky(x: Expr, lanes: int, alpha: float, _: float) -> Expr:
    return tirx.Select(x < lit(0.0, lanes), x * lit(alpha, lanes), x)


def _elu(x: Expr, lanes: int, alpha: float, _: float) -> Expr:
    return tirx.Select(x < lit(0.0, lanes), lit(alpha, lanes) * (exp(x, lanes) - lit(1.0, lanes)), x)


def _hard_sigmoid(x: Expr, lanes: int, alpha: float, beta: float) -> Expr:
    return tirx.max(lit(0.0, lanes), tirx.min(lit(1.0, lanes), x * lit(alpha, lanes) + lit(beta, lanes)))


def _gelu(x: Expr, lanes: int, a: float, b: float) -> Expr:
    return lit(0.5, lanes) * _erf_gate(x, lanes, a, b)


def _gelu_tanh(x: Expr, lanes: int, a: float, b: float) -> Expr:
    return lit(0.5, lanes) * _tanh_gate(x, lanes, a, b)


def _erf_gate(x: Expr, lanes: int, _a: float, _b: float) -> Expr:
    # A GELU whose factor 0.5 went into the weights behind it.
    return x * (lit(1.0, lanes) + erf(x * lit(0.5**0.5, lanes), lanes))


def _tanh_gate(x: Expr, lanes: int, _a: float, _b: float) -> Expr:
    inner = lit(0.7978845608028654, lanes) * (x + lit(0.044715, lanes) * x * x * x)
    return x * (lit(1.0, lanes) + tanh(inner, lanes))


def _softplus(x: Expr, lanes: int, _a: float, _b: float) -> Expr:
    # log(1 + e) with e = exp(-|x|) <= 1: 2 atanh(e / (2 + e)), odd series in s <= 1/3 (remainder 3e-8).
    size = tirx.max(x, lit(0.0, lanes) - x)
    series = tuple(2 / (2 * k + 1) for k in range(7, -1, -1))
    ratio = let(exp(lit(0.0, lanes) - size, lanes), lambda e: e / (lit(2.0, lanes) + e))
    tail = let(ratio, lambda s: s * let(s * s, lambda q: _horner(q, series, lanes)))
    return tirx.max(x, lit(0.0, lanes)) + tail


_TABLE: dict[str, Callable[[Expr, int, float, float], Expr]] = {
    "sigmoid": lambda x, n, a, b: sigmoid(x, n),
    "tanh": lambda x, n, a, b: tanh(x, n),
    "silu": lambda x, n, a, b: x * sigmoid(x, n),
    "hard-sigmoid": _hard_sigmoid,
    "hard-swish": lambda x, n, a, b: x * _hard_sigmoid(x, n, 1 / 6, 0.5),
    "gelu": _gelu,
    "gelu-tanh": _gelu_tanh,
    "erf-gate": _erf_gate,
    "tanh-gate": _tanh_gate,
    "exp": lambda x, n, a, b: exp(x, n),
    "elu": _elu,
    "leaky-relu": _leaky,
    "softplus": _softplus,
}


def finish(value: Expr, after: After, residual: Expr | None, lanes: int) -> Expr:
    """Return the epilogue of a sum that already holds the bias."""
    total = value if residual is None else value + residual
    if after.function:
        total = apply(after.function, total, lanes, after.alpha, after.beta)
    if after.low is not None:
        total = tirx.max(total, lit(after.low, lanes))
    return total if after.high is None else tirx.min(total, lit(after.high, lanes))
