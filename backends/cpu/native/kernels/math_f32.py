"""Elementary functions on vectors of float32, as TIR expressions. Needs TVM.

exp: x = n ln 2 + r, |r| <= ln 2 / 2 (n ln 2 in two parts, Cody and Waite), a polynomial of degree 6 in r
(minimax of (e^r - 1 - r) / r^2, error 3.2e-9 of e^r), times 2^n with denormals and infinity; error 2 ulp.
tanh: t / (t + 2) of t = exp(2|x|) - 1 without cancellation: 2^n (e^r - 1) + (2^n - 1); error 4 ulp.
erf: Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ..isa import Isa
from .after_f32 import After
from .emit import const, llvm, reinterpret, splat
from .window import LANES

_wide = ContextVar("pared_wide_vectors", default=False)

LOG2E = 1.4426950408889634
# ln 2 = HIGH + LOW; HIGH has 9 bits of mantissa, so n * HIGH is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4
# By iteratively reweighted least squares on 4001 Chebyshev points.
_EXP = (0.0013814320584662, 0.0083688510902292, 0.0416684010853348, 0.1666651952389636, 0.4999999337307438)
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
    def scaled(n: Expr) -> Expr:
        power = let(_reduced(x, n, lanes), lambda r: _expm1(r, lanes) + lit(1.0, lanes))
        return times_two_to(power, n, lanes)

    return let(_powers(x, lanes), scaled)


def _powers(x: Expr, lanes: int) -> Expr:
    """Return the n of x = n ln 2 + r as floats."""
    return tirx.floor(x * lit(LOG2E, lanes) + lit(0.5, lanes))


def _reduced(x: Expr, n: Expr, lanes: int) -> Expr:
    return (x - n * lit(LN2_HIGH, lanes)) - n * lit(LN2_LOW, lanes)


def _expm1(r: Expr, lanes: int) -> Expr:
    """Return e^r - 1 for |r| <= ln 2 / 2, with a small relative error."""
    return r + (r * r) * _horner(r, _EXP, lanes)


def times_two_to(x: Expr, n: Expr, lanes: int) -> Expr:
    """Return x * 2^n for n of -152 to 130, whole numbers as floats.

    With 16 lanes and AVX-512 that is `vscalefps`; LLVM makes calls of libm of its own `ldexp` elsewhere.
    """
    if lanes == LANES and _wide.get():
        rest = (x, const(-1, "int16"), const(4))
        return llvm("llvm.x86.avx512.mask.scalef.ps.512", f"float32x{lanes}", x, n, *rest)
    return _in_two_factors(x, tirx.Cast("int32" if lanes == 1 else f"int32x{lanes}", n), lanes)


@contextmanager
def vectors_of(isa: Isa) -> Iterator[None]:
    """Let kernels that are built within the block use what vectors of the ISA have beyond the common."""
    token = _wide.set("avx512f" in isa.features)
    try:
        yield
    finally:
        _wide.reset(token)


def _in_two_factors(x: Expr, n: Expr, lanes: int) -> Expr:
    def scaled(whole: Expr) -> Expr:
        half = tirx.shift_right(whole, _ints(1, lanes))
        return let(half, lambda h: x * _two_to(h, lanes) * _two_to(whole - h, lanes))

    return let(n, scaled)


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
    zero, two = lit(0.0, lanes), lit(2.0, lanes)
    # Beyond 9.02 the result is 1 in float32.
    twice = tirx.min(tirx.max(x, zero - x), lit(10.0, lanes)) * two

    def scaled(v: Expr, n: Expr, r: Expr) -> Expr:
        power = times_two_to(lit(1.0, lanes), n, lanes)
        return let(power, lambda p: p * _expm1(r, lanes) + (p - lit(1.0, lanes)))

    def folded(v: Expr) -> Expr:
        return let(_powers(v, lanes), lambda n: let(_reduced(v, n, lanes), lambda r: scaled(v, n, r)))

    size = let(let(twice, folded), lambda t: t / (t + two))
    return let(size, lambda y: tirx.Select(x < zero, zero - y, y))


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
        total = tirx.max(lit(after.low, lanes), total)  # NaN stays: a comparison with it leaves the second
    return total if after.high is None else tirx.min(lit(after.high, lanes), total)
