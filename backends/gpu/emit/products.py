"""Convolutions and matrix products; sums of float16 and bfloat16 are accumulated in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute
from ....compiler.ir.windows import pads_of
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_expression
from .convolution import Data, Window, data_of, emit_sums
from .walk import Array, Emitter, Last, Rule, dtype_of, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def convolve(
    emitter: Emitter, node: ir.Node, w: Array | Expr, kind: str, data: Data, *, padded: bool = False
) -> Expr:
    """Emit the sums of a Conv node in the type `kind`.

    Args:
        emitter: takes the operators.
        node: gives strides, dilations and groups.
        w: weights as ONNX has them, [M, C / group, ...], known now or computed.
        kind: of the sums, wide enough for them.
        data: what is convolved.
        padded: it has its pads already.
    """
    kernel = (w.shape if isinstance(w, np.ndarray) else shape_of(w))[2:]
    ones = (1,) * len(kernel)
    strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
    pads = (0,) * (2 * len(kernel)) if padded else pads_for(node, data.spatial, kernel)
    return emit_sums(
        emitter, data, w, Window(pads, strides, dilations, int_attribute(node, "group", 1)), kind
    )


def pads_for(node: ir.Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return the pads of a Conv node on data of a spatial size, `auto_pad` resolved."""
    ones = (1,) * len(kernel)
    strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
    return pads_of(node, kernel, strides, dilations, size)


def sum_kind(kind: str) -> str:
    """Return in what products of a type are summed."""
    return "float32" if kind in ("float16", "bfloat16") else kind


def _rounded(emitter: Emitter, total: Expr, kind: str) -> Expr:
    from tvm import relax

    return total if dtype_of(total) == kind else emitter.emit(relax.op.astype(total, kind))


def _weights(emitter: Emitter, node: ir.Node) -> Array | Expr:
    """Return the weights, known now or computed."""
    array = constant_expression(node.inputs[1])
    return emitter.operand(node, 1) if array is None else array


def _biased(emitter: Emitter, node: ir.Node, total: Expr) -> Expr:
    """Add input 2 along the last axis, where it is there."""
    from tvm import relax

    bias = emitter.optional(node, 2)
    if bias is None:
        return total
    return emitter.emit(relax.op.add(total, _rounded(emitter, bias, dtype_of(total))))


def _conv(emitter: Emitter, node: ir.Node) -> Last:
    data = data_of(emitter, node)
    kind = dtype_of(data.x)
    total = convolve(emitter, node, _weights(emitter, node), sum_kind(kind), data)
    return Last(_rounded(emitter, _biased(emitter, node, total), kind))


def convolve_transposed(emitter: Emitter, node: ir.Node, x: Expr, w: Array, kind: str, fill: int = 0) -> Expr:
    """Emit the sums of a ConvTranspose node in the type `kind`.

    The data is spread by the strides, `fill` between and around it, and convolved with the kernel turned
    round: a stride of s multiplies by s^2 - 1 fills for each datum.

    Args:
        emitter: takes the operators.
        node: gives strides, dilations, groups and the size of the result.
        x: data, [N, ..., C].
        w: weights as ONNX has them, [C, M / group, ...].
        kind: of the sums.
        fill: what counts as nothing.
    """
    rank, group = w.ndim - 2, int_attribute(node, "group", 1)
    strides = ints_attribute(node, "strides", (1,) * rank)
    dilations = ints_attribute(node, "dilations", (1,) * rank)
    begin, out = _transposed_window(node, shape_of(x)[1:-1], w.shape[2:], strides, dilations)
    reach = [d * (k - 1) for d, k in zip(dilations, w.shape[2:], strict=True)]
    size = [o + r for o, r in zip(out, reach, strict=True)]
    spread = _spread(emitter, x, [r - b for r, b in zip(reach, begin, strict=True)], strides, size, fill)
    split = w.reshape(group, w.shape[0] // group, *w.shape[1:])  # [group, C / group, M / group, ...]
    turned = np.flip(split.swapaxes(1, 2).reshape(-1, split.shape[1], *w.shape[2:]), tuple(range(2, w.ndim)))
    window = Window((0,) * (2 * rank), (1,) * rank, dilations, group)
    return emit_sums(emitter, Data(spread), turned, window, kind)


def _transposed_window(
    node: ir.Node,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how much is cropped at the beginning of every spatial axis, and the result's sizes."""
    rank, mode = len(size), attribute(node, "auto_pad", "NOTSET")
    extra, shape = ints_attribute(node, "output_padding", (0,) * rank), ints_attribute(node, "output_shape")
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(size, strides, dilations, kernel, extra, strict=True)
    ]
    if shape or mode in ("SAME_UPPER", "SAME_LOWER"):
        out = shape[-rank:] if shape else tuple(n * s for n, s in zip(size, strides, strict=True))
        total = [max(f - o, 0) for f, o in zip(full, out, strict=True)]
        return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total), tuple(out)
    pads = ints_attribute(node, "pads") if mode == "NOTSET" else ()
    pads = pads or (0,) * (2 * rank)
    return pads[:rank], tuple(f - pads[i] - pads[rank + i] for i, f in enumerate(full))


