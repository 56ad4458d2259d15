"""Quantized layers in exact integers, QuantizeLinear and DequantizeLinear; definitions in docs/semantics.md.

A layer's sums are int32 of int8 operands, so that integer dot products and tensor cores take them: uint8 data
is shifted by 128, its zero point is padded explicitly and leaves the sum as a constant per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_expression
from ...reference.base import REFERENCE_DOMAIN
from ...reference.integer import bias_steps
from ...reference.linear_quant import RANGES
from .convolution import data_of
from .lowbit_sparse import integer_sums
from .lowbit_written import DOMAIN
from .products import convolve, convolve_transposed, multiply
from .real_products import OP as REAL_PRODUCT
from .tables import looked_up, table_of
from .walk import Array, Emitter, Last, Rule, axis_in_memory, dtype_of, placed, refuse, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

_Ints = npt.NDArray[np.int64]
# Weights without zero points.
_Steps = npt.NDArray[np.signedinteger]

# Inputs of the reference's integer layers, see backends/reference/regions.py.
_X_SCALE, _X_ZERO, _W, _W_SCALE, _W_ZERO, _BIAS, _BIAS_SCALE, _Y_SCALE, _Y_ZERO = range(1, 10)


def _number(array: Array | None) -> int:
    return 0 if array is None else int(array.reshape(()))


def _signed(emitter: Emitter, node: ir.Node, x: Expr, zero_at: int = _X_ZERO) -> tuple[Expr, int]:
    """Return the data as int8 with its zero point: uint8 is shifted by 128."""
    from tvm import te, tirx

    zero = _number(emitter.maybe_array(node, zero_at))
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


def _weights(emitter: Emitter, node: ir.Node, axis: int) -> _Steps:
    """Return the weights less their zero points: int8 where they fit, else int16; `axis` has the channels."""
    whole, zero = emitter.array(node, _W).astype(np.int64), emitter.maybe_array(node, _W_ZERO)
    if zero is not None:
        shape = [1] * whole.ndim
        shape[axis % whole.ndim] = -1
        whole = whole - (zero.astype(np.int64).reshape(shape) if zero.size > 1 else int(zero.reshape(())))
    fits = whole.min(initial=0) >= -128 and whole.max(initial=0) <= 127
    return whole.astype(np.int8) if fits else whole.astype(np.int16)


def _like(emitter: Emitter, x: Expr, w: _Steps) -> Expr:
    """Return the data in the type of the weights."""
    from tvm import relax

    return x if w.dtype == np.int8 else emitter.emit(relax.op.astype(x, "int16"))


def _bias_steps(emitter: Emitter, node: ir.Node, unit: npt.NDArray[np.float32]) -> _Ints:
    """Return the bias in steps of x_scale * w_scale, as the reference rounds it."""
    bias, scale = emitter.maybe_array(node, _BIAS), emitter.maybe_array(node, _BIAS_SCALE)
    return np.zeros(1, np.int64) if bias is None else bias_steps(bias, scale, unit).astype(np.int64)


def _requantize(
    emitter: Emitter, node: ir.Node, total: Expr, offset: _Ints, further: Sequence[tuple[int, Expr]] = ()
) -> Expr:
    """`saturate(rint(clip(float32(sum) * factor)) + zero)`; the channels lie last.

    The sum is `total + offset`, plus some multiples of tensors that broadcast.
    """
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

    def formula(t: te.Tensor, f: te.Tensor, o: te.Tensor, *more: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            whole = t(*at) + o(at[-1])
            for (count, _), tensor in zip(further, more, strict=True):
                own = [
                    0 if int(n) == 1 else i
                    for n, i in zip(tensor.shape, at[-len(tensor.shape) :], strict=True)
                ]
                whole = whole + tirx.const(count, "int32") * tensor(*own)
            real = whole.astype("float32") * f(at[-1])
            real = tirx.max(tirx.min(real, tirx.const(high, "float32")), tirx.const(low, "float32"))
            # Beyond this every sum saturates; within it float32 holds the sum exactly.
            edge = [tirx.const(float(bound - zero), "float32") for bound in (lowest, highest)]
            whole = tirx.max(tirx.min(tirx.nearbyint(real), edge[1]), edge[0])
            return (whole.astype("int32") + tirx.const(zero, "int32")).astype(kind)

        return te.compute(t.shape, element, name="requantize")

    tensors = [tensor for _, tensor in further]
    return emitter.compute(
        "requantize", formula, total, emitter.constant(factor), emitter.constant(shift), *tensors
    )


def _unit(emitter: Emitter, node: ir.Node) -> npt.NDArray[np.float32]:
    x, w = emitter.array(node, _X_SCALE), emitter.array(node, _W_SCALE)
    return np.asarray(np.float32(x.reshape(())) * w.reshape(-1).astype(np.float32), np.float32)


def _kind(node: ir.Node) -> str:
    kind = ir.DataType(int_attribute(node, "output_dtype", 2)).numpy().name
    if kind not in ("int8", "uint8"):
        raise refuse(node, f"a result of type {kind}; int8 and uint8 are taken")
    return kind


def _conv(emitter: Emitter, node: ir.Node) -> Last:
    data, w = data_of(emitter, node), _weights(emitter, node, 0)
    x, zero = _signed(emitter, node, data.x)
    total = convolve(emitter, node, w, "int32", replace(data, x=_like(emitter, x, w), fill=zero))
    return Last(_requantize(emitter, node, total, _offset(emitter, node, zero, w, tuple(range(1, w.ndim)))))


def _offset(emitter: Emitter, node: ir.Node, zero: int, w: _Steps, axes: tuple[int, ...]) -> _Ints:
    """Return the bias less what the data's zero point adds; `axes` of the weights are summed."""
    sums = w.astype(np.int64).sum(axis=axes).reshape(-1)
    return np.asarray(_bias_steps(emitter, node, _unit(emitter, node)) - zero * sums, np.int64)


