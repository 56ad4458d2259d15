"""Rules for what stands between layers: sums of activations, factors, normalisations, clipping, views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import int_attribute
from ...compiler.ops.common import float_attribute
from ...compiler.ops.constants import constant_expression
from .graph import Connection, Conv, Dense, Integers, OneToOne, Reals, Weights
from .operands import Refused, exact_values, reals_of
from .read import Reader, sample_shape
from .terms import Real, Sum


def label(node: ir.Node) -> str:
    """Return a node's name for the report."""
    return node.name or node.op_type


def output_name(node: ir.Node) -> str:
    """Return the name of what a node makes."""
    return node.outputs[0].name or ""


def as_sum(reader: Reader, x: Real) -> Sum:
    """Return counts as a sum of one term each."""
    shape = reader.closer.shape(x.population)
    (values,), unit = exact_values([x.scale], [reader.closer.range(x.population)])
    connection = Connection(x.population, OneToOne(), values)
    return exact_sum((connection,), shape, unit, ())


def exact_sum(
    connections: tuple[Connection, ...],
    shape: tuple[int, ...],
    unit: float,
    nodes: tuple[str, ...],
    by: int = 1,
) -> Sum:
    """Return a sum of exact integers of a unit, divided at the end."""
    nothing = np.zeros(1)
    whole = nothing.astype(np.int64)
    return Sum(connections, shape, np.full(1, unit), nothing, whole, None, True, nodes, divisor=by)


def add(reader: Reader, node: ir.Node) -> None:
    """Read a bias, or a sum of two activations."""
    for data, other in ((0, 1), (1, 0)):
        if reader.is_constant(node.inputs[other]):
            offset = _per_channel(reader, node, other)
            reader.terms[node.outputs[0]] = _sum_of(reader, node, data).affine(
                np.ones(1), offset, label(node)
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
    reader.terms[node.outputs[0]] = exact_sum(connections, shape, unit, (label(node),))


def _values(reader: Reader, node: ir.Node, parts: list[Real]) -> tuple[list[Integers], float]:
    scales = [part.scale for part in parts]
    if max(scales) > min(scales) * 2**18:
        raise Refused(node, f"scales {min(scales)} and {max(scales)} are too far apart")
    return exact_values(scales, [reader.closer.range(part.population) for part in parts])


def concat(reader: Reader, node: ir.Node) -> None:
    """Join channels."""
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
    reader.terms[node.outputs[0]] = exact_sum(tuple(connections), shape, unit, (label(node),))


def multiply(reader: Reader, node: ir.Node) -> None:
    """Read a factor per channel."""
    data = 1 if reader.is_constant(node.inputs[0]) else 0
    if not reader.is_constant(node.inputs[1 - data]):
        raise Refused(node, "a product of two activations")
    factor = _per_channel(reader, node, 1 - data)
    total = _sum_of(reader, node, data)
    reader.terms[node.outputs[0]] = _scaled(node, total, factor, np.zeros(1))


def normalize(reader: Reader, node: ir.Node) -> None:
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
    return total.affine(np.abs(factor), offset, label(node))


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
    return as_sum(reader, reader.counts(node, index))


def clip(reader: Reader, node: ir.Node) -> None:
    """Read a Relu or Clip."""
    ends = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
    for index, value in enumerate(node.inputs[1:3]):
        array = constant_expression(value)
        if value is not None and array is None:
            raise Refused(node, "limits that are not constant")
        if array is not None:
            ends[index] = float(array.reshape(()))
    term = reader.term(node)
    total = term if isinstance(term, Sum) else as_sum(reader, reader.counts(node))
    reader.terms[node.outputs[0]] = total.clip(ends[0], ends[1], label(node))


def view(reader: Reader, node: ir.Node) -> None:
    """Read what keeps elements in order."""
    term, shape = reader.term(node), sample_shape(node.outputs[0])
    sizes = (np.prod(term.shape), np.prod(shape))
    if sizes[0] != sizes[1]:
        raise Refused(node, f"it moves elements between samples: {term.shape} to {shape}")
    if isinstance(term, Sum) and [s for s in term.shape if s != 1] != [s for s in shape if s != 1]:
        raise Refused(node, f"a sum of shape {term.shape} is reshaped to {shape} before its quantizer")
    reader.terms[node.outputs[0]] = replace(term, shape=shape)
