"""Normalizations; statistics of few bits are computed in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute
from ....compiler.ops.common import float_attribute
from .elementwise import wide
from .walk import Array, Emitter, Last, Rule, axis_in_memory, placed, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def _layer_norm(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    if len(node.outputs) > 1:
        raise refuse(node, "mean and deviation as outputs")
    x, scale, bias = emitter.operand(node, 0), emitter.array(node, 1), emitter.maybe_array(node, 2)
    rank = len(shape_of(x))
    first = int_attribute(node, "axis", -1) % rank
    shift = np.zeros_like(scale) if bias is None else bias
    gamma, beta = (
        emitter.constant(np.broadcast_to(a.astype(np.float32), shape_of(x)[first:])) for a in (scale, shift)
    )
    epsilon = float_attribute(node, "epsilon", 1e-5)
    return wide(lambda emitter, x: relax.op.nn.layer_norm(x, gamma, beta, list(range(first, rank)), epsilon))(
        emitter, x
    )


def _batch_norm(emitter: Emitter, node: ir.Node) -> Expr | Last:
    """`x * a + b` with a = scale / sqrt(var + epsilon), b = bias - mean * a, both of float64 rounded once."""
    if int_attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        raise refuse(node, "training mode")
    scale, bias, mean, var = (emitter.array(node, index).astype(np.float64) for index in (1, 2, 3, 4))
    factor = scale / np.sqrt(var + float_attribute(node, "epsilon", 1e-5))
    if len(shape_of(emitter.source(node)[0])) == 2:
        return _scaled(emitter, emitter.operand(node, 0), factor, bias - mean * factor)
    return Last(_scaled(emitter, emitter.image(node, 0), factor, bias - mean * factor))


def _scaled(emitter: Emitter, x: Expr, factor: Array, shift: Array) -> Expr:
    """Emit `x * factor + shift` along the last axis."""
    from tvm import relax

    a, b = (emitter.constant(v.astype(np.float32)) for v in (factor, shift))
    return wide(lambda emitter, x: relax.op.add(emitter.emit(relax.op.multiply(x, a)), b))(emitter, x)


def _instance_norm(emitter: Emitter, node: ir.Node) -> Last:
    """Statistics of every channel alone."""
    channels = emitter.array(node, 1).size
    return _group_normalized(emitter, node, channels, 1)


def _group_norm(emitter: Emitter, node: ir.Node) -> Last:
    channels, groups = shape_of(emitter.image(node, 0))[-1], int_attribute(node, "num_groups", 1)
    return _group_normalized(emitter, node, groups, channels // groups)


def _group_normalized(emitter: Emitter, node: ir.Node, groups: int, depth: int) -> Last:
    """Emit the normalization of `groups` times `depth` channels, which lie last."""
    from tvm import relax

    image, scale, bias = emitter.image(node, 0), emitter.array(node, 1), emitter.array(node, 2)
    shape, epsilon = shape_of(image), np.float32(float_attribute(node, "epsilon", 1e-5))
    split = (shape[0], int(np.prod(shape[1:-1])), groups, depth)

    def compute(emitter: Emitter, x: Expr) -> Expr:
        parts = emitter.emit(relax.op.reshape(x, split))
        mean = emitter.emit(relax.op.mean(parts, axis=[1, 3], keepdims=True))
        rest = emitter.emit(relax.op.subtract(parts, mean))
        squares = emitter.emit(relax.op.square(rest))
        var = emitter.emit(relax.op.mean(squares, axis=[1, 3], keepdims=True))
        width = emitter.emit(relax.op.sqrt(emitter.emit(relax.op.add(var, emitter.constant(epsilon)))))
        whole = emitter.emit(relax.op.reshape(emitter.emit(relax.op.divide(rest, width)), shape))
        return _scaled(emitter, whole, scale, bias)

    return Last(wide(compute)(emitter, image))


def _local_response(emitter: Emitter, node: ir.Node) -> Last:
    """`x / (bias + alpha / size * sum of squares of `size` channels around) ^ beta`."""
    from tvm import te, tirx

    size, image = int_attribute(node, "size", 1), emitter.image(node, 0)
    alpha, beta = float_attribute(node, "alpha", 1e-4), float_attribute(node, "beta", 0.75)
    bias = float_attribute(node, "bias", 1.0)
    channels, before = shape_of(image)[-1], (size - 1) // 2

    def squares(t: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, size), name="k")

        def element(*at: tirx.Expr) -> tirx.Expr:
            channel = at[-1] + k - before
            inside = tirx.all(channel >= 0, channel < channels)
            found = t(*at[:-1], tirx.max(tirx.min(channel, channels - 1), 0))
            return te.sum(tirx.Select(inside, found * found, tirx.const(0, "float32")), axis=k)

        return te.compute(t.shape, element, name="squares")

    def divided(t: te.Tensor, s: te.Tensor) -> te.Tensor:
        factor, shift, power = (tirx.const(v, "float32") for v in (alpha / size, bias, beta))
        return te.compute(
            t.shape, lambda *at: t(*at) / tirx.power(s(*at) * factor + shift, power), name="local_response"
        )

    def compute(emitter: Emitter, x: Expr) -> Expr:
        return emitter.compute("local_response", divided, x, emitter.compute("squares", squares, x))

    return Last(wide(compute)(emitter, image))


def _lp_norm(emitter: Emitter, node: ir.Node) -> Expr | Last:
    """Division by the norm along an axis; where it is 0 the result is 0."""
    from tvm import relax

    x, is_last = emitter.source(node)
    axis = axis_in_memory(int_attribute(node, "axis", -1), len(shape_of(x)), is_last)
    p = int_attribute(node, "p", 2)

    def compute(emitter: Emitter, x: Expr) -> Expr:
        sizes = emitter.emit((relax.op.square if p == 2 else relax.op.abs)(x))
        norm = emitter.emit(relax.op.sum(sizes, axis=[axis], keepdims=True))
        norm = emitter.emit(relax.op.sqrt(norm)) if p == 2 else norm
        tiny = emitter.constant(np.float32(np.finfo(np.float32).tiny))
        return relax.op.divide(x, emitter.emit(relax.op.maximum(norm, tiny)))

    return placed(wide(compute)(emitter, x), is_last)


RULES: dict[str, Rule] = {
    "LayerNormalization": _layer_norm, "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm,
    "LRN": _local_response, "LpNormalization": _lp_norm,
}  # fmt: skip
