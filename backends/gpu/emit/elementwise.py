"""Elementwise operators, casts and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, static_shape
from ....compiler.ops.common import float_attribute, string_attribute
from .walk import Emitter, Last, Rule, dtype_of, refuse

if TYPE_CHECKING:
    from tvm import tirx

    from .walk import Expr

    # Of one element.
    _Formula: TypeAlias = Callable[[tirx.Expr], tirx.Expr]


def _placed(expr: Expr, is_last: bool) -> Expr | Last:
    return Last(expr) if is_last else expr


def _plain(name: str) -> Rule:
    """Return the rule of an operator that relax has under `name`, of any number of operands."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        operands, is_last = emitter.alike(node)
        return _placed(getattr(relax.op, name)(*operands), is_last)

    return rule


def _many(name: str) -> Rule:
    """Return the rule of an operator that folds its operands two by two."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr | Last:
        from tvm import relax

        (total, *rest), is_last = emitter.alike(node)
        for operand in rest:
            total = emitter.emit(getattr(relax.op, name)(total, operand))
        return _placed(total, is_last)

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
        return _placed(wide(lambda emitter, x: getattr(relax.op, name)(x))(emitter, x), is_last)

    return rule


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

        return _placed(wide(compute)(emitter, source), is_last)

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


def _round(node: ir.Node) -> _Formula:
    from tvm import tirx

    return lambda x: tirx.nearbyint(x)  # half to even, as ONNX asks for


def _gelu(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (source,), is_last = emitter.alike(node)
    tanh = string_attribute(node, "approximate", "none") == "tanh"
    op = relax.op.nn.gelu_tanh if tanh else relax.op.nn.gelu
    return _placed(wide(lambda emitter, x: op(x))(emitter, source), is_last)


def _relu(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x,), is_last = emitter.alike(node)
    return _placed(relax.op.nn.relu(x), is_last)


def _prelu(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x, slope), is_last = emitter.alike(node)
    zero = emitter.constant(np.zeros((), dtype_of(x)))
    below = emitter.emit(relax.op.multiply(emitter.emit(relax.op.minimum(x, zero)), slope))
    return _placed(relax.op.add(emitter.emit(relax.op.maximum(x, zero)), below), is_last)


def _clip(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x, *_), is_last = emitter.alike(node)
    for index, op in ((1, relax.op.maximum), (2, relax.op.minimum)):
        limit = emitter.maybe_array(node, index)
        if limit is not None:
            x = emitter.emit(op(x, emitter.constant(limit.reshape(()))))
    return _placed(x, is_last)


def _divide(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (a, b), is_last = emitter.alike(node)
    if "float" not in dtype_of(a):
        raise refuse(node, "a quotient of integers")
    return _placed(relax.op.divide(a, b), is_last)


def _cast(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x,), is_last = emitter.alike(node)
    to = ir.DataType(int_attribute(node, "to", 1)).numpy().name
    if "float" in dtype_of(x) and "float" not in to and to != "bool":
        # What C says of a float outside the integers' range, and of NaN, is not what ONNX says.
        raise refuse(node, f"a cast from {dtype_of(x)} to {to}")
    return _placed(relax.op.astype(x, to), is_last)


def _reciprocal(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import relax

    (x,), is_last = emitter.alike(node)
    return _placed(relax.op.divide(emitter.constant(np.ones((), dtype_of(x))), x), is_last)


def _identity(emitter: Emitter, node: ir.Node) -> Expr | Last:
    (x, *_), is_last = emitter.alike(node)
    return _placed(x, is_last)


def _expand(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    shape = static_shape(node.outputs[0])
    if shape is None:
        raise refuse(node, "the result's shape is open")
    return relax.op.broadcast_to(emitter.operand(node, 0), shape)


# Operators that relax has under a name of its own.
_PLAIN = {
    "Abs": "abs", "Neg": "negative", "Floor": "floor", "Ceil": "ceil", "Sign": "sign", "Not": "logical_not",
    "Sub": "subtract", "Pow": "power", "Equal": "equal", "Greater": "greater", "Less": "less",
    "GreaterOrEqual": "greater_equal", "LessOrEqual": "less_equal", "And": "logical_and", "Or": "logical_or",
    "Where": "where",
}  # fmt: skip
_WIDE = {
    "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Erf": "erf", "Sigmoid": "sigmoid", "Tanh": "tanh",
    "Sin": "sin", "Cos": "cos",
}  # fmt: skip
_MANY = {"Add": "add", "Mul": "multiply", "Sum": "add", "Max": "maximum", "Min": "minimum"}

RULES: dict[str, Rule] = {
    "Relu": _relu, "Gelu": _gelu, "PRelu": _prelu, "Clip": _clip, "Div": _divide, "Cast": _cast,
    "Reciprocal": _reciprocal, "Identity": _identity, "Dropout": _identity, "Expand": _expand,
    "LeakyRelu": _formula(_leaky), "Elu": _formula(_elu), "HardSigmoid": _formula(_hard_sigmoid),
    "HardSwish": _formula(_hard_swish), "Softplus": _formula(_softplus), "Round": _formula(_round),
    **{op: _plain(name) for op, name in _PLAIN.items()},
    **{op: _wide_unary(name) for op, name in _WIDE.items()},
    **{op: _many(name) for op, name in _MANY.items()},
}  # fmt: skip
