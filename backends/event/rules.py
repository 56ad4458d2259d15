"""The rules of the reader, one per operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...compiler.ir.quant import QONNX_DOMAIN
from ...compiler.ir.walk import int_attribute, ints_attribute
from ...compiler.ops.common import float_attribute
from ...compiler.ops.constants import constant_expression
from .graph import (
    Connection,
    Conv,
    Dense,
    MaxPool,
    SumPool,
    Synapses,
    Window,
)
from .ladders import Quantizer, digits
from .operands import (
    Operand,
    Refused,
    bias_steps,
    exact_values,
    quantizer_of,
    reals_of,
    weights_of,
    window_of,
)
from .read import Reader, Rule
from .rules_sums import add, as_sum, clip, concat, exact_sum, label, multiply, normalize, output_name, view
from .terms import Floats, Raw, Real, Soft, Sum, Whole

_INTEGER_INPUTS = {"UINT8": (0, 255), "INT8": (-128, 127)}


# --- quantizers -------------------------------------------------------------------------------------


def _quantize(reader: Reader, node: ir.Node) -> None:
    quantizer = quantizer_of(node)
    population, shape = _counted(reader, node, quantizer)
    reader.terms[node.outputs[0]] = Whole(population, quantizer.zero, shape)


def _quant(reader: Reader, node: ir.Node) -> None:
    quantizer = quantizer_of(node)
    population, shape = _counted(reader, node, quantizer)
    reader.terms[node.outputs[0]] = Real(population, quantizer.scale, shape)


def _counted(reader: Reader, node: ir.Node, quantizer: Quantizer) -> tuple[str, tuple[int, ...]]:
    """Return the population that a quantizer gives and the view of it."""
    term = reader.term(node)
    if isinstance(term, Whole):
        raise Refused(node, "its input is integers")
    if isinstance(term, Soft):
        raise Refused(node, "its input is a Softmax, which depends on all neurons at once")
    if isinstance(term, Raw):
        if term.dtype != "FLOAT":
            raise Refused(node, f"the model's input is {term.dtype}")
        return reader.open_input(term, output_name(node), quantizer, quantizer.scale), term.shape
    if isinstance(term, Real):
        low, high = reader.closer.range(term.population)
        same = np.float32(term.scale) == np.float32(quantizer.scale)
        if same and quantizer.low <= low and high <= quantizer.high:
            return term.population, term.shape
        return reader.closer.close(as_sum(reader, term), quantizer, output_name(node), node), term.shape
    return reader.closer.close(term, quantizer, output_name(node), node), term.shape


def _dequantize(reader: Reader, node: ir.Node) -> None:
    term, scale = reader.term(node), constant_expression(node.inputs[1])
    zero = (
        constant_expression(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    )
    if scale is None or scale.size != 1 or int_attribute(node, "block_size", 0):
        raise Refused(node, "activations need one constant scale")
    whole = 0 if zero is None else int(zero.reshape(-1)[0])
    value = float(np.float32(scale.reshape(())))
    if isinstance(term, Raw) and term.dtype in _INTEGER_INPUTS:
        low, high = _INTEGER_INPUTS[term.dtype]
        entry = Quantizer(value, whole, low - whole, high - whole)
        reader.open_input(term, output_name(node), entry, None)
        reader.terms[node.outputs[0]] = Real(output_name(node), value, term.shape)
        return
    if not isinstance(term, Whole):
        raise Refused(node, "its input is no quantized activation")
    if whole != term.zero:
        raise Refused(node, f"it reads zero point {whole}, the quantizer wrote {term.zero}")
    reader.terms[node.outputs[0]] = Real(term.population, value, term.shape)


# --- products ---------------------------------------------------------------------------------------


def _conv(reader: Reader, node: ir.Node) -> None:
    x, weights = reader.image(node), weights_of(node, 0)
    if weights.q.ndim != 4:
        raise Refused(node, f"{weights.q.ndim - 2} spatial axes; event layers have 2")
    window = window_of(node, weights.q.shape[2:], x.shape[1:])
    synapses = Conv(weights.q, window, int_attribute(node, "group", 1))
    shape = (weights.q.shape[0], *window.out(x.shape[1], x.shape[2]))
    _emit(reader, node, x, weights, synapses, shape)


def _gemm(reader: Reader, node: ir.Node) -> None:
    x, flipped = reader.counts(node), bool(int_attribute(node, "transB", 0))
    factors = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    if factors != (1.0, 1.0) or int_attribute(node, "transA", 0):
        raise Refused(node, f"alpha, beta = {factors}, transA = {int_attribute(node, 'transA', 0)}")
    _product(reader, node, x, flipped)


def _matmul(reader: Reader, node: ir.Node) -> None:
    _product(reader, node, reader.counts(node), flipped=False)


def _product(reader: Reader, node: ir.Node, x: Real, flipped: bool) -> None:
    weights = weights_of(node, 0 if flipped else 1)
    q = weights.q if flipped else weights.q.T
    if q.ndim != 2 or len(x.shape) != 1:
        raise Refused(node, f"data {x.shape} and weights {weights.q.shape}; needs a vector and a matrix")
    _emit(reader, node, x, weights, Dense(np.ascontiguousarray(q)), (q.shape[0],))


def _emit(
    reader: Reader, node: ir.Node, x: Real, weights: Operand, synapses: Synapses, shape: tuple[int, ...]
) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    unit32 = np.asarray(np.float32(x.scale) * weights.scale, np.float32)
    unit = np.float64(np.float32(x.scale)) * weights.scale.astype(np.float64)
    total = Sum(
        (Connection(x.population, synapses),), shape, unit, np.zeros(1), np.zeros(1, np.int64), unit32,
        False, (label(node),), exact=_is_exact(x, weights, reader.closer.range(x.population)),
    )  # fmt: skip
    reader.terms[node.outputs[0]] = _biased(node, total, bias, unit32)


def _is_exact(x: Real, weights: Operand, counts: tuple[int, int]) -> bool:
    """Tell whether counts and weights times scales are exact in float32, sums of products in float64."""
    wide = max(-counts[0], counts[1]).bit_length()
    data, terms = digits(np.full(1, x.scale, np.float32)), int(np.prod(weights.q.shape[1:])).bit_length()
    scales = digits(weights.scale)
    return data + wide <= 24 and scales + 8 <= 24 and data + wide + scales + 8 + terms <= 53


def _biased(node: ir.Node, total: Sum, bias: ir.Value | None, unit32: Floats) -> Sum:
    """Add a layer's bias: in whole steps behind integers, as a real number where the model is float."""
    if bias is None:
        return total
    if _is_integer_bias(bias):
        steps = bias_steps(bias, unit32)
        assert steps is not None, "it is constant"
        return replace(total, bias=steps)
    real = reals_of(bias)
    if real is None:
        raise Refused(node, "its bias is not constant")
    flat = real.reshape(-1)
    if flat.size not in (1, total.shape[0]):
        raise Refused(node, f"a bias of shape {real.shape}")
    return replace(total, offset=flat, steps=bias_steps(bias, unit32))


