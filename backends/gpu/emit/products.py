"""Convolutions and matrix products; sums of float16 and bfloat16 are accumulated in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute
from ....compiler.ir.windows import pads_of
from ....compiler.ops.common import float_attribute
from .walk import Array, Emitter, Last, Rule, dtype_of, refuse, shape_of

if TYPE_CHECKING:
    from .walk import Expr

# Spatial axes -> layout of data and weights.
_LAYOUTS = {1: ("NWC", "OWI"), 2: ("NHWC", "OHWI")}


def convolve(emitter: Emitter, node: ir.Node, x: Expr, w: Array, pads: tuple[int, ...], kind: str) -> Expr:
    """Emit the sums of a Conv node in the type `kind`.

    Args:
        emitter: takes the operators.
        node: gives strides, dilations and groups.
        x: data, [N, ..., C], padded by `pads`.
        w: weights as ONNX has them, [M, C / group, ...].
        pads: of all spatial axes at the beginning, then at the end.
        kind: of the sums, wide enough for them.
    """
    from tvm import relax

    rank = w.ndim - 2
    if rank not in _LAYOUTS:
        raise refuse(node, f"{rank} spatial axes; 1 and 2 are taken")
    data, weights = _LAYOUTS[rank]
    op = relax.op.nn.conv1d if rank == 1 else relax.op.nn.conv2d
    return emitter.emit(
        op(
            x, emitter.constant(np.moveaxis(w, 1, -1)), padding=list(pads),
            strides=list(ints_attribute(node, "strides", (1,) * rank)),
            dilation=list(ints_attribute(node, "dilations", (1,) * rank)),
            groups=int_attribute(node, "group", 1), data_layout=data, kernel_layout=weights, out_dtype=kind,
        )
    )  # fmt: skip


def pads_for(node: ir.Node, x: Expr, w: Array) -> tuple[int, ...]:
    """Return the pads of a Conv node on data with its channels last, `auto_pad` resolved."""
    ones = (1,) * (w.ndim - 2)
    strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
    return pads_of(node, w.shape[2:], strides, dilations, shape_of(x)[1:-1])


def _rounded(emitter: Emitter, total: Expr, kind: str) -> Expr:
    from tvm import relax

    return total if dtype_of(total) == kind else emitter.emit(relax.op.astype(total, kind))


def _conv(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import relax

    x, w = emitter.image(node, 0), emitter.array(node, 1)
    total = convolve(emitter, node, x, w, pads_for(node, x, w), "float32")
    bias = emitter.maybe_array(node, 2)
    if bias is not None:
        total = emitter.emit(relax.op.add(total, emitter.constant(bias.astype(np.float32))))
    return Last(_rounded(emitter, total, dtype_of(x)))


def _matmul(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    a, b = emitter.operand(node, 0), emitter.operand(node, 1)
    return _rounded(emitter, emitter.emit(relax.op.matmul(a, b, out_dtype="float32")), dtype_of(a))


def _gemm(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    a, b = emitter.operand(node, 0), emitter.operand(node, 1)
    for flag in ("transA", "transB"):
        if int_attribute(node, flag, 0):
            turned = emitter.emit(relax.op.permute_dims(a if flag == "transA" else b, (1, 0)))
            a, b = (turned, b) if flag == "transA" else (a, turned)
    total = emitter.emit(relax.op.matmul(a, b, out_dtype="float32"))
    total = _scaled(emitter, total, float_attribute(node, "alpha", 1.0))
    bias = emitter.optional(node, 2)
    if bias is not None:
        bias = _scaled(emitter, _rounded(emitter, bias, "float32"), float_attribute(node, "beta", 1.0))
        total = emitter.emit(relax.op.add(total, bias))
    return _rounded(emitter, total, dtype_of(a))


def _scaled(emitter: Emitter, x: Expr, factor: float) -> Expr:
    from tvm import relax

    if factor == 1.0:
        return x
    return emitter.emit(relax.op.multiply(x, emitter.constant(np.float32(factor))))


RULES: dict[str, Rule] = {"Conv": _conv, "MatMul": _matmul, "Gemm": _gemm}
