"""Activations of recurrent cells as formulas of one float32 element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from ....compiler.ir.walk import attribute
from ....compiler.ops.common import float_attribute
from .walk import refuse

if TYPE_CHECKING:
    from tvm import tirx

    Activation: TypeAlias = Callable[[tirx.Expr], tirx.Expr]

_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",),
}  # fmt: skip
# Name -> defaults of alpha and beta; those without one take none from the node's lists either.
_PARAMETERS: Mapping[str, tuple[float | None, float | None]] = {
    "sigmoid": (None, None), "tanh": (None, None), "relu": (None, None), "softsign": (None, None),
    "softplus": (None, None), "leakyrelu": (0.01, None), "thresholdedrelu": (1.0, None), "elu": (1.0, None),
    "hardsigmoid": (0.2, 0.5), "scaledtanh": (1.0, 1.0), "affine": (1.0, None),
}  # fmt: skip


def activations_of(node: ir.Node, directions: int) -> list[list[Activation]]:
    """Return the activations of every direction of an LSTM, GRU or RNN, clipping included."""
    default = _DEFAULTS[node.op_type]
    given = attribute(node, "activations")
    names = list(default) * directions if given is None else [str(name) for name in _listed(given)]
    alpha, beta = (_listed(attribute(node, f"activation_{which}")) for which in ("alpha", "beta"))
    clip = float_attribute(node, "clip", 0.0)
    found = []
    for direction in range(directions):
        rest = list(alpha), list(beta)  # the reference starts anew with every direction
        own = names[direction * len(default) : (direction + 1) * len(default)]
        found.append([_clipped(_activation(node, name.lower(), *rest), clip) for name in own])
    return found


def _listed(value: object) -> list[float]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _clipped(function: Activation, limit: float) -> Activation:
    from tvm import tirx

    edge = tirx.const(limit, "float32")
    return (lambda x: function(tirx.max(tirx.min(x, edge), -edge))) if limit else function


def _activation(node: ir.Node, name: str, alpha: list[float], beta: list[float]) -> Activation:
    from tvm import tirx

    if name not in _PARAMETERS:
        raise refuse(node, f"activation {name}")
    first, second = _PARAMETERS[name]
    a = tirx.const(float(alpha.pop(0)) if first is not None and alpha else first or 0.0, "float32")
    b = tirx.const(float(beta.pop(0)) if second is not None and beta else second or 0.0, "float32")
    return lambda x: _formula(name, x, a, b)


def _formula(name: str, x: tirx.Expr, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    from tvm import tirx

    zero, one = tirx.const(0, "float32"), tirx.const(1, "float32")
    formulas: Mapping[str, Callable[[], tirx.Expr]] = {
        "sigmoid": lambda: tirx.sigmoid(x),
        "tanh": lambda: tirx.tanh(x),
        "relu": lambda: tirx.max(x, zero),
        "softsign": lambda: x / (one + tirx.abs(x)),
        "softplus": lambda: tirx.max(x, zero) + tirx.log1p(tirx.exp(-tirx.abs(x))),
        "leakyrelu": lambda: tirx.Select(x < zero, a * x, x),
        "thresholdedrelu": lambda: tirx.Select(x > a, x, zero),
        "elu": lambda: tirx.Select(x < zero, a * (tirx.exp(x) - one), x),
        "hardsigmoid": lambda: tirx.max(tirx.min(a * x + b, one), zero),
        "scaledtanh": lambda: a * tirx.tanh(b * x),
        "affine": lambda: a * x + b,
    }
    return formulas[name]()
