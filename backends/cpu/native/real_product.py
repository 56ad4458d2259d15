"""Quantized products whose result stays in float: read as integers, multiplied by the scales once at the end.

A network's last Gemm has no quantizer behind it. The reference dequantizes both sides and computes in float;
the sum of products of whole numbers, times x_scale * w_scale, is the same number but for rounding, well
within the bound that verification derives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from . import layers as L
from .quantized import array_of, weights_of
from .reader import Reader, Tail, clipped, covers

# Beyond so many rows the float kernels reuse what they have dequantized.
MOST_ROWS = 3


@dataclass(frozen=True, eq=False)
class RealProduct(L.Layer):
    """Quantized matrix product with a float result: `clip(float32(sum) * unit + bias, low, high)`.

    Attributes:
        weight: int8 [M, K].
        bias: float32 [M].
        unit: float32 [M], x_scale * w_scale.
        low, high: clipping at the end.
    """

    weight: npt.NDArray[np.int8]
    bias: L.Floats
    unit: L.Floats
    low: float = -np.inf
    high: float = np.inf


class Product(Protocol):
    """A Conv, Gemm or MatMul as it was read: weights with their output axis, constant bias, last node."""

    @property
    def node(self) -> ir.Node:
        """The operator."""

    @property
    def last(self) -> ir.Node:
        """The node that gives the float result (the Add behind a MatMul)."""

    @property
    def axis(self) -> int:
        """Output axis of the weights."""

    @property
    def bias(self) -> ir.Value | None:
        """A constant, or None."""


def real_product(reader: Reader, product: Product) -> tuple[L.Layer, Tail] | None:
    """Return the layer of a Gemm or MatMul of few rows, None where something else takes it."""
    node = product.node
    x = reader.quantized(node.inputs[0]) if node.op_type != "Conv" else None
    weights, real = weights_of(node.inputs[1], product.axis), array_of(product.bias)
    if x is None or x.quant is None or isinstance(weights, str) or len(x.shape) != 2:
        return None
    if x.shape[0] > MOST_ROWS or (product.bias is not None and real is None):
        return None
    weight = weights.q.T if product.axis == 1 else weights.q
    outputs, tail = weight.shape[0], clipped(product.last.outputs[0])
    bias = np.zeros(1) if real is None else real.reshape(-1)
    nodes = covers(node, None if product.last is node else product.last, *tail.nodes)
    return RealProduct(
        (x,), L.Tensor(tail.value.name or "", (x.shape[0], outputs)), nodes, np.ascontiguousarray(weight),
        _spread(bias, outputs), _spread(np.float32(x.quant.scale) * weights.scale, outputs), tail.low,
        tail.high,
    ), tail  # fmt: skip


def _spread(values: npt.NDArray[np.generic], size: int) -> L.Floats:
    return np.ascontiguousarray(np.broadcast_to(values, (size,)), np.float32)
