"""Elementwise operators, casts and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, static_shape
from ....compiler.ops.common import float_attribute, string_attribute
from .walk import Emitter, Last, Rule, dtype_of, placed, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

    # Of one element.
    _Formula: TypeAlias = Callable[[tirx.Expr], tirx.Expr]


def _plain(name: str) -> Rule:
    """Return the rule of an operator that relax has under `name`, of any number of operands."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        operands, is_last = emitter.alike(node)
        return placed(getattr(relax.op, name)(*operands), is_last)

    return rule


def _many(name: str) -> Rule:
    """Return the rule of an operator that folds its operands two by two."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        (total, *rest), is_last = emitter.alike(node)
        for operand in rest:
            total = emitter.emit(getattr(relax.op, name)(total, operand))
        return placed(total, is_last)

    return rule


def wide(function: Callable[[Emitter, Expr], Expr]) -> Callable[[Emitter, Expr], Expr]:
    """Compute in float32 what arrives in fewer bits, and round once."""

    def widened(emitter: Emitter, x: Expr) -> Expr:
        from tvm import relax

        kind = dtype_of(x)
        if kind not in ("float16", "bfloat16"):
            return function(emitter, x)
        x = emitter.emit(relax.op.astype(x, "float32"))
        return emitter.emit(relax.op.astype(emitter.emit(function(emitter, x)), kind))

    return widened


def _wide_unary(name: str) -> Rule:
    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        (x,), is_last = emitter.alike(node)
        return placed(wide(lambda emitter, x: getattr(relax.op, name)(x))(emitter, x), is_last)

    return rule


def _intrinsic(name: str) -> Callable[[ir.Node], _Formula]:
    """Return the formula of a function that CUDA's mathematics library and C's have."""

    def make(node: ir.Node) -> _Formula:
        from tvm import tirx

        found: _Formula = getattr(tirx, name)
        return found

    return make


def _formula(make: Callable[[ir.Node], _Formula]) -> Rule:
    """Return the rule of an operator written as an expression of one element, computed in float32."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import te

        formula = make(node)
        (source,), is_last = emitter.alike(node)

        def compute(emitter: Emitter, x: Expr) -> Expr:
            return emitter.compute(
                node.op_type.lower(),
                lambda t: te.compute(t.shape, lambda *at: formula(t(*at)), name=node.op_type.lower()),
                x,
            )

        return placed(wide(compute)(emitter, source), is_last)

    return rule


def _leaky(node: ir.Node) -> _Formula:
    from tvm import tirx

    slope = float_attribute(node, "alpha", 0.01)
    return lambda x: tirx.Select(x >= 0, x, x * tirx.const(slope, "float32"))


def _elu(node: ir.Node) -> _Formula:
    from tvm import tirx

    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: tirx.Select(x >= 0, x, (tirx.exp(x) - 1.0) * tirx.const(alpha, "float32"))


def _hard_sigmoid(node: ir.Node) -> _Formula:
    from tvm import tirx

    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)

    def formula(x: tirx.Expr) -> tirx.Expr:
        line = x * tirx.const(alpha, "float32") + tirx.const(beta, "float32")
        return tirx.max(tirx.min(line, tirx.const(1, "float32")), tirx.const(0, "float32"))

    return formula


def _hard_swish(node: ir.Node) -> _Formula:
    from tvm import tirx

    def formula(x: tirx.Expr) -> tirx.Expr:
        line = x * tirx.const(1 / 6, "float32") + tirx.const(0.5, "float32")
        return x * tirx.max(tirx.min(line, tirx.const(1, "float32")), tirx.const(0, "float32"))

    return formula


def _softplus(node: ir.Node) -> _Formula:
    from tvm import tirx

    return lambda x: tirx.max(x, tirx.const(0, "float32")) + tirx.log1p(tirx.exp(-tirx.abs(x)))


def _selu(node: ir.Node) -> _Formula:
    from tvm import tirx

    alpha = float_attribute(node, "alpha", 1.6732632423543772)
    gamma = tirx.const(float_attribute(node, "gamma", 1.0507009873554805), "float32")
    slope = tirx.const(alpha, "float32")
    return lambda x: tirx.Select(x > 0, gamma * x, gamma * (slope * (tirx.exp(x) - 1.0)))