def _conv_transpose(emitter: Emitter, node: ir.Node) -> Last:
    """The data is spread with its zero point between and around, so that every sum has all taps."""
    (x, zero), w = _signed(emitter, node, emitter.image(node, 0)), _weights(emitter, node, 1)
    total = convolve_transposed(emitter, node, _like(emitter, x, w), w, "int32", zero)
    group = int_attribute(node, "group", 1)
    split = w.reshape(group, w.shape[0] // group, *w.shape[1:])
    return Last(
        _requantize(emitter, node, total, _offset(emitter, node, zero, split, (1, *range(3, split.ndim))))
    )


def _product(emitter: Emitter, node: ir.Node) -> Expr:
    """Gemm and MatMul by a constant matrix, or of two computed operands."""
    if constant_expression(node.inputs[_W]) is None:
        return _product_of_data(emitter, node)
    if int_attribute(node, "transA", 0) or emitter.array(node, _W).ndim != 2:
        raise refuse(node, "a product by a constant that is no matrix from the right")
    total, matrix, zero = _sums(emitter, node)
    return _requantize(emitter, node, total, _offset(emitter, node, zero, matrix, (0,)))


def _sums(emitter: Emitter, node: ir.Node) -> tuple[Expr, _Steps, int]:
    """Return the sums of data by a constant matrix, the matrix [K, N] and the data's zero point."""
    turned = bool(int_attribute(node, "transB", 0))
    x, zero = _signed(emitter, node, emitter.operand(node, 0))
    w = _weights(emitter, node, 0 if turned else -1)
    matrix = w.T if turned else w
    total = integer_sums(emitter, x, matrix) if w.dtype == np.int8 else None
    if total is None:
        total = multiply(emitter, _like(emitter, x, w), matrix, "int32")
    return total, matrix, zero


def _real_product(emitter: Emitter, node: ir.Node) -> Expr:
    """`float32(sum) * float32(x_scale * w_scale)`, plus the bias of a Gemm."""
    from tvm import relax, te

    total, matrix, zero = _sums(emitter, node)
    columns = (matrix.shape[1],)
    offset = np.broadcast_to(-zero * matrix.astype(np.int64).sum(axis=0), columns).astype(np.int32)
    unit = np.broadcast_to(_unit(emitter, node), columns)

    def formula(t: te.Tensor, o: te.Tensor, u: te.Tensor) -> te.Tensor:
        return te.compute(
            t.shape, lambda *at: (t(*at) + o(at[-1])).astype("float32") * u(at[-1]), name="real"
        )

    real = emitter.compute("real", formula, total, emitter.constant(offset), emitter.constant(unit))
    bias = emitter.optional(node, _BIAS)
    return real if bias is None else emitter.emit(relax.op.add(real, bias))


def _product_of_data(emitter: Emitter, node: ir.Node) -> Expr:
    """`sum((x - zx) (w - zw))` as `sum(x w) - zw sum(x) - zx sum(w) + n zx zw`: the products stay int8."""
    from tvm import relax

    if node.op_type != "IntegerMatMul" or len(shape_of(emitter.operand(node, _W))) < 2:
        raise refuse(node, "a product by a computed operand other than a plain MatMul")
    x, x_zero = _signed(emitter, node, emitter.operand(node, 0))
    w, w_zero = _signed(emitter, node, emitter.operand(node, _W), _W_ZERO)
    total = emitter.emit(relax.op.matmul(x, w, out_dtype="int32"))
    further = [(-w_zero, _summed(emitter, x, -1))] if w_zero else []
    further += [(-x_zero, _summed(emitter, w, -2))] if x_zero else []
    offset = _bias_steps(emitter, node, _unit(emitter, node)) + shape_of(x)[-1] * x_zero * w_zero
    return _requantize(emitter, node, total, np.asarray(offset, np.int64), further)


def _summed(emitter: Emitter, x: Expr, axis: int) -> Expr:
    from tvm import relax

    wide = emitter.emit(relax.op.astype(x, "int32"))
    return emitter.emit(relax.op.sum(wide, axis=[axis], keepdims=True))


def _spread(
    emitter: Emitter, node: ir.Node, index: int, kind: str, x: Expr, is_last: bool
) -> tuple[Expr, Callable[..., list[tirx.Expr]]]:
    """Return scale or zero point of a Q or DQ node, and where its entry for a place of the data is.

    There is one number, one per channel, or one per block of channels.
    """
    array, rank = emitter.maybe_array(node, index), len(shape_of(x))
    array = np.zeros((), np.int32) if array is None else array
    axis, block = int_attribute(node, "axis", 1) % max(rank, 1), int_attribute(node, "block_size", 0)
    if block and array.ndim:
        return emitter.constant(array.astype(kind)), lambda *at: [
            i // block if own == axis else i for own, i in enumerate(at)
        ]
    where = axis_in_memory(axis, max(rank, 1), is_last)
    table = emitter.constant(array.reshape(-1).astype(kind))
    return table, lambda *at: [at[where] if array.size > 1 else 0]


def _operand(emitter: Emitter, node: ir.Node) -> tuple[Expr, bool]:
    """Return the data as it lies in memory; with scales per block as ONNX has it."""
    if int_attribute(node, "block_size", 0):
        return emitter.operand(node, 0), False
    return emitter.source(node)


def _dequantize(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import te

    x, is_last = _operand(emitter, node)
    scale, scale_at = _spread(emitter, node, 1, "float32", x, is_last)
    zero, zero_at = _spread(emitter, node, 2, "int32", x, is_last)
    to = node.outputs[0].dtype or ir.DataType.FLOAT

    def formula(t: te.Tensor, s: te.Tensor, z: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            whole = t(*at).astype("int32") - z(*zero_at(*at))
            return (whole.astype("float32") * s(*scale_at(*at))).astype(to.numpy().name)

        return te.compute(t.shape, element, name="dequantize")

    return placed(emitter.compute("dequantize", formula, x, scale, zero), is_last)


def _quantize(emitter: Emitter, node: ir.Node) -> Expr | Last:
    from tvm import te, tirx

    found = table_of(node)
    if found is not None:
        source, table = found
        is_last = source in emitter.last and source not in emitter.first
        data = emitter.last[source] if is_last else emitter.plain(source)
        return placed(looked_up(emitter, data, table), is_last)
    x, is_last = _operand(emitter, node)
    scale, scale_at = _spread(emitter, node, 1, "float32", x, is_last)
    zero, zero_at = _spread(emitter, node, 2, "int32", x, is_last)
    kind = (node.outputs[0].dtype or ir.DataType.UINT8).numpy().name
    if kind not in RANGES or "int4" in kind or "int2" in kind:
        raise refuse(node, f"a result of type {kind}")
    lowest, highest = RANGES[kind]

    def formula(t: te.Tensor, s: te.Tensor, z: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            real = t(*at).astype("float32") / s(*scale_at(*at))
            # NaN gives the zero point; beyond 2^20 every value saturates and int32 still holds it.
            real = tirx.if_then_else(tirx.isnan(real), tirx.const(0, "float32"), real)
            edge = tirx.const(2.0**20, "float32")
            whole = tirx.nearbyint(tirx.max(tirx.min(real, edge), -edge)).astype("int32") + z(*zero_at(*at))
            low, high = tirx.const(lowest, "int32"), tirx.const(highest, "int32")
            return tirx.max(tirx.min(whole, high), low).astype(kind)

        return te.compute(t.shape, element, name="quantize")

    return placed(emitter.compute("quantize", formula, x, scale, zero), is_last)


RULES: dict[tuple[str, str], Rule] = {
    (REFERENCE_DOMAIN, "IntegerConv"): _conv,
    (REFERENCE_DOMAIN, "IntegerConvTranspose"): _conv_transpose,
    (REFERENCE_DOMAIN, "IntegerGemm"): _product,
    (REFERENCE_DOMAIN, "IntegerMatMul"): _product,
    (DOMAIN, REAL_PRODUCT): _real_product,
    ("", "QuantizeLinear"): _quantize,
    ("", "DequantizeLinear"): _dequantize,
}