def _spread(
    emitter: Emitter, x: Expr, begin: list[int], strides: tuple[int, ...], size: list[int], fill: int
) -> Expr:
    """Emit [N, *size, C] with the data at `begin + stride * index` and `fill` elsewhere."""
    from tvm import te, tirx

    sizes = shape_of(x)

    def spread(t: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            places = [i - b for i, b in zip(at[1:-1], begin, strict=True)]
            cells = [tirx.floordiv(p, s) for p, s in zip(places, strides, strict=True)]
            hits = [
                tirx.all(p >= 0, tirx.floormod(p, s) == 0, cell < n)
                for p, s, cell, n in zip(places, strides, cells, sizes[1:-1], strict=True)
            ]
            return tirx.if_then_else(tirx.all(*hits), t(at[0], *cells, at[-1]), tirx.const(fill, t.dtype))

        return te.compute((sizes[0], *size, sizes[-1]), element, name="spread")

    return emitter.compute("spread", spread, x)


def _conv_transpose(emitter: Emitter, node: ir.Node) -> Last:
    x = emitter.image(node, 0)
    total = convolve_transposed(emitter, node, x, emitter.array(node, 1), sum_kind(dtype_of(x)))
    return Last(_rounded(emitter, _biased(emitter, node, total), dtype_of(x)))


def multiply(emitter: Emitter, x: Expr, matrix: Array, kind: str) -> Expr:
    """Emit the sums of data [..., K] by a constant matrix [K, N] in the type `kind`.

    The matrix is kept as [N, K], so that a column is one stretch of memory.
    """
    from tvm import te

    def formula(t: te.Tensor, w: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, matrix.shape[0]), name="k")
        return te.compute(
            (*t.shape[:-1], matrix.shape[1]),
            lambda *at: te.sum(t(*at[:-1], k).astype(kind) * w(at[-1], k).astype(kind), axis=k),
            name="product",
        )

    return emitter.compute("product", formula, x, emitter.constant(matrix.T))


def _sums(emitter: Emitter, node: ir.Node, a: Expr, turned: bool) -> Expr:
    """Return the sums of a product by input 1, `turned` or not."""
    from tvm import relax

    kind, matrix = sum_kind(dtype_of(a)), constant_expression(node.inputs[1])
    if matrix is not None and matrix.ndim == 2:
        return multiply(emitter, a, matrix.T if turned else matrix, kind)
    b = emitter.operand(node, 1)
    b = emitter.emit(relax.op.permute_dims(b, (1, 0))) if turned else b
    return emitter.emit(relax.op.matmul(a, b, out_dtype=kind))


def _matmul(emitter: Emitter, node: ir.Node) -> Expr:
    a = emitter.operand(node, 0)
    return _rounded(emitter, _sums(emitter, node, a, False), dtype_of(a))


def _gemm(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    a = emitter.operand(node, 0)
    if int_attribute(node, "transA", 0):
        a = emitter.emit(relax.op.permute_dims(a, (1, 0)))
    wide, total = sum_kind(dtype_of(a)), _sums(emitter, node, a, bool(int_attribute(node, "transB", 0)))
    total = _scaled(emitter, total, float_attribute(node, "alpha", 1.0))
    bias = emitter.optional(node, 2)
    if bias is not None:
        bias = _scaled(emitter, _rounded(emitter, bias, wide), float_attribute(node, "beta", 1.0))
        total = emitter.emit(relax.op.add(total, bias))
    return _rounded(emitter, total, dtype_of(a))


def _scaled(emitter: Emitter, x: Expr, factor: float) -> Expr:
    from tvm import relax

    if factor == 1.0:
        return x
    return emitter.emit(relax.op.multiply(x, emitter.constant(np.asarray(factor, dtype_of(x)))))


RULES: dict[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MatMul": _matmul, "Gemm": _gemm,
}  # fmt: skip
