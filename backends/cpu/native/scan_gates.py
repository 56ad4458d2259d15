"""What a gate in the body of a Scan computes: products with constant weights, a bias, a function."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, producer, static_shape
from ....compiler.ops.constants import constant_expression
from .layers import Floats
from .quantized import array_of, weights_of


@dataclass(frozen=True, eq=False)
class Term:
    """`value` times `weight` [K, N]; `scale` [N] where the weights are stored as integers in steps of it."""

    value: ir.Value
    weight: Floats
    scale: Floats | None = None

    def columns(self, part: slice) -> Term:
        """Return some of the columns."""
        return replace(
            self, weight=self.weight[:, part], scale=None if self.scale is None else self.scale[part]
        )


@dataclass(frozen=True, eq=False)
class Gate:
    """`function(sum of terms + bias + sum of peephole * value)`.

    Attributes:
        bias: [N].
        peepholes: values that are multiplied element by element, with the factors [N].
        function: `sigmoid`, `tanh` or empty.
    """

    terms: tuple[Term, ...]
    bias: Floats
    peepholes: tuple[tuple[ir.Value, Floats], ...] = ()
    function: str = ""


def behind(value: ir.Value | None) -> ir.Value | None:
    """Return the value behind Identity nodes."""
    while (node := producer(value, "Identity")) is not None:
        value = node.inputs[0]
    return value


def gate_of(value: ir.Value | None) -> Gate | None:
    """Return what makes a value of shape [B, N], None where it is something else."""
    value = behind(value)
    node = None if value is None else value.producer()
    if node is None or value is None or node.domain:
        return None
    if node.op_type in ("Sigmoid", "Tanh"):
        inner = gate_of(node.inputs[0])
        return None if inner is None or inner.function else replace(inner, function=node.op_type.lower())
    if node.op_type == "Split":
        return _part(node, value)
    if node.op_type == "Add":
        return _sum(node)
    return _product(node) if node.op_type in ("Gemm", "MatMul") else None


def _part(node: ir.Node, value: ir.Value) -> Gate | None:
    """Return some columns of a gate."""
    whole, sizes = gate_of(node.inputs[0]), [static_shape(output) for output in node.outputs]
    if whole is None or int_attribute(node, "axis", 0) % 2 != 1 or None in sizes:
        return None
    widths = [size[1] for size in sizes if size is not None]
    index = next(i for i, output in enumerate(node.outputs) if output is value)
    part = slice(sum(widths[:index]), sum(widths[: index + 1]))
    return Gate(
        tuple(term.columns(part) for term in whole.terms),
        whole.bias[part],
        tuple((other, factors[part]) for other, factors in whole.peepholes),
        whole.function,
    )


def _sum(node: ir.Node) -> Gate | None:
    """Return a gate plus a constant, a peephole or a gate."""
    for one, other in (node.inputs, reversed(node.inputs)):
        gate = gate_of(one)
        if gate is None or gate.function:
            continue
        added = array_of(other)
        if added is not None and added.size in (1, gate.bias.size):
            return replace(gate, bias=gate.bias + added.reshape(-1).astype(np.float32))
        peephole = _peephole(other, gate.bias.size)
        if peephole is not None:
            return replace(gate, peepholes=(*gate.peepholes, peephole))
        second = gate_of(other)
        if second is not None and not second.function and second.bias.size == gate.bias.size:
            terms, peepholes = gate.terms + second.terms, gate.peepholes + second.peepholes
            return Gate(terms, gate.bias + second.bias, peepholes)
    return None


def _peephole(value: ir.Value | None, size: int) -> tuple[ir.Value, Floats] | None:
    node = producer(behind(value), "Mul")
    if node is None:
        return None
    for one, other in (node.inputs, reversed(node.inputs)):
        factors, source = array_of(one), behind(other)
        if factors is not None and factors.size == size and source is not None:
            return source, np.asarray(factors.reshape(-1), np.float32)
    return None


def _product(node: ir.Node) -> Gate | None:
    """Return a Gemm or MatMul of values, joined along the columns, with constant weights."""
    factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or int_attribute(node, "transA", 0):
        return None
    transposed = bool(int_attribute(node, "transB", 0))
    weight = array_of(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    whole = np.asarray(weight.T if transposed else weight, np.float32)
    bias = np.zeros(whole.shape[1], np.float32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        added = array_of(node.inputs[2])
        if added is None or added.size not in (1, bias.size):
            return None
        bias = bias + added.reshape(-1).astype(np.float32)
    scale = _scale(node.inputs[1], 0 if transposed else 1, whole.shape[1])
    terms = _rows(behind(node.inputs[0]), whole, scale)
    return None if terms is None else Gate(terms, bias)


def _scale(value: ir.Value | None, axis: int, columns: int) -> Floats | None:
    """Return the scale per column of weights stored as bytes."""
    found = weights_of(value, axis)
    if isinstance(found, str):
        return None
    return np.ascontiguousarray(np.broadcast_to(found.scale, (columns,)))


def _rows(value: ir.Value | None, weight: Floats, scale: Floats | None) -> tuple[Term, ...] | None:
    """Split weights by the values that a Concat joins."""
    node = producer(value, "Concat")
    joined = [value] if node is None else [behind(v) for v in node.inputs]
    if node is not None and int_attribute(node, "axis", 1) % 2 != 1:
        return None
    terms: list[Term] = []
    first = 0
    for one in joined:
        size = None if one is None else _width(one, weight.shape[0] - first if len(joined) == 1 else None)
        if one is None or size is None:
            return None
        terms.append(Term(one, weight[first : first + size], scale))
        first += size
    return tuple(terms) if first == weight.shape[0] else None


def _width(value: ir.Value, known: int | None) -> int | None:
    """Return the columns of a value [B, K]; `known` where its shape is open."""
    shape = value.shape
    if shape is None or shape.rank() != 2:
        return known
    size = shape[1]
    return size if isinstance(size, int) else known


def is_one(value: ir.Value | None) -> bool:
    """Say whether a value is the constant 1."""
    array = constant_expression(value)
    return array is not None and bool((array == 1).all())