def _celu(node: ir.Node) -> _Formula:
    from tvm import tirx

    alpha, zero = tirx.const(float_attribute(node, "alpha", 1.0), "float32"), tirx.const(0, "float32")
    return lambda x: tirx.max(x, zero) + tirx.min(alpha * (tirx.exp(x / alpha) - 1.0), zero)


def _thresholded(node: ir.Node) -> _Formula:
    from tvm import tirx

    alpha = tirx.const(float_attribute(node, "alpha", 1.0), "float32")
    return lambda x: tirx.Select(x > alpha, x, tirx.const(0, "float32"))


def _softsign(node: ir.Node) -> _Formula:
    from tvm import tirx

    return lambda x: x / (tirx.const(1, "float32") + tirx.abs(x))


def _mish(node: ir.Node) -> _Formula:
    from tvm import tirx

    soft = _softplus(node)
    return lambda x: x * tirx.tanh(soft(x))


def _round(node: ir.Node) -> _Formula:
    from tvm import tirx

    return lambda x: tirx.nearbyint(x)  # half to even, as ONNX asks for


def _gelu(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (source,), is_last = emitter.alike(node)
    tanh = string_attribute(node, "approximate", "none") == "tanh"
    op = relax.op.nn.gelu_tanh if tanh else relax.op.nn.gelu
    return placed(wide(lambda emitter, x: op(x))(emitter, source), is_last)


def _relu(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x,), is_last = emitter.alike(node)
    return placed(relax.op.nn.relu(x), is_last)


def _prelu(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x, slope), is_last = emitter.alike(node)
    zero = emitter.constant(np.zeros((), dtype_of(x)))
    below = emitter.emit(relax.op.multiply(emitter.emit(relax.op.minimum(x, zero)), slope))
    return placed(relax.op.add(emitter.emit(relax.op.maximum(x, zero)), below), is_last)


def _clip(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    x, is_last = emitter.source(node)
    for index, op in ((1, relax.op.maximum), (2, relax.op.minimum)):
        limit = emitter.optional(node, index)
        if limit is not None:
            x = emitter.emit(op(x, emitter.emit(relax.op.reshape(limit, ()))))
    return placed(x, is_last)


def _divide(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (a, b), is_last = emitter.alike(node)
    if "float" in dtype_of(a):
        return placed(relax.op.divide(a, b), is_last)

    return placed(_whole_quotient(emitter, a, b, "truncdiv"), is_last)


def _whole_quotient(emitter: Emitter, a: Expr, b: Expr, name: str) -> Expr:
    """`a name b` of integers, 0 where b is: what processors do then differs, up to ending the process."""
    from tvm import te, tirx, topi

    shape = np.broadcast_shapes(shape_of(a), shape_of(b))

    def compute(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        x, y = topi.broadcast_to(x, shape), topi.broadcast_to(y, shape)
        zero, one = tirx.const(0, x.dtype), tirx.const(1, x.dtype)

        def element(*at: tirx.Expr) -> tirx.Expr:
            by_zero = y(*at) == zero
            quotient = getattr(tirx, name)(x(*at), tirx.Select(by_zero, one, y(*at)))
            return tirx.Select(by_zero, zero, quotient)

        return te.compute(shape, element, name="quotient")

    return emitter.compute("quotient", compute, a, b)


def _mod(emitter: Emitter, node: ir.Node) -> Expr | Last:
    """The remainder has the sign of the divisor, or of the dividend with `fmod`; floats have `fmod` only."""
    from tvm import te, tirx, topi

    (a, b), is_last = emitter.alike(node)
    like_dividend = bool(int_attribute(node, "fmod", 0))
    if "float" not in dtype_of(a):
        return placed(_whole_quotient(emitter, a, b, "truncmod" if like_dividend else "floormod"), is_last)
    shape = np.broadcast_shapes(shape_of(a), shape_of(b))

    def remainder(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        x, y = topi.broadcast_to(x, shape), topi.broadcast_to(y, shape)
        return te.compute(shape, lambda *at: tirx.fmod(x(*at), y(*at)), name="remainder")

    if not like_dividend or dtype_of(a) != "float32":
        raise refuse(node, "a remainder of floats other than float32 with fmod = 1")
    return placed(emitter.compute("remainder", remainder, a, b), is_last)


def _mean(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (total, *rest), is_last = emitter.alike(node)
    for operand in rest:
        total = emitter.emit(relax.op.add(total, operand))
    count = emitter.constant(np.asarray(1 + len(rest), dtype_of(total)))
    return placed(relax.op.divide(total, count), is_last)


def _cast(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x,), is_last = emitter.alike(node)
    to = ir.DataType(int_attribute(node, "to", 1)).numpy().name
    if "float" in dtype_of(x) and "float" not in to and to != "bool":
        return placed(_truncated(emitter, node, x, to), is_last)
    return placed(relax.op.astype(x, to), is_last)


def _truncated(emitter: Emitter, node: ir.Node, x: Expr, to: str) -> Expr:
    """Cast towards zero; ONNX leaves open what lies outside the integers: here the nearest one, NaN is 0."""
    from tvm import te, tirx

    if dtype_of(x) == "float64":
        raise refuse(node, f"a cast from float64 to {to}")
    limits = np.iinfo(to)
    low, high = np.float32(limits.min), np.float32(limits.max)
    high = high if float(high) <= limits.max else np.nextafter(high, np.float32(0))

    def element(real: tirx.Expr) -> tirx.Expr:
        real = real.astype("float32")
        real = tirx.if_then_else(tirx.isnan(real), tirx.const(0, "float32"), real)
        edges = tirx.const(float(low), "float32"), tirx.const(float(high), "float32")
        return tirx.max(tirx.min(real, edges[1]), edges[0]).astype(to)

    return emitter.compute("cast", lambda t: te.compute(t.shape, lambda *at: element(t(*at)), name="cast"), x)


def _reciprocal(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x,), is_last = emitter.alike(node)
    return placed(relax.op.divide(emitter.constant(np.ones((), dtype_of(x))), x), is_last)


def _identity(emitter: Emitter, node: ir.Node) -> Expr | Last:
    (x, *_), is_last = emitter.alike(node)
    return placed(x, is_last)


def _expand(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    x, shape = emitter.operand(node, 0), static_shape(node.outputs[0])
    if shape is None:
        shape = np.broadcast_shapes(shape_of(x), tuple(emitter.array(node, 1).tolist()))
    return relax.op.broadcast_to(x, shape)


# Operators that relax has under a name of its own.
_PLAIN = {
    "Abs": "abs", "Neg": "negative", "Floor": "floor", "Ceil": "ceil", "Sign": "sign", "Not": "logical_not",
    "Sub": "subtract", "Pow": "power", "Equal": "equal", "Greater": "greater", "Less": "less",
    "GreaterOrEqual": "greater_equal", "LessOrEqual": "less_equal", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor", "Where": "where", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor", "BitwiseNot": "bitwise_not",
}  # fmt: skip
_WIDE = {
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Erf": "erf",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Sin": "sin",
    "Cos": "cos",
}
# Functions by their names in ONNX and in TVM.
_INTRINSICS = {
    "Tan": "tan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh",
    "Asin": "asin", "Acos": "acos", "Atan": "atan",
}  # fmt: skip
_MANY = {"Add": "add", "Mul": "multiply", "Sum": "add", "Max": "maximum", "Min": "minimum"}

RULES: dict[str, Rule] = {
    "Relu": _relu, "Gelu": _gelu, "PRelu": _prelu, "Clip": _clip, "Div": _divide, "Cast": _cast,
    "Reciprocal": _reciprocal, "Identity": _identity, "Dropout": _identity, "Expand": _expand,
    "LeakyRelu": _formula(_leaky), "Elu": _formula(_elu), "HardSigmoid": _formula(_hard_sigmoid),
    "HardSwish": _formula(_hard_swish), "Softplus": _formula(_softplus), "Round": _formula(_round),
    "Selu": _formula(_selu), "Celu": _formula(_celu), "ThresholdedRelu": _formula(_thresholded),
    "Softsign": _formula(_softsign), "Mish": _formula(_mish), "Mod": _mod, "Mean": _mean,
    **{op: _formula(_intrinsic(name)) for op, name in _INTRINSICS.items()},
    **{op: _plain(name) for op, name in _PLAIN.items()},
    **{op: _wide_unary(name) for op, name in _WIDE.items()},
    **{op: _many(name) for op, name in _MANY.items()},
}  # fmt: skip
