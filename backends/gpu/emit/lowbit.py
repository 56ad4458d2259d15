"""Products by weights of few bits and activations in floats: found in the graph, emitted as one function.

    DequantizeLinear(w) | Quant(w) [-> Cast] [-> Transpose] -> MatMul | Gemm [-> Add a bias] [-> Relu | Gelu]

Weights keep their codes of 2, 4 or 8 bits in memory; scales lie per row or per block of 32 columns or a
multiple. Weights that do not fit that are dequantized here, once, and the product is one of floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.quant import dequantize_array, quantize_array, view
from ....compiler.ir.walk import Names, int_attribute, ints_attribute, only_user
from ....compiler.ops.common import float_attribute, string_attribute
from ....compiler.ops.constants import constant_expression, constant_of
from ..schedules import lowbit_product
from ..schedules.lowbit_written import CHUNK
from .lowbit_written import DOMAIN, emit_written, finished, initializer, products, put_for
from .walk import Emitter, Rule, dtype_of, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

OP = "LowbitProduct"

_REALS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_WIDTHS = (2, 4, 8)
_X, _CODES, _SCALE, _ZERO, _BIAS = range(5)

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights [N, K]: `(codes - zero) * scale`.

    Attributes:
        codes: from 0 on.
        scale: [N, blocks].
        zero: [N, blocks].
        bits: of the codes.
        block: columns per scale, 0 where there is one scale per row.
    """

    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.number]
    zero: npt.NDArray[np.uint8]
    bits: int
    block: int


def use_lowbit_products(model: ir.Model) -> int:
    """Replace products by weights of few bits in place; returns how many.

    Weights in blocks that no product takes as they are become floats.
    """
    names, replaced = Names(model), 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
            replaced += _replace(node, names)
    _write_out(model, names)
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


def _replace(node: ir.Node, names: Names) -> bool:
    weights = _weights(node)
    bias = None if weights is None else gemm_bias(node, len(weights.codes))
    if weights is None or bias is None:
        return False
    last, bias, activation = tail_of(node, bias, len(weights.codes))
    uniform = bool((weights.zero == weights.zero.flat[0]).all())
    arrays = (weights.codes, weights.scale, None if uniform else weights.zero, bias if bias.size else None)
    base, graph = last.outputs[0].name or "product", node.graph
    assert graph is not None, "a product is in no graph"
    inputs = [initializer(graph, names.fresh(f"{base}_lowbit"), array) for array in arrays]
    attributes = {
        "bits": weights.bits, "block": weights.block, "activation": activation,
        "zero": int(weights.zero.flat[0]) if uniform else -1,
    }  # fmt: skip
    put_for(last, OP, [node.inputs[0], *inputs], attributes, node.name)
    return True


# --- weights ----------------------------------------------------------------------------------------


def _weights(node: ir.Node) -> _Weights | None:
    """Return the weights of a product that the kernel takes."""
    x, weight = node.inputs[:2]
    is_gemm = node.op_type == "Gemm"
    if x is None or x.dtype not in _REALS or x.shape is None or constant_of(x) is not None:
        return None
    if is_gemm and (int_attribute(node, "transA", 0) or float_attribute(node, "alpha", 1.0) != 1.0):
        return None
    value, turned = _source(weight, bool(is_gemm and int_attribute(node, "transB", 0)))
    found = _stored(value)
    if found is None:
        return None
    q, scale, zero, axis, block = found
    out = 0 if turned else 1
    per_row = scale.size == 1 or (axis == out and not block)
    if q.ndim != 2 or not (per_row or (axis == 1 - out and block and block % CHUNK == 0)):
        return None
    rows, depth = (q if turned else q.T).shape
    if depth % 8 or depth != x.shape[-1]:
        return None
    parts = [_by_row(array, rows, turned or scale.size == 1, per_row) for array in (scale, zero)]
    return _fitted(q if turned else q.T, parts[0], parts[1].astype(np.int64), 0 if per_row else block)


def _by_row(array: npt.NDArray[np.number], rows: int, turned: bool, per_row: bool) -> npt.NDArray[np.number]:
    if per_row:
        return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (rows,))[:, None])
    return np.ascontiguousarray(array if turned else array.T)


def _source(value: ir.Value | None, turned: bool) -> tuple[ir.Value | None, bool]:
    """Return the quantized value behind casts and transpositions, and whether it is [N, K]."""
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if node.op_type == "Transpose" and tuple(ints_attribute(node, "perm", (1, 0))) == (1, 0):
            turned = not turned
        elif node.op_type != "Cast" or value.dtype not in _REALS:
            break
        value = node.inputs[0]
    return value, turned


def _stored(
    value: ir.Value | None,
) -> tuple[_Ints, npt.NDArray[np.number], npt.NDArray[np.number], int | None, int] | None:
    """Return integers, scale, zero point, their axis and block, of a constant of at most 8 bits."""
    params, node = view(value), None if value is None else value.producer()
    if params is None or node is None or params.spec.bits > 8 or params.zero_point.dtype.kind == "f":
        return None
    data = constant_of(node.inputs[0])
    if data is None:
        data = constant_expression(node.inputs[0])
    if data is None:
        return None
    whole = data if node.op_type == "DequantizeLinear" else quantize_array(data, params)
    return whole.astype(np.int64), params.scale, params.zero_point, params.spec.axis, params.spec.block_size


