"""Quantized products of rows: with weights, a quantized bias behind them, or between two activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import only_user
from . import layers as L
from . import layers_sequence as S
from .quantized import array_of, bias_steps, is_int32, is_plain, weights_of
from .read_chain import End, emit, ending
from .reader import Reader, Tail, covers, quantized_tail, tensor_of
from .real_product import Product


def integer_rows(reader: Reader, product: Product) -> bool:
    """Read a product of quantized rows with int8 weights; False where it is none."""
    x, weights = reader.quantized(product.node.inputs[0]), weights_of(product.node.inputs[1], 1)
    if x is None or x.quant is None or isinstance(weights, str):
        return False
    unit = np.asarray(np.float32(x.quant.scale) * weights.scale, np.float32)
    columns, tail = weights.q.shape[1], quantized_tail(product.last.outputs[0])
    whole = tail is not None and has_whole_bias(product)
    steps = bias_steps(product.bias, unit, columns) if whole else ""
    if tail is None or tail.quant is None or isinstance(steps, str):
        return _real_rows(reader, product, x, weights.q, unit)
    factor = np.asarray(unit / np.float32(tail.quant.scale), np.float32)
    end = _whole_end(product.node, tail)
    added = _added(tail, columns)
    if added is not None:
        end = End(added.end.value, (*end.nodes, *added.nodes), added.end.tensor)
    low, high = tail.limits
    layer = S.IntProduct(
        (x,), end.tensor, _covered(product, end.nodes), weights.q, steps, factor, tail.quant, low, high,
        None if added is None else added.array,
    )  # fmt: skip
    emit(reader, product.node, end, layer)
    return True


def has_whole_bias(product: Product) -> bool:
    """Say whether a bias keeps the sums whole: an Add behind a MatMul does when it adds an int32 constant."""
    return product.last is product.node or is_int32(product.bias)


def _whole_end(node: ir.Node, tail: Tail) -> End:
    return End(tail.value, tail.nodes, tensor_of(tail.value, node, tail.quant))


def _covered(product: Product, nodes: tuple[ir.Node, ...]) -> tuple[str, ...]:
    extra = () if product.last is product.node else (product.last,)
    return covers(product.node, *extra, *nodes)


def _real_rows(reader: Reader, product: Product, x: L.Tensor, weight: np.ndarray, unit: L.Floats) -> bool:
    """Read a product whose result stays real: whole sums, scaled once."""
    bias = array_of(product.bias)
    if product.bias is not None and (bias is None or bias.dtype != np.float32):
        return False
    addend = None
    if bias is not None:
        addend = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), weight.shape[1:]), np.float32)
    end = ending(product.last.outputs[0], product.node)
    layer = S.IntProduct(
        (x,), end.tensor, _covered(product, end.nodes), weight, None, unit, None, addend=addend
    )
    emit(reader, product.node, end, layer)
    return True


@dataclass(frozen=True, eq=False)
class _Added:
    """A quantized Add of a constant: its nodes, the constant, where it ends."""

    nodes: tuple[ir.Node, ...]
    array: L.Floats
    end: End


def _added(tail: Tail, columns: int) -> _Added | None:
    """Follow DequantizeLinear, Add of a constant vector, QuantizeLinear, each alone behind the other."""
    dequantize = only_user(tail.value)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or not is_plain(dequantize):
        return None
    add = only_user(dequantize.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return None
    arrays = [array_of(value) for value in add.inputs if value is not dequantize.outputs[0]]
    if len(arrays) != 1 or arrays[0] is None or arrays[0].dtype != np.float32:
        return None
    array, end = arrays[0], ending(add.outputs[0], add)
    if not end.nodes or array.ndim == 0 or not array.size == array.shape[-1] == columns:
        return None
    return _Added((dequantize, add, *end.nodes), np.ascontiguousarray(array.reshape(-1)), end)


def integer_activations(reader: Reader, node: ir.Node) -> bool:
    """Read the product of two quantized activations; False where it is none."""
    x, w = (reader.quantized(value) for value in node.inputs)
    if x is None or w is None or x.quant is None or w.quant is None:
        return False
    unit = np.array([np.float32(x.quant.scale) * np.float32(w.quant.scale)], np.float32)
    tail = quantized_tail(node.outputs[0])
    if tail is None or tail.quant is None:
        end = ending(node.outputs[0], node)
        layer = S.IntProduct((x, w), end.tensor, covers(node, *end.nodes), None, None, unit, None)
    else:
        end, (low, high) = _whole_end(node, tail), tail.limits
        factor = np.asarray(unit / np.float32(tail.quant.scale), np.float32)
        nodes = covers(node, *end.nodes)
        layer = S.IntProduct((x, w), end.tensor, nodes, None, None, factor, tail.quant, low, high)
    emit(reader, node, end, layer)
    return True
