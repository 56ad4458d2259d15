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
    Integers,
    MaxPool,
    OneToOne,
    Reals,
    SumPool,
    Synapses,
    Weights,
    Window,
)
from .ladders import Quantizer
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
from .read import Reader, Rule, sample_shape
from .terms import Floats, Raw, Real, Sum, Whole

_INTEGER_INPUTS = {"UINT8": (0, 255), "INT8": (-128, 127)}


def _label(node: ir.Node) -> str:
    return node.name or node.op_type


def _name(node: ir.Node) -> str:
    return node.outputs[0].name or ""


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
    if isinstance(term, Raw):
        if term.dtype != "FLOAT":
            raise Refused(node, f"the model's input is {term.dtype}")
        return reader.open_input(term, _name(node), quantizer, quantizer.scale), term.shape
    if isinstance(term, Real):
        low, high = reader.closer.range(term.population)
        same = np.float32(term.scale) == np.float32(quantizer.scale)
        if same and quantizer.low <= low and high <= quantizer.high:
            return term.population, term.shape
        return reader.closer.close(_as_sum(reader, term), quantizer, _name(node), node), term.shape
    return reader.closer.close(term, quantizer, _name(node), node), term.shape


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
        reader.open_input(term, _name(node), entry, None)
        reader.terms[node.outputs[0]] = Real(_name(node), value, term.shape)
        return
    if not isinstance(term, Whole):
        raise Refused(node, "its input is no quantized activation")
    if whole != term.zero:
        raise Refused(node, f"it reads zero point {whole}, the quantizer wrote {term.zero}")
    reader.terms[node.outputs[0]] = Real(term.population, value, term.shape)


def _as_sum(reader: Reader, x: Real) -> Sum:
    """Return counts as a sum of one term each."""
    shape = reader.closer.shape(x.population)
    (values,), unit = exact_values([x.scale], [reader.closer.range(x.population)])
    connection = Connection(x.population, OneToOne(), values)
    return _exact((connection,), shape, unit, ())


def _exact(
    connections: tuple[Connection, ...],
    shape: tuple[int, ...],
    unit: float,
    nodes: tuple[str, ...],
    by: int = 1,
) -> Sum:
    nothing = np.zeros(1)
    whole = nothing.astype(np.int64)
    return Sum(connections, shape, np.full(1, unit), nothing, whole, None, True, nodes, divisor=by)


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
        False, (_label(node),),
    )  # fmt: skip
    reader.terms[node.outputs[0]] = _biased(node, total, bias, unit32)


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
    reader.terms[node.outputs[0]] = _exact((connection,), shape, unit, (_label(node),), taps)


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
        x, MaxPool(window), _name(node), shape, (_label(node),)
    )


# --- sums, factors, views ---------------------------------------------------------------------------


def _add(reader: Reader, node: ir.Node) -> None:
    for data, other in ((0, 1), (1, 0)):
        if reader.is_constant(node.inputs[other]):
            offset = _per_channel(reader, node, other)
            reader.terms[node.outputs[0]] = _sum_of(reader, node, data).affine(
                np.ones(1), offset, _label(node)
            )
            return
    a, b = reader.counts(node, 0), reader.counts(node, 1)
    if a.shape != b.shape or reader.closer.shape(a.population) != reader.closer.shape(b.population):
        raise Refused(node, f"shapes {a.shape} and {b.shape}; event layers add equal ones")
    tables, unit = _values(reader, node, [a, b])
    connections = tuple(
        Connection(x.population, OneToOne(), table) for x, table in zip((a, b), tables, strict=True)
    )
    shape = reader.closer.shape(a.population)
    reader.terms[node.outputs[0]] = _exact(connections, shape, unit, (_label(node),))


def _values(reader: Reader, node: ir.Node, parts: list[Real]) -> tuple[list[Integers], float]:
    scales = [part.scale for part in parts]
    if max(scales) > min(scales) * 2**18:
        raise Refused(node, f"scales {min(scales)} and {max(scales)} are too far apart")
    return exact_values(scales, [reader.closer.range(part.population) for part in parts])


def _concat(reader: Reader, node: ir.Node) -> None:
    parts = [reader.counts(node, index) for index in range(len(node.inputs))]
    shapes = [reader.closer.shape(part.population) for part in parts]
    rank = len(parts[0].shape) + 1
    if int_attribute(node, "axis", 1) % rank != 1 or any(
        p.shape != s for p, s in zip(parts, shapes, strict=True)
    ):
        raise Refused(node, "event layers join channels")
    tables, unit = _values(reader, node, parts)
    connections, first = [], 0
    for part, table in zip(parts, tables, strict=True):
        connections.append(Connection(part.population, OneToOne(first), table))
        first += part.shape[0]
    shape = (first, *parts[0].shape[1:])
    reader.terms[node.outputs[0]] = _exact(tuple(connections), shape, unit, (_label(node),))