def _fitted(q: _Ints, scale: npt.NDArray[np.number], zero: _Ints, block: int) -> _Weights | None:
    """Store the integers in the fewest bits that hold them and their zero points."""
    low, high = min(int(q.min()), int(zero.min())), max(int(q.max()), int(zero.max()))
    bits = next((width for width in _WIDTHS if high - low < 1 << width), None)
    if bits is None or str(scale.dtype) not in ("float32", "float16", "bfloat16"):
        return None
    return _Weights((q - low).astype(np.uint8), scale, (zero - low).astype(np.uint8), bits, block)


def _write_out(model: ir.Model, names: Names) -> None:
    """Dequantize what is left of weights in blocks."""
    for node in list(model.graph):
        if (node.domain, node.op_type) != ("", "DequantizeLinear") or not node.outputs[0].consumers():
            continue
        value, data, params = node.outputs[0], constant_of(node.inputs[0]), view(node.outputs[0])
        if data is None or params is None or not int_attribute(node, "block_size", 0):
            continue
        new = initializer(model.graph, names.fresh(f"{value.name}_real"), dequantize_array(data, params))
        assert new is not None, "an array became no value"
        value.replace_all_uses_with(new)


# --- what follows -----------------------------------------------------------------------------------


def gemm_bias(node: ir.Node, rows: int) -> npt.NDArray[np.float32] | None:
    """Return what a product adds itself, of size 0 where it is nothing; None where it is no constant."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(0, np.float32)
    array = constant_expression(value)
    factor = float_attribute(node, "beta", 1.0)
    if array is None or array.size != (array.shape[-1] if array.ndim else 1) or array.size not in (1, rows):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float32) * np.float32(factor), (rows,))


def tail_of(
    node: ir.Node, bias: npt.NDArray[np.float32], rows: int
) -> tuple[ir.Node, npt.NDArray[np.float32], int]:
    """Return the last node that the kernel takes in, the bias with what nodes add, and the activation."""
    last, after = node, only_user(node.outputs[0])
    if not bias.size and after is not None and after.op_type == "Add" and after.domain == "":
        other = after.inputs[1] if after.inputs[0] is node.outputs[0] else after.inputs[0]
        array = constant_expression(other)
        if (
            array is not None
            and array.size == (array.shape[-1] if array.ndim else 1)
            and array.size in (1, rows)
        ):
            bias = np.broadcast_to(array.reshape(-1).astype(np.float32), (rows,))
            last, after = after, only_user(after.outputs[0])
    activation = _activation(after)
    if after is not None and activation:
        last = after
    return last, bias, activation


def _activation(node: ir.Node | None) -> int:
    """Return the number of an activation in the kernels, 0 for none of theirs."""
    if node is None or node.domain != "":
        return 0
    if node.op_type == "Gelu":
        return 3 if string_attribute(node, "approximate", "none") == "tanh" else 2
    return int(node.op_type == "Relu")


# --- emission ---------------------------------------------------------------------------------------


def _product(emitter: Emitter, node: ir.Node) -> Expr:
    x = emitter.operand(node, _X)
    codes, scale = emitter.array(node, _CODES), emitter.array(node, _SCALE)
    zero, bias = emitter.maybe_array(node, _ZERO), emitter.maybe_array(node, _BIAS)
    (rows, depth), sizes = codes.shape, shape_of(x)
    shape = lowbit_product.Shape(
        prod(sizes[:-1]), rows, depth, int_attribute(node, "bits", 4), int_attribute(node, "block", 0),
        int_attribute(node, "zero", 0), str(scale.dtype), dtype_of(x), int_attribute(node, "activation", 0),
        bias is not None,
    )  # fmt: skip
    packed = lowbit_product.pack(codes.astype(np.uint8), shape.bits)
    given = [packed, scale, *(array for array in (zero, bias) if array is not None)]
    return emit_written(emitter, f"w{shape.bits}_product", "product", shape, _Formula(shape), [x], given)


@dataclass(frozen=True)
class _Formula:
    """What the kernel computes, from the weights as they are packed."""

    shape: lowbit_product.Shape

    def __call__(self, x: te.Tensor, w: te.Tensor, scale: te.Tensor, *more: te.Tensor) -> te.Tensor:
        from tvm import te

        shape, zero = self.shape, more[0] if self.shape.zero < 0 else None
        bias = more[-1] if shape.bias else None

        def weight(n: tirx.Var, k: tirx.Var) -> tirx.Expr:
            block = k // shape.block if shape.block else 0
            z = shape.zero if zero is None else zero(n, block).astype("int32")
            code = (self._code(w, n, k).astype("int32") - z).astype("float32")
            return code * scale(n, block).astype("float32")

        weights = te.compute((shape.n, shape.k), weight, name="weights")
        return finished(products(x, weights, "float32"), bias, shape.activation, shape.data)

    def _code(self, w: te.Tensor, n: tirx.Var, k: tirx.Var) -> tirx.Expr:
        """Return the code of row n, column k; see `lowbit_product.pack`."""
        from tvm import tirx

        bits = self.shape.bits
        chunks, per_word = 8 // bits, 16 // bits
        lane = n % 8 * 4 + k % 32 // 8
        pair = k // 32 % chunks * 8 + k % 8 // 4 * 4 + k % 4 // 2 * 2 + n % 16 // 8
        word = w(n // 16, k // (32 * chunks), lane, pair // per_word)
        shift = pair % per_word * bits + k % 2 * 16
        return (word >> shift.astype("uint32")) & tirx.const((1 << bits) - 1, "uint32")


RULES: dict[tuple[str, str], Rule] = {(DOMAIN, OP): _product}
