"""Convolutions over one axis in float: images of one row, between two reshapes that cost a copy at most."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, ints_attribute
from . import layers as L
from .quantized import array_of
from .reader import Reader, Refused, Rule, clipped, covers, input_of, quantized_tail, shape_of, tensor_of


def over_one_axis(otherwise: Rule) -> Rule:
    """Return a rule for Conv that reads those of rank 3; all others are read by `otherwise`."""

    def rule(reader: Reader, node: ir.Node) -> None:
        if len(shape_of(input_of(node, 0), node)) == 3:
            _conv(reader, node)
        else:
            otherwise(reader, node)

    return rule


def _conv(reader: Reader, node: ir.Node) -> None:
    tail = clipped(node.outputs[0])
    if reader.quantized(node.inputs[0]) is not None and quantized_tail(node.outputs[0]) is not None:
        raise Refused(node, "quantized, over one axis; the integer kernels have images")
    x = reader.real(node.inputs[0], node)
    weight, bias = array_of(node.inputs[1]), _bias(node)
    if weight is None or weight.dtype != np.float32:
        raise Refused(node, "needs constant float32 weights")
    y = tensor_of(tail.value, node)
    reader.take(*tail.nodes)
    (n, c, length), (_, m, out) = x.shape, y.shape
    image = L.Tensor(f"{y.name}_row_in", (n, c, 1, length))
    made = L.Tensor(f"{y.name}_row", (n, m, 1, out))
    group, names = int_attribute(node, "group", 1), covers(node, *tail.nodes)
    wide = np.ascontiguousarray(weight[:, :, None, :], np.float32)
    added = np.zeros(m, np.float32) if bias is None else bias
    layer = L.FloatLayer(
        (image,), made, names, wide, added, _window(node, weight.shape[2]), group, tail.low, tail.high
    )
    reader.layers += [L.Reshape((x,), image, names), layer]
    reader.emit(L.Reshape((made,), y, names), tail.value)
    reader.sequence.add(y.name)


def _bias(node: ir.Node) -> L.Floats | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = array_of(value)
    if value is not None and (array is None or array.dtype != np.float32):
        raise Refused(node, "the bias is not constant")
    return None if array is None else np.asarray(array, np.float32)


def _window(node: ir.Node, kernel: int) -> L.Window:
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID"):
        raise Refused(node, f"auto_pad {mode} over one axis; give pads")
    left, right = ints_attribute(node, "pads", (0, 0)) if mode == "NOTSET" else (0, 0)
    (stride,), (dilation,) = ints_attribute(node, "strides", (1,)), ints_attribute(node, "dilations", (1,))
    return L.Window((1, kernel), (1, stride), (0, left, 0, right), (1, dilation))
