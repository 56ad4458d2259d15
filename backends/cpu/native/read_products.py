"""Products with weights: Conv, Gemm, MatMul, and the product of two activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, only_user
from . import layers as L
from . import layers_sequence as S
from .quantized import array_of, bias_steps, weights_of
from .read_chain import emit, ending, is_image
from .read_integer import has_whole_bias, integer_activations, integer_rows
from .reader import Reader, Refused, Tail, clipped, covers, input_of, quantized_tail, shape_of, tensor_of
from .real_product import real_product
from .windows import window_of


@dataclass(frozen=True, eq=False)
class _Product:
    """What Conv, Gemm and MatMul have in common: `out = W x + bias` over a window.

    Attributes:
        axis: output-channel axis of the weights as ONNX has them.
        to_conv: brings them to [M, C / group, kh, kw].
        last: the node that gives the float result (the Add behind a MatMul).
    """

    node: ir.Node
    axis: int
    bias: ir.Value | None
    last: ir.Node
    window: L.Window
    group: int = 1
    transposed: bool = False

    def to_conv(self, weight: np.ndarray) -> np.ndarray:
        """Return weights as [M, C / group, kh, kw], contiguous."""
        if weight.ndim == 2:
            weight = (weight.T if self.transposed else weight)[:, :, None, None]
        return np.ascontiguousarray(weight)


def conv(reader: Reader, node: ir.Node) -> None:
    """Read a Conv over images."""
    size, kernel = shape_of(input_of(node, 0), node)[2:], shape_of(input_of(node, 1), node)[2:]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    group = int_attribute(node, "group", 1)
    _product(reader, _Product(node, 0, bias, node, window_of(node, kernel, size), group))


def gemm(reader: Reader, node: ir.Node) -> None:
    """Read a Gemm of vectors."""
    factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or int_attribute(node, "transA", 0):
        raise Refused(node, f"alpha, beta {factors} and transA; the kernels have 1, 1 and no transA")
    transposed = not int_attribute(node, "transB", 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    _product(reader, _Product(node, int(transposed), bias, node, L.Window((1, 1)), transposed=transposed))


def matmul(reader: Reader, node: ir.Node) -> None:
    """Read a MatMul: a matrix by a constant one is a layer of vectors, everything else part of a sequence."""
    left, right = (shape_of(input_of(node, i), node) for i in (0, 1))
    if min(len(left), len(right)) < 2:
        raise Refused(node, f"operands of shapes {left}, {right}; needs two axes or more")
    if reader.is_constant(node.inputs[0]):
        raise Refused(node, "the left operand is constant")
    if not reader.is_constant(node.inputs[1]):
        _activations(reader, node)
    elif len(right) != 2:
        raise Refused(node, f"constant operand of shape {right}; needs a matrix")
    elif len(left) == 2 and is_image(reader, node):
        last, bias = biased(reader, node, right[1])
        _product(reader, _Product(node, 1, bias, last, L.Window((1, 1)), transposed=True))
    else:
        _rows(reader, node, right[1])


def biased(reader: Reader, node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """Return the node that gives the product's result, and the bias that an Add behind it adds."""
    add = only_user(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return node, None
    other = [value for value in add.inputs if value is not node.outputs[0]]
    array = array_of(other[0]) if other and reader.is_constant(other[0]) else None
    if array is None or array.ndim == 0 or not array.size == array.shape[-1] in (1, columns):
        return node, None
    return add, other[0]


def _rows(reader: Reader, node: ir.Node, columns: int) -> None:
    """Read a product along the last axis of a tensor of any rank."""
    last, bias = biased(reader, node, columns)
    if last is not node:
        reader.take(last)
    product = _Product(node, 1, bias, last, L.Window((1, 1)), transposed=True)
    if integer_rows(reader, product):
        return
    weight, added = array_of(node.inputs[1]), array_of(bias)
    if weight is None or weight.dtype != np.float32:
        raise Refused(node, "needs constant float32 weights")
    spread = None if added is None else np.ascontiguousarray(np.broadcast_to(added.reshape(-1), (columns,)))
    x, end = reader.real(node.inputs[0], node), last.outputs[0]
    nodes = (node,) if last is node else (node, last)
    layer = S.Dense((x,), tensor_of(end, node), covers(*nodes), np.asarray(weight, np.float32), spread)
    reader.emit(layer, end)
    reader.sequence.add(layer.output.name)


def _activations(reader: Reader, node: ir.Node) -> None:
    """Read the product of two tensors that both depend on the input."""
    if integer_activations(reader, node):
        return
    operands = tuple(reader.real(value, node) for value in node.inputs)
    end = ending(node.outputs[0], node)
    emit(reader, node, end, S.MatMul(operands, end.tensor, covers(node, *end.nodes)))


def _product(reader: Reader, product: _Product) -> None:
    if product.last is not product.node:
        reader.take(product.last)
    layer, tail = _integer(reader, product) or real_product(reader, product) or _float(reader, product)
    reader.take(*tail.nodes)
    reader.emit(layer, tail.value)


def _nodes(product: _Product, tail: Tail) -> tuple[str, ...]:
    extra = () if product.last is product.node else (product.last,)
    return covers(product.node, *extra, *tail.nodes)


def _integer(reader: Reader, product: _Product) -> tuple[L.Layer, Tail] | None:
    """Return the quantized layer, or None where the reference computes in float."""
    x = reader.quantized(product.node.inputs[0])
    tail = quantized_tail(product.last.outputs[0])
    weights = weights_of(product.node.inputs[1], product.axis)
    if x is None or x.quant is None or tail is None or tail.quant is None or isinstance(weights, str):
        return None
    if not has_whole_bias(product):
        return None
    weight = product.to_conv(weights.q)
    unit = np.asarray(np.float32(x.quant.scale) * weights.scale, np.float32)
    bias = bias_steps(product.bias, unit, weight.shape[0])
    if isinstance(bias, str):
        return None
    factor = np.ascontiguousarray(np.broadcast_to(unit / np.float32(tail.quant.scale), weight.shape[:1]))
    low, high = tail.limits
    output = tensor_of(tail.value, product.node, tail.quant)
    return L.IntLayer(
        (x,), output, _nodes(product, tail), weight, bias, factor, product.window, product.group, low, high
    ), tail


def _float(reader: Reader, product: _Product) -> tuple[L.Layer, Tail]:
    node = product.node
    x, tail = reader.real(node.inputs[0], node), clipped(product.last.outputs[0])
    weight, bias = array_of(node.inputs[1]), array_of(product.bias)
    if weight is None or weight.dtype != np.float32:
        raise Refused(node, "needs constant float32 weights")
    if product.bias is not None and bias is None:
        raise Refused(node, "the bias is not constant")
    channels = product.to_conv(weight).shape[0]
    spread = np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1), (channels,))
    return L.FloatLayer(
        (x,), tensor_of(tail.value, node), _nodes(product, tail), product.to_conv(weight),
        np.ascontiguousarray(spread, np.float32), product.window, product.group, tail.low, tail.high,
    ), tail  # fmt: skip