def _mul(reader: Reader, node: ir.Node) -> None:
    data = 1 if reader.is_constant(node.inputs[0]) else 0
    if not reader.is_constant(node.inputs[1 - data]):
        raise Refused(node, "a product of two activations")
    factor = _per_channel(reader, node, 1 - data)
    total = _sum_of(reader, node, data)
    reader.terms[node.outputs[0]] = _scaled(node, total, factor, np.zeros(1))


def _normalize(reader: Reader, node: ir.Node) -> None:
    """Fold a BatchNormalization, of a membrane too, into what the thresholds are compared with."""
    scale, shift, mean, var = (reals_of(node.inputs[index]) for index in range(1, 5))
    if scale is None or shift is None or mean is None or var is None:
        raise Refused(node, "its statistics are not constant")
    factor = scale / np.sqrt(var + float_attribute(node, "epsilon", 1e-5))
    reader.terms[node.outputs[0]] = _scaled(node, _sum_of(reader, node, 0), factor, shift - mean * factor)


def _scaled(node: ir.Node, total: Sum, factor: Reals, offset: Reals) -> Sum:
    """Multiply a sum; channels with a negative factor take negated weights, so that ladders still rise."""
    if total.is_clipped:
        raise Refused(node, "a factor behind a Relu")
    if bool(np.any(factor == 0)):
        raise Refused(
            node, f"a factor of 0 in channel {int(np.argmin(np.abs(factor)))}: its neurons never change"
        )
    signs = np.sign(np.broadcast_to(factor, (total.shape[0],))).astype(np.int32)
    if bool(np.any(signs < 0)):
        total = _negated(node, total, signs)
    return total.affine(np.abs(factor), offset, _label(node))


def _negated(node: ir.Node, total: Sum, signs: Weights) -> Sum:
    connections = []
    for connection in total.connections:
        synapses = connection.synapses
        if not isinstance(synapses, Dense | Conv):
            raise Refused(node, "a negative factor behind pooling or a sum of activations")
        shape = (-1, *[1] * (synapses.weights.ndim - 1))
        turned = synapses.weights * signs.reshape(shape)
        if turned.max(initial=0) > 127:
            raise Refused(node, "a negative factor on weights of -128")
        connections.append(replace(connection, synapses=replace(synapses, weights=turned)))
    return replace(
        total, connections=tuple(connections), bias=total.bias * signs, offset=total.offset * signs
    )


def _per_channel(reader: Reader, node: ir.Node, index: int) -> Reals:
    """Return a constant that varies along channels at most, flattened."""
    real = reals_of(node.inputs[index])
    if real is None:
        raise Refused(node, "its constant is not known")
    if real.size == 1:
        return real.reshape(1)
    shape = sample_shape(node.outputs[0])
    sizes = [1] * (len(shape) + 1 - real.ndim) + list(real.shape)
    if sizes[1] != shape[0] or real.size != shape[0]:
        raise Refused(node, f"a constant of shape {real.shape}; event layers take one number per channel")
    return real.reshape(-1)


def _sum_of(reader: Reader, node: ir.Node, index: int) -> Sum:
    term = reader.term(node, index)
    if isinstance(term, Sum):
        if term.is_clipped:
            raise Refused(node, "arithmetic between a Relu and a quantizer")
        return term
    return _as_sum(reader, reader.counts(node, index))


def _clip(reader: Reader, node: ir.Node) -> None:
    ends = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
    for index, value in enumerate(node.inputs[1:3]):
        array = constant_expression(value)
        if value is not None and array is None:
            raise Refused(node, "limits that are not constant")
        if array is not None:
            ends[index] = float(array.reshape(()))
    term = reader.term(node)
    total = term if isinstance(term, Sum) else _as_sum(reader, reader.counts(node))
    reader.terms[node.outputs[0]] = total.clip(ends[0], ends[1], _label(node))


def _view(reader: Reader, node: ir.Node) -> None:
    term, shape = reader.term(node), sample_shape(node.outputs[0])
    sizes = (np.prod(term.shape), np.prod(shape))
    if sizes[0] != sizes[1]:
        raise Refused(node, f"it moves elements between samples: {term.shape} to {shape}")
    if isinstance(term, Sum) and [s for s in term.shape if s != 1] != [s for s in shape if s != 1]:
        raise Refused(node, f"a sum of shape {term.shape} is reshaped to {shape} before its quantizer")
    reader.terms[node.outputs[0]] = replace(term, shape=shape)


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
    ("", "Add"): _add,
    ("", "Concat"): _concat,
    ("", "Mul"): _mul,
    ("", "BatchNormalization"): _normalize,
    ("", "Relu"): _clip,
    ("", "Clip"): _clip,
    **{("", op): _view for op in ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout")},
    **{("", op): _refused(_SOFT) for op in ("Softmax", "LogSoftmax")},
    **{
        ("", op): _refused(_FLOAT)
        for op in ("Sigmoid", "Tanh", "Gelu", "Erf", "HardSwish", "Elu", "LeakyRelu")
    },
}
