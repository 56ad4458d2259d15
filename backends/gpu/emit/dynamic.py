"""Integer layers whose zero point or scale is computed as the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .convolution import Data
from .products import convolve, pads_for
from .walk import Emitter, Last, Rule, dtype_of, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr


def _shifted(emitter: Emitter, node: ir.Node, x: Expr) -> tuple[Expr, Expr]:
    """Return data and its zero point (int32, one number) so that the data is int8."""
    from tvm import relax, te, tirx

    zero, kind = emitter.optional(node, 2), dtype_of(x)
    if zero is None:
        zero = emitter.constant(np.zeros(1, kind))
    if int(np.prod(shape_of(zero))) != 1:
        raise refuse(node, "data with several zero points")
    wide = emitter.emit(relax.op.astype(emitter.emit(relax.op.reshape(zero, (1,))), "int32"))
    if kind == "int8":
        return x, wide

    def shift(t: te.Tensor) -> te.Tensor:
        flip = tirx.const(128, "uint8")
        return te.compute(t.shape, lambda *at: tirx.reinterpret("int8", t(*at) ^ flip), name="signed")

    return (
        emitter.compute("signed", shift, x),
        emitter.emit(relax.op.subtract(wide, emitter.constant(np.array([128], np.int32)))),
    )


def _weights(emitter: Emitter, node: ir.Node) -> npt.NDArray[np.int8]:
    whole, zero = emitter.array(node, 1).astype(np.int64), emitter.maybe_array(node, 3)
    if zero is not None:
        shape = [1] * whole.ndim
        shape[0 if node.op_type == "ConvInteger" else -1] = -1
        whole = whole - (zero.astype(np.int64).reshape(shape) if zero.size > 1 else int(zero.reshape(())))
    if whole.min(initial=0) < -128 or whole.max(initial=0) > 127:
        raise refuse(node, "weights that leave int8 without their zero point")
    return whole.astype(np.int8)


def _less_zero(emitter: Emitter, total: Expr, zero: Expr, sums: npt.NDArray[np.int64]) -> Expr:
    """Emit `total - zero * sums`, one sum per channel; the channels lie last."""
    from tvm import relax

    share = emitter.emit(relax.op.multiply(zero, emitter.constant(sums.reshape(-1).astype(np.int32))))
    return emitter.emit(relax.op.subtract(total, share))


def _matmul(emitter: Emitter, node: ir.Node) -> Expr:
    from tvm import relax

    (x, zero), w = _shifted(emitter, node, emitter.operand(node, 0)), _weights(emitter, node)
    if w.ndim != 2:
        raise refuse(node, "a product by something else than a matrix")
    total = emitter.emit(relax.op.matmul(x, emitter.constant(w), out_dtype="int32"))
    return _less_zero(emitter, total, zero, w.astype(np.int64).sum(axis=0))


def _conv(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import te, tirx

    (x, zero), w = _shifted(emitter, node, emitter.image(node, 0)), _weights(emitter, node)
    pads, sizes = pads_for(node, shape_of(x)[1:-1], w.shape[2:]), shape_of(x)
    half = len(pads) // 2
    shape = (sizes[0], *(n + pads[i] + pads[half + i] for i, n in enumerate(sizes[1:-1])), sizes[-1])

    def pad(t: te.Tensor, z: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            places = [i - b for i, b in zip(at[1:-1], pads[:half], strict=True)]
            inside = [tirx.all(p >= 0, p < n) for p, n in zip(places, sizes[1:-1], strict=True)]
            return tirx.if_then_else(tirx.all(*inside), t(at[0], *places, at[-1]), z(0).astype("int8"))

        return te.compute(shape, element, name="pad")

    x = emitter.compute("pad", pad, x, zero) if any(pads) else x
    total = convolve(emitter, node, w, "int32", Data(x), padded=True)
    return Last(_less_zero(emitter, total, zero, w.astype(np.int64).sum(axis=tuple(range(1, w.ndim)))))


def _quantize(emitter: Emitter, node: ir.Node) -> list[Expr]:
    """`scale = (max - min) / 255` of the data and 0, the zero point so that the smallest value is 0."""
    from tvm import relax, te, tirx

    x = emitter.operand(node, 0)
    most, least = (emitter.emit(getattr(relax.op, name)(x)) for name in ("max", "min"))
    zero_real = tirx.const(0, "float32")

    def scales(high: te.Tensor, low: te.Tensor) -> te.Tensor:
        def element() -> tirx.Expr:
            span = tirx.max(high(), zero_real) - tirx.min(low(), zero_real)
            return span / tirx.const(255, "float32")

        return te.compute((), element, name="scale")

    def zeros(low: te.Tensor, scale: te.Tensor) -> te.Tensor:
        def element() -> tirx.Expr:
            place = tirx.nearbyint((zero_real - tirx.min(low(), zero_real)) / scale())
            return tirx.max(tirx.min(place, tirx.const(255, "float32")), zero_real).astype("uint8")

        return te.compute((), element, name="zero")

    def codes(t: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            whole = tirx.nearbyint(t(*at) / scale()) + zero().astype("float32")
            return tirx.max(tirx.min(whole, tirx.const(255, "float32")), zero_real).astype("uint8")

        return te.compute(t.shape, element, name="codes")

    scale = emitter.emit(emitter.compute("scale", scales, most, least))
    zero = emitter.emit(emitter.compute("zero", zeros, least, scale))
    return [emitter.compute("codes", codes, x, scale, zero), scale, zero]


RULES: dict[str, Rule] = {"MatMulInteger": _matmul, "ConvInteger": _conv, "DynamicQuantizeLinear": _quantize}
