"""Reads an `ir.Model` into layers: one rule per operator, a reason for everything that no rule takes.

What has quantizers around it as docs/semantics.md describes becomes integer layers; everything else is read
in float, with weights dequantized here. One deviation, of a step at ties: a quantized MatMul whose bias is a
separate Add is computed like a Gemm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute, only_user, producer
from ....compiler.ops import dynamic_blocks
from ....compiler.ops.common import PARED_DOMAIN, float_attribute
from ....compiler.ops.constants import constant_expression
from . import layers as L
from .quantized import array_of, quant_of
from .read_binary import with_bits
from .read_blocks import in_blocks, run_time_blocks
from .read_chain import FORMULAS, chain, either
from .read_conv1d import over_one_axis
from .read_lowbit import lowbit
from .read_moves import (
    cast,
    depth_to_space,
    expand,
    gather,
    join,
    marked,
    pad,
    resize,
    slice_,
    space_to_depth,
    split,
    tile,
)
from .read_norms import layer_norm, lp_norm, reduce, softmax, square
from .read_products import conv, gemm, matmul
from .read_recurrent import recurrent
from .read_scan import scan
from .reader import (
    Reader,
    Refused,
    Rule,
    Tail,
    any_tensor,
    clip_of,
    clipped,
    covers,
    input_of,
    quantized_tail,
    shape_of,
    tensor_of,
)
from .windows import window_of


@dataclass(frozen=True)
class Reading:
    """A whole model in layers.

    Attributes:
        layers: in an order in which they can run.
        inputs, outputs: tensors of the graph's ports, in order. A port's shape is the ONNX one.
        refused: nodes that no rule took; when there are any, the layers are incomplete.
    """

    layers: tuple[L.Layer, ...]
    inputs: tuple[L.Tensor, ...]
    outputs: tuple[L.Tensor, ...]
    refused: tuple[tuple[ir.Node, str], ...]


def read(model: ir.Model) -> Reading:
    """Read a model with fixed shapes; never raises for an operator, see `Reading.refused`."""
    reader = Reader(model, with_bits(RULES))
    for node in model.graph:
        reader.visit(node)
    outputs = () if reader.refused else tuple(reader.output(value) for value in model.graph.outputs)
    inputs = tuple(reader.tensors[value] for value in model.graph.inputs)
    return Reading(tuple(reader.layers), inputs, outputs, tuple(reader.refused))


# --- pooling ----------------------------------------------------------------------------------------


def _pool(reader: Reader, node: ir.Node) -> None:
    kind = "max" if "Max" in node.op_type else "average"
    shape = shape_of(input_of(node, 0), node)
    if len(shape) != 4 or len(node.outputs) > 1:
        raise Refused(node, f"input of shape {shape} with {len(node.outputs)} outputs; needs one image")
    size = shape[2:]
    spread = "Global" in node.op_type or node.op_type == "ReduceMean"
    window = (
        L.Window((size[0], size[1]))
        if spread
        else window_of(node, ints_attribute(node, "kernel_shape"), size)
    )
    _emit_pool(reader, node, kind, window)


def _emit_pool(reader: Reader, node: ir.Node, kind: str, window: L.Window) -> None:
    count_pads = bool(int_attribute(node, "count_include_pad", 0))
    x, tail = reader.quantized(node.inputs[0]), quantized_tail(node.outputs[0])
    if x is None or tail is None or (kind == "max" and tail.quant != x.quant) or _clips(tail):
        x, tail = reader.real(node.inputs[0], node), Tail(node.outputs[0])
    reader.take(*tail.nodes)
    output = tensor_of(tail.value, node, tail.quant)
    reader.emit(L.Pool((x,), output, covers(node, *tail.nodes), kind, window, count_pads), tail.value)


def _clips(tail: Tail) -> bool:
    return tail.low != -np.inf or tail.high != np.inf


def _reduce_mean(reader: Reader, node: ir.Node) -> None:
    axes = constant_expression(node.inputs[1]) if len(node.inputs) > 1 else None
    given = ints_attribute(node, "axes") if axes is None else tuple(int(a) for a in axes.reshape(-1))
    rank = len(shape_of(input_of(node, 0), node))
    if rank != 4 or {axis % rank for axis in given} != {2, 3}:
        raise Refused(node, f"mean over axes {given}; needs height and width of an image")
    _pool(reader, node)


# --- elementwise ------------------------------------------------------------------------------------


def _add(reader: Reader, node: ir.Node) -> None:
    constants = [value for value in node.inputs if reader.is_constant(value)]
    if constants:
        return _affine(reader, node)
    shapes = {shape_of(input_of(node, i), node) for i in range(len(node.inputs))}
    if len(shapes) != 1 or len(node.inputs) != 2:
        raise Refused(node, f"operands of shapes {sorted(shapes)}; needs two of one shape")
    pair = [reader.quantized(value) for value in node.inputs]
    tail = quantized_tail(node.outputs[0])
    if tail is None or pair[0] is None or pair[1] is None:
        tail = clipped(node.outputs[0])
        pair = [reader.real(value, node) for value in node.inputs]
    reader.take(*tail.nodes)
    output = tensor_of(tail.value, node, tail.quant)
    operands = tuple(x for x in pair if x is not None)
    reader.emit(L.Add(operands, output, covers(node, *tail.nodes), tail.low, tail.high), tail.value)
    return None


def _affine(reader: Reader, node: ir.Node) -> None:
    """Read Mul, Add, Sub or Div with a constant per channel."""
    first_is_data = not reader.is_constant(node.inputs[0])
    data, other = input_of(node, 0 if first_is_data else 1), input_of(node, 1 if first_is_data else 0)
    array, shape = array_of(other), shape_of(data, node)
    if array is None or array.dtype != np.float32 or not reader.is_constant(other):
        raise Refused(node, "needs one operand that is a constant of float32")
    per_channel = _per_channel(array, shape)
    if per_channel is None or (node.op_type == "Div" or (node.op_type == "Sub" and not first_is_data)):
        raise Refused(node, f"a constant of shape {array.shape} on {shape}; needs one number per channel")
    one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    scale, shift = {
        "Mul": (per_channel, zero), "Add": (one, per_channel), "Sub": (one, -per_channel)
    }[node.op_type]  # fmt: skip
    _emit_affine(reader, node, data, scale, shift)


def _per_channel(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    if array.size == 1:
        return np.full(shape[1], array.reshape(()), np.float32)
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if len(full) != len(shape) or array.size != shape[1] or full[1] != shape[1]:
        return None
    return np.ascontiguousarray(array.reshape(-1), np.float32)


def _emit_affine(reader: Reader, node: ir.Node, data: ir.Value, scale: np.ndarray, shift: np.ndarray) -> None:
    x, tail = reader.real(data, node), clipped(node.outputs[0])
    reader.take(*tail.nodes)
    output = tensor_of(tail.value, node)
    reader.emit(
        L.Affine((x,), output, covers(node, *tail.nodes), scale, shift, tail.low, tail.high), tail.value
    )


def _batchnorm(reader: Reader, node: ir.Node) -> None:
    arrays = [array_of(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays) or len(node.outputs) > 1:
        raise Refused(node, "needs constant statistics and one output")
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    epsilon = float_attribute(node, "epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    shift = beta - mean * scale
    _emit_affine(reader, node, input_of(node, 0), scale.astype(np.float32), shift.astype(np.float32))


def _clip(reader: Reader, node: ir.Node) -> None:
    limits = clip_of(node)
    if limits is None:
        raise Refused(node, "the limits are not constant")
    x = reader.real(node.inputs[0], node)
    reader.emit(L.Clip((x,), tensor_of(node.outputs[0], node), covers(node), *limits), node.outputs[0])


# --- everything else --------------------------------------------------------------------------------


def _concat(reader: Reader, node: ir.Node) -> None:
    rank = len(shape_of(node.outputs[0], node))
    if int_attribute(node, "axis", 1) % rank != 1 or any(reader.is_constant(v) for v in node.inputs):
        raise Refused(node, "joins another axis than the channels, or constants")
    parts, tail = [reader.quantized(value) for value in node.inputs], quantized_tail(node.outputs[0])
    if tail is None or _clips(tail) or any(part is None for part in parts):
        tail = Tail(node.outputs[0])
        parts = [reader.real(value, node) for value in node.inputs]
    reader.take(*tail.nodes)
    output = tensor_of(tail.value, node, tail.quant)
    reader.emit(L.Concat(tuple(p for p in parts if p), output, covers(node, *tail.nodes)), tail.value)


def _softmax(reader: Reader, node: ir.Node) -> None:
    shape = shape_of(node.outputs[0], node)
    axis = int_attribute(node, "axis", -1) % len(shape)
    if axis != 1 or any(size != 1 for size in shape[2:]):
        raise Refused(node, f"softmax over axis {axis} of {shape}; needs the channels of a vector")
    x = reader.real(node.inputs[0], node)
    reader.emit(L.Softmax((x,), tensor_of(node.outputs[0], node), covers(node)), node.outputs[0])


def _lrn(reader: Reader, node: ir.Node) -> None:
    x = reader.real(node.inputs[0], node)
    alpha, beta, bias = (
        float_attribute(node, *pair) for pair in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    output = tensor_of(node.outputs[0], node)
    size = int_attribute(node, "size", 1)
    reader.emit(L.Lrn((x,), output, covers(node), size, alpha, beta, bias), node.outputs[0])


def _reshape(reader: Reader, node: ir.Node) -> None:
    x, tail = any_tensor(reader, node)
    reader.take(*tail.nodes)
    output = tensor_of(tail.value, node, tail.quant)
    reader.emit(L.Reshape((x,), output, covers(node, *tail.nodes)), tail.value)


def _transpose(reader: Reader, node: ir.Node) -> None:
    x, tail = any_tensor(reader, node)
    reader.take(*tail.nodes)
    perm = ints_attribute(node, "perm", tuple(reversed(range(len(x.shape)))))
    reader.emit(
        L.Transpose((x,), tensor_of(tail.value, node, tail.quant), covers(node, *tail.nodes), perm),
        tail.value,
    )


def _quantize(reader: Reader, node: ir.Node) -> None:
    tail = quantized_tail(input_of(node, 0)) if only_user(input_of(node, 0)) is node else None
    quant = tail.quant if tail is not None else _own_quant(node)
    x = reader.quantized(node.inputs[0]) or reader.real(node.inputs[0], node)
    reader.emit(L.Convert((x,), tensor_of(node.outputs[0], node, quant), covers(node)), node.outputs[0])


def _own_quant(node: ir.Node) -> L.Quant:
    quant = quant_of(node, node.outputs[0].dtype)
    if isinstance(quant, str):
        raise Refused(node, quant)
    return quant


def _dequantize(reader: Reader, node: ir.Node) -> None:
    """Check the parameters; layers read what stands before it, or `Reader.real` converts."""
    if producer(node.inputs[0], dynamic_blocks.OP, PARED_DOMAIN) is not None:
        return  # read by products
    if reader.quantized(node.outputs[0]) is None:
        dtype = None if node.inputs[0] is None else node.inputs[0].dtype
        reason = quant_of(node, dtype)
        raise Refused(node, reason if isinstance(reason, str) else "its input is not a known tensor")
    if node.outputs[0].is_graph_output():
        reader.real(node.outputs[0], node)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(FORMULAS, chain),
    "Add": either(_add, chain),
    "AveragePool": _pool,
    "BatchNormalization": _batchnorm,
    "Cast": cast,
    "Clip": either(_clip, chain),
    "Concat": either(_concat, join),
    "Conv": over_one_axis(conv),
    "DepthToSpace": depth_to_space,
    "DequantizeLinear": _dequantize,
    "Dropout": marked(_reshape),
    dynamic_blocks.OP: run_time_blocks,
    "Expand": expand,
    "Flatten": marked(_reshape),
    "Gather": gather,
    "GRU": recurrent,
    "Gemm": in_blocks(lowbit(gemm)),
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "Identity": marked(_reshape),
    "LRN": _lrn,
    "LSTM": recurrent,
    "LayerNormalization": layer_norm,
    "LogSoftmax": softmax,
    "LpNormalization": lp_norm,
    "MatMul": in_blocks(lowbit(matmul)),
    "MaxPool": _pool,
    "Mul": either(_affine, square),
    "Pad": pad,
    "Pow": square,
    "QuantizeLinear": _quantize,
    "RMSNormalization": layer_norm,
    "RNN": recurrent,
    "ReduceL1": reduce,
    "ReduceL2": reduce,
    "ReduceMax": reduce,
    "ReduceMean": either(_reduce_mean, reduce),
    "ReduceMin": reduce,
    "ReduceProd": reduce,
    "ReduceSum": reduce,
    "ReduceSumSquare": reduce,
    "Relu": either(_clip, chain),
    "Reshape": marked(_reshape),
    "Resize": resize,
    "Scan": scan,
    "Slice": slice_,
    "Softmax": either(_softmax, softmax),
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": marked(_reshape),
    "Sub": either(_affine, chain),
    "Sum": either(_add, chain),
    "Tile": tile,
    "Transpose": marked(_transpose),
    "Unsqueeze": marked(_reshape),
}
