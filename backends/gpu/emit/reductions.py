"""Pooling, reductions, softmax and normalizations; sums of few bits are accumulated in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ir.windows import pads_of
from ....compiler.ops.common import float_attribute
from .elementwise import wide
from .walk import Emitter, Last, Rule, refuse, shape_of

if TYPE_CHECKING:
    from .walk import Expr


def _pool(node: ir.Node, x: Expr) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return kernel, strides, pads and dilations of a pooling node with 1 or 2 spatial axes."""
    kernel = ints_attribute(node, "kernel_shape")
    ones = (1,) * len(kernel)
    strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
    if len(kernel) not in (1, 2) or int_attribute(node, "ceil_mode", 0) or len(node.outputs) > 1:
        raise refuse(node, "1 or 2 spatial axes, ceil_mode 0 and one output are taken")
    pads = pads_of(node, kernel, strides, dilations, shape_of(x)[1:-1])
    return list(kernel), list(strides), list(pads), list(dilations)


def _max_pool(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import relax

    x = emitter.image(node, 0)
    kernel, strides, pads, dilations = _pool(node, x)
    op = relax.op.nn.max_pool1d if len(kernel) == 1 else relax.op.nn.max_pool2d
    layout = "NWC" if len(kernel) == 1 else "NHWC"
    return Last(op(x, kernel, strides=strides, padding=pads, dilation=dilations, layout=layout))


def _average_pool(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import relax

    image = emitter.image(node, 0)
    kernel, strides, pads, dilations = _pool(node, image)
    op = relax.op.nn.avg_pool1d if len(kernel) == 1 else relax.op.nn.avg_pool2d
    layout = "NWC" if len(kernel) == 1 else "NHWC"
    counts = bool(int_attribute(node, "count_include_pad", 0))

    def compute(emitter: Emitter, x: Expr) -> Expr:
        return op(
            x,
            kernel,
            strides=strides,
            padding=pads,
            dilation=dilations,
            layout=layout,
            count_include_pad=counts,
        )

    return Last(wide(compute)(emitter, image))


def _global(name: str) -> Rule:
    def rule(emitter: Emitter, node: ir.Node) -> Last:
        from tvm import relax

        op, image = getattr(relax.op, name), emitter.image(node, 0)
        axes = list(range(1, len(shape_of(image)) - 1))
        return Last(wide(lambda emitter, x: op(x, axis=axes, keepdims=True))(emitter, image))

    return rule


def _reduce(name: str, before: str = "", after: str = "") -> Rule:
    """Return the rule of a reduction, with an elementwise operator in front of it or behind it."""

    def rule(emitter: Emitter, node: ir.Node) -> Expr:
        from tvm import relax

        source = emitter.operand(node, 0)
        rank, given = len(shape_of(source)), emitter.maybe_array(node, 1)
        if given is None and int_attribute(node, "noop_with_empty_axes", 0):
            return source
        axes = [int(axis) % rank for axis in given] if given is not None and given.size else list(range(rank))
        keep = bool(int_attribute(node, "keepdims", 1))

        def compute(emitter: Emitter, x: Expr) -> Expr:
            x = emitter.emit(getattr(relax.op, before)(x)) if before else x
            x = emitter.emit(getattr(relax.op, name)(x, axis=axes, keepdims=keep))
            return getattr(relax.op, after)(x) if after else x

        return wide(compute)(emitter, emitter.operand(node, 0))

    return rule


def _softmax(name: str) -> Rule:
    def rule(emitter: Emitter, node: ir.Node) -> Expr:
        from tvm import relax

        axis = int_attribute(node, "axis", -1)
        op: Callable[..., Expr] = getattr(relax.op.nn, name)
        return wide(lambda emitter, x: op(x, axis=axis))(emitter, emitter.operand(node, 0))

    return rule


def _layer_norm(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    if len(node.outputs) > 1:
        raise refuse(node, "mean and deviation as outputs")
    x, scale, bias = emitter.operand(node, 0), emitter.array(node, 1), emitter.maybe_array(node, 2)
    rank = len(shape_of(x))
    first = int_attribute(node, "axis", -1) % rank
    shift = np.zeros_like(scale) if bias is None else bias
    gamma, beta = (emitter.constant(a.astype(np.float32)) for a in (scale, shift))
    epsilon = float_attribute(node, "epsilon", 1e-5)
    return wide(lambda emitter, x: relax.op.nn.layer_norm(x, gamma, beta, list(range(first, rank)), epsilon))(
        emitter, x
    )


def _batch_norm(emitter: Emitter, node: ir.Node) -> Expr | Last:
    """`x * a + b` with a = scale / sqrt(var + epsilon), b = bias - mean * a, both of float64 rounded once."""
    from tvm import relax

    if int_attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        raise refuse(node, "training mode")
    scale, bias, mean, var = (emitter.array(node, index).astype(np.float64) for index in (1, 2, 3, 4))
    factor = scale / np.sqrt(var + float_attribute(node, "epsilon", 1e-5))
    a, b = (emitter.constant(v.astype(np.float32)) for v in (factor, bias - mean * factor))
    scaled = wide(lambda emitter, x: relax.op.add(emitter.emit(relax.op.multiply(x, a)), b))
    if len(shape_of(emitter.operand(node, 0))) == 2:
        return scaled(emitter, emitter.operand(node, 0))
    return Last(scaled(emitter, emitter.image(node, 0)))


RULES: dict[str, Rule] = {
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _global("mean"), "GlobalMaxPool": _global("max"),
    "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"), "ReduceMax": _reduce("max"),
    "ReduceMin": _reduce("min"), "ReduceSumSquare": _reduce("sum", before="square"),
    "ReduceL1": _reduce("sum", before="abs"), "ReduceL2": _reduce("sum", before="square", after="sqrt"),
    "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"),
    "LayerNormalization": _layer_norm, "BatchNormalization": _batch_norm,
}  # fmt: skip
