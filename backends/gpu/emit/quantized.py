"""Quantized layers in exact integers, QuantizeLinear and DequantizeLinear; definitions in docs/semantics.md.

A layer's sums are int32 of int8 operands, so that integer dot products and tensor cores take them: uint8 data
is shifted by 128, its zero point is padded explicitly and leaves the sum as a constant per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute
from ....compiler.ops.common import float_attribute
from ...reference.base import REFERENCE_DOMAIN
from ...reference.integer import bias_steps
from ...reference.linear_quant import RANGES
from .products import convolve, pads_for
from .walk import Array, Emitter, Last, Rule, axis_in_memory, dtype_of, placed, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

_Ints = npt.NDArray[np.int64]

# Inputs of the reference's integer layers, see backends/reference/regions.py.
_X_SCALE, _X_ZERO, _W, _W_SCALE, _W_ZERO, _BIAS, _BIAS_SCALE, _Y_SCALE, _Y_ZERO = range(1, 10)


def _number(array: Array | None) -> int:
    return 0 if array is None else int(array.reshape(()))


def _signed(emitter: Emitter, node: ir.Node, x: Expr) -> tuple[Expr, int]:
    """Return the data as int8 with its zero point: uint8 is shifted by 128."""
    from tvm import te, tirx

    zero = _number(emitter.maybe_array(node, _X_ZERO))
    if dtype_of(x) == "int8":
        return x, zero
    if dtype_of(x) != "uint8":
        raise refuse(node, f"data of type {dtype_of(x)}; int8 and uint8 are taken")

    def shift(t: te.Tensor) -> te.Tensor:
        flip = tirx.const(128, "uint8")
        return te.compute(
            t.shape,
            lambda *at: tirx.reinterpret("int8", t(*at) ^ flip),
            name="signed",
        )

    return emitter.compute("signed", shift, x), zero - 128


def _weights(emitter: Emitter, node: ir.Node) -> npt.NDArray[np.int8]:
    """Return the weights as int8 with zero point 0."""
    w = emitter.array(node, _W)
    zero = emitter.maybe_array(node, _W_ZERO)
    whole = w.astype(np.int64)
    if zero is not None and zero.any():
        if zero.size > 1 and not np.all(zero == zero.flat[0]):
            raise refuse(node, "weights with unlike zero points")
        whole = whole - int(zero.flat[0])
    if whole.min(initial=0) < -128 or whole.max(initial=0) > 127:
        raise refuse(node, "weights that leave int8 without their zero point")
    return whole.astype(np.int8)


def _bias_steps(emitter: Emitter, node: ir.Node, unit: npt.NDArray[np.float32]) -> _Ints:
    """Return the bias in steps of x_scale * w_scale, as the reference rounds it."""
    bias, scale = emitter.maybe_array(node, _BIAS), emitter.maybe_array(node, _BIAS_SCALE)
    return np.zeros(1, np.int64) if bias is None else bias_steps(bias, scale, unit).astype(np.int64)


def _requantize(emitter: Emitter, node: ir.Node, total: Expr, offset: _Ints) -> Expr:
    """`saturate(rint(clip(float32(total + offset) * factor)) + zero)`; the channels lie last."""
    from tvm import te, tirx

    unit = _unit(emitter, node)
    scale = np.float32(emitter.array(node, _Y_SCALE).reshape(()))
    zero, kind = _number(emitter.maybe_array(node, _Y_ZERO)), _kind(node)
    lowest, highest = RANGES[kind]
    low = max(float(np.float32(float_attribute(node, "low", -np.inf)) / scale), -(2.0**31))
    high = min(float(np.float32(float_attribute(node, "high", np.inf)) / scale), 2.0**31)
    channels = shape_of(total)[-1]
    if np.abs(offset).max(initial=0) >= 2**31:
        raise refuse(node, "a bias beyond int32")
    factor = np.broadcast_to((unit / scale).astype(np.float32), (channels,))
    shift = np.broadcast_to(offset.astype(np.int32), (channels,))

    def formula(t: te.Tensor, f: te.Tensor, o: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            real = (t(*at) + o(at[-1])).astype("float32") * f(at[-1])
            real = tirx.max(tirx.min(real, tirx.const(high, "float32")), tirx.const(low, "float32"))
            # Beyond this every sum saturates; within it float32 holds the sum exactly.
            edge = [tirx.const(float(bound - zero), "float32") for bound in (lowest, highest)]
            whole = tirx.max(tirx.min(tirx.nearbyint(real), edge[1]), edge[0])
            return (whole.astype("int32") + tirx.const(zero, "int32")).astype(kind)

        return te.compute(t.shape, element, name="requantize")

    return emitter.compute("requantize", formula, total, emitter.constant(factor), emitter.constant(shift))


def _unit(emitter: Emitter, node: ir.Node) -> npt.NDArray[np.float32]:
    x, w = emitter.array(node, _X_SCALE), emitter.array(node, _W_SCALE)
    return np.asarray(np.float32(x.reshape(())) * w.reshape(-1).astype(np.float32), np.float32)


def _kind(node: ir.Node) -> str:
    kind = ir.DataType(int_attribute(node, "output_dtype", 2)).numpy().name
    if kind not in ("int8", "uint8"):
        raise refuse(node, f"a result of type {kind}; int8 and uint8 are taken")
    return kind


def _conv(emitter: Emitter, node: ir.Node) -> Last:
    from tvm import topi

    (x, zero), w = _signed(emitter, node, emitter.image(node, 0)), _weights(emitter, node)
    pads = pads_for(node, x, w.shape[2:])
    if any(pads):
        half = len(pads) // 2
        before, after = [0, *pads[:half], 0], [0, *pads[half:], 0]
        x = emitter.compute("pad", lambda t: topi.nn.pad(t, before, after, _int8(zero)), x)
    total = convolve(emitter, node, x, w, (0,) * len(pads), "int32")
    sums = w.astype(np.int64).sum(axis=tuple(range(1, w.ndim)))
    offset = _bias_steps(emitter, node, _unit(emitter, node)) - zero * sums
    return Last(_requantize(emitter, node, total, offset.astype(np.int64)))


def _int8(value: int) -> tirx.Expr:
    from tvm import tirx

    return tirx.const(value, "int8")


def _product(emitter: Emitter, node: ir.Node) -> Expr:
    """Gemm and MatMul by a constant matrix."""
    from tvm import relax

    (x, zero), w = _signed(emitter, node, emitter.operand(node, 0)), _weights(emitter, node)
    if int_attribute(node, "transA", 0) or w.ndim != 2:
        raise refuse(node, "a product by something else than a matrix from the right")
    matrix = w.T if int_attribute(node, "transB", 0) else w
    total = emitter.emit(relax.op.matmul(x, emitter.constant(matrix), out_dtype="int32"))
    offset = _bias_steps(emitter, node, _unit(emitter, node)) - zero * matrix.astype(np.int64).sum(axis=0)
    return _requantize(emitter, node, total, offset.astype(np.int64))


def _parameters(emitter: Emitter, node: ir.Node, rank: int) -> tuple[Array, Array, int]:
    """Return scale, zero point (int32) and axis of a Q or DQ node; one number or one per channel."""
    if int_attribute(node, "block_size", 0):
        raise refuse(node, "scales per block")
    scale, zero = emitter.array(node, 1), emitter.maybe_array(node, 2)
    flat = np.zeros(1, np.int32) if zero is None else zero.reshape(-1).astype(np.int32)
    return scale.reshape(-1).astype(np.float32), flat, int_attribute(node, "axis", 1) % max(rank, 1)


def _dequantize(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import te

    x, is_last = emitter.source(node)
    scale, zero, axis = _parameters(emitter, node, len(shape_of(x)))
    axis = axis_in_memory(axis, max(len(shape_of(x)), 1), is_last)
    to = node.outputs[0].dtype or ir.DataType.FLOAT

    def formula(t: te.Tensor, s: te.Tensor, z: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            channel = [at[axis] if p.size > 1 else 0 for p in (scale, zero)]
            whole = t(*at).astype("int32") - z(channel[1])
            return (whole.astype("float32") * s(channel[0])).astype(to.numpy().name)

        return te.compute(t.shape, element, name="dequantize")

    result = emitter.compute("dequantize", formula, x, emitter.constant(scale), emitter.constant(zero))
    return placed(result, is_last)


def _quantize(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import te, tirx

    x, is_last = emitter.source(node)
    scale, zero, axis = _parameters(emitter, node, len(shape_of(x)))
    axis = axis_in_memory(axis, max(len(shape_of(x)), 1), is_last)
    kind = (node.outputs[0].dtype or ir.DataType.UINT8).numpy().name
    if kind not in RANGES or "int4" in kind or "int2" in kind:
        raise refuse(node, f"a result of type {kind}")
    lowest, highest = RANGES[kind]

    def formula(t: te.Tensor, s: te.Tensor, z: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            channel = [at[axis] if p.size > 1 else 0 for p in (scale, zero)]
            real = t(*at).astype("float32") / s(channel[0])
            # NaN gives the zero point; beyond 2^20 every value saturates and int32 still holds it.
            real = tirx.if_then_else(tirx.isnan(real), tirx.const(0, "float32"), real)
            edge = tirx.const(2.0**20, "float32")
            whole = tirx.nearbyint(tirx.max(tirx.min(real, edge), -edge)).astype("int32") + z(channel[1])
            low, high = tirx.const(lowest, "int32"), tirx.const(highest, "int32")
            return tirx.max(tirx.min(whole, high), low).astype(kind)

        return te.compute(t.shape, element, name="quantize")

    result = emitter.compute("quantize", formula, x, emitter.constant(scale), emitter.constant(zero))
    return placed(result, is_last)


RULES: dict[tuple[str, str], Rule] = {
    (REFERENCE_DOMAIN, "IntegerConv"): _conv,
    (REFERENCE_DOMAIN, "IntegerGemm"): _product,
    (REFERENCE_DOMAIN, "IntegerMatMul"): _product,
    ("", "QuantizeLinear"): _quantize,
    ("", "DequantizeLinear"): _dequantize,
}