def _is_integer_bias(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return False
    q = constant_expression(node.inputs[0])
    return q is not None and q.dtype == np.int32


# --- pooling ----------------------------------------------------------------------------------------


def _average(reader: Reader, node: ir.Node) -> None:
    x = reader.image(node)
    window = _pool_window(node, x)
    if any(window.pads) and not int_attribute(node, "count_include_pad", 0):
        raise Refused(node, "an average that leaves pads out")
    (values,), unit = exact_values([x.scale], [reader.closer.range(x.population)])
    shape = (x.shape[0], *window.out(x.shape[1], x.shape[2]))
    connection = Connection(x.population, SumPool(window), values)
    taps = window.kernel[0] * window.kernel[1]
    reader.terms[node.outputs[0]] = exact_sum((connection,), shape, unit, (label(node),), taps)


def _reduce_mean(reader: Reader, node: ir.Node) -> None:
    axes = constant_expression(node.inputs[1]) if len(node.inputs) > 1 else None
    given = ints_attribute(node, "axes") if axes is None else tuple(int(axis) for axis in axes.reshape(-1))
    if sorted(axis % 4 for axis in given) != [2, 3]:
        raise Refused(node, f"axes {given}; event layers average over height and width")
    _average(reader, node)


def _pool_window(node: ir.Node, x: Real) -> Window:
    if "Global" in node.op_type or node.op_type == "ReduceMean":
        return Window((x.shape[1], x.shape[2]))
    return window_of(node, ints_attribute(node, "kernel_shape"), x.shape[1:])


def _maximum(reader: Reader, node: ir.Node) -> None:
    x = reader.image(node)
    if len(node.outputs) > 1:
        raise Refused(node, "indices of maxima")
    window = _pool_window(node, x)
    shape = (x.shape[0], *window.out(x.shape[1], x.shape[2]))
    reader.terms[node.outputs[0]] = reader.closer.maximum(
        x, MaxPool(window), output_name(node), shape, (label(node),)
    )


def _transpose(reader: Reader, node: ir.Node) -> None:
    """Take a model's input in another order of axes: channels last, as TensorFlow has it."""
    term, order = reader.term(node), ints_attribute(node, "perm")
    if not isinstance(term, Raw) or term.shape != term.fed or not order or order[0] != 0:
        raise Refused(node, "a Transpose behind the model's input")
    axes = tuple(axis - 1 for axis in order[1:])
    reader.terms[node.outputs[0]] = replace(term, shape=tuple(term.fed[axis] for axis in axes), axes=axes)


def _softmax(reader: Reader, node: ir.Node) -> None:
    """Leave the last Softmax of a model to the host; any other one would need all neurons at once."""
    term, value = reader.term(node), node.inputs[0]
    if not isinstance(term, Sum | Real) or value is None or len(term.shape) != 1:
        raise Refused(node, _SOFT)
    if int_attribute(node, "axis", -1) not in (-1, 1):
        raise Refused(node, "a Softmax over the batch")
    reader.terms[node.outputs[0]] = Soft(term, value.name or "", term.shape)


def _refused(reason: str) -> Rule:
    def rule(reader: Reader, node: ir.Node) -> None:
        raise Refused(node, reason)

    return rule


_SOFT = "its result depends on all neurons at once; leave it to the reader of the logits (argmax is the same)"
_FLOAT = "no threshold ladder stands for it; train with Relu or Clip and a quantizer behind it"

RULES: Mapping[tuple[str, str], Rule] = {
    ("", "QuantizeLinear"): _quantize,
    ("", "DequantizeLinear"): _dequantize,
    (QONNX_DOMAIN, "Quant"): _quant,
    ("", "Conv"): _conv,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "AveragePool"): _average,
    ("", "GlobalAveragePool"): _average,
    ("", "ReduceMean"): _reduce_mean,
    ("", "MaxPool"): _maximum,
    ("", "GlobalMaxPool"): _maximum,
    ("", "Add"): add,
    ("", "Concat"): concat,
    ("", "Mul"): multiply,
    ("", "BatchNormalization"): normalize,
    ("", "Relu"): clip,
    ("", "Clip"): clip,
    **{("", op): view for op in ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout")},
    ("", "Softmax"): _softmax,
    ("", "Transpose"): _transpose,
    ("", "LogSoftmax"): _refused(_SOFT),
    **{
        ("", op): _refused(_FLOAT)
        for op in ("Sigmoid", "Tanh", "Gelu", "Erf", "HardSwish", "Elu", "LeakyRelu")
    },
}
