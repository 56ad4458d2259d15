"""Chains of layers of one and two bits: float input, quantizer, then (MatMul, float operators, quantizer)*.

The first quantizer becomes thresholds of floats, every hidden layer one popcount product with integer
thresholds, the last layer a product followed by a table with the result of its float operators at every
possible sum. Equal to backends/reference to the last bit; see thresholds.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ....compiler.backend import Array as AnyArray
from ....compiler.ops.constants import constant_of
from . import thresholds as th
from .isa import Isa
from .kernels import binarize, dense_binary
from .kernels.binarize import BinarizeSpec
from .kernels.bits import Code
from .kernels.dense_binary import DenseBinarySpec
from .program import Buffer, Constant, Program, Step
from .thresholds import CannotFold, Codebook, Integers

_SHAPING = ("Reshape", "Flatten")


def has_narrow_layers(model: ir.Model) -> bool:
    """Tell whether a model has quantizers of this family, so that trying is worth it."""
    return any(node.op_type in th.QUANTIZERS for node in model.graph)


def lower_chain(model: ir.Model, isa: Isa) -> Program:
    """Return the program of a model that is one chain from its input to its output, all sizes fixed.

    Raises:
        CannotFold: it is something else; the message says what.
    """
    graph = model.graph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise CannotFold("more than one input or output")
    builder = _Builder(isa)
    value, book = builder.first(graph.inputs[0])
    while not value.is_graph_output():
        value, book = builder.layer(value, book)
    return builder.program(graph.inputs[0], value)


@dataclass
class _Builder:
    """Collects the steps of a program."""

    isa: Isa
    steps: list[Step] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)

    def program(self, entry: ir.Value, end: ir.Value) -> Program:
        """Return everything as a checked program."""
        program = Program(
            tuple(self.steps), tuple(self.buffers), tuple(self.constants), (_name(entry),), (_name(end),)
        )
        program.check()
        return program

    def first(self, entry: ir.Value) -> tuple[ir.Value, Codebook]:
        """Binarize the model's input; return the quantized value and what its codes mean."""
        if entry.dtype != ir.DataType.FLOAT:
            raise CannotFold(f"the input is {entry.dtype}")
        nodes = _to_quantizer(entry)
        arithmetic = [node for node in nodes if node.op_type not in _SHAPING]
        result, book = nodes[-1].outputs[0], th.codebook_of(nodes[-1])
        samples, channels = _matrix(result)

        def codes(x: th.Floats) -> Integers:
            return th.codes_of(th.evaluate_chain(arithmetic, x, 1), book)

        folded = th.fold_floats(codes, 1, book.code)
        limits = np.repeat(folded.thresholds, channels, axis=0)
        sign = np.where(np.repeat(folded.negate, channels), -1, 1)
        spec = BinarizeSpec(samples, channels, channels, "float32", book.code)
        self.buffers.append(Buffer(_name(entry), "float32", _sizes(entry)))
        shape = (samples, -(-channels // 32) * book.code.planes)
        self._add("binarize", spec, entry, result, shape, "uint32", binarize.pack(spec, limits, sign), nodes)
        return result, book

    def layer(self, value: ir.Value, book: Codebook) -> tuple[ir.Value, Codebook]:
        """Lower a product and what stands between it and the next quantizer or the model's output."""
        product = _only_reader(value)
        if product.op_type != "MatMul" or product.inputs[0] is not value:
            raise CannotFold(f"node {product.name!r} ({product.op_type}) behind a quantizer is no product")
        weight, weight_book = _weights(product.inputs[1])
        step = book.scale * weight_book.scale
        if math.frexp(step)[0] != 0.5:
            raise CannotFold(f"sums are multiples of {step}, which is no power of two")
        samples, channels = _matrix(value)
        weight_code = weight_book.code
        if book.code in (Code.INT2, Code.UINT2):
            weight_code = Code.INT2
        spec = DenseBinarySpec(samples, channels, len(weight), book.code, weight_code, "table")
        sums = np.arange(-spec.conv.reach, spec.conv.reach + 1)
        if _ends(product.outputs[0]):
            return self._last(product, spec, weight, sums, step), book
        return self._hidden(product, spec, weight, sums, step)

    def _last(
        self, product: ir.Node, spec: DenseBinarySpec, weight: Integers, sums: Integers, step: float
    ) -> ir.Value:
        nodes = _to_output(product.outputs[0])
        end = nodes[-1].outputs[0] if nodes else product.outputs[0]
        self._require(spec)
        reals = th.evaluate_chain(nodes, sums * np.float32(step), spec.out_channels)
        constants = _packed(spec, weight, table=np.asarray(reals.T, np.float32))
        shape = (spec.batch, spec.out_channels)
        self._add("dense_binary", spec, self._last_value, end, shape, "float32", constants, [product, *nodes])
        return end

    def _hidden(
        self, product: ir.Node, spec: DenseBinarySpec, weight: Integers, sums: Integers, step: float
    ) -> tuple[ir.Value, Codebook]:
        nodes = th.chain_to_quantizer(product.outputs[0])
        book = th.codebook_of(nodes[-1])
        spec = replace(spec, output=book.code)
        self._require(spec)
        reals = th.evaluate_chain(nodes, sums * np.float32(step), spec.out_channels)
        folded = th.fold(th.codes_of(reals, book), sums, book.code)
        signed = np.where(folded.negate[:, None], -weight, weight)
        constants = _packed(spec, signed, thresholds=folded.thresholds)
        result, shape = nodes[-1].outputs[0], spec.conv.out_shape
        self._add(
            "dense_binary", spec, self._last_value, result, shape, "uint32", constants, [product, *nodes]
        )
        return result, book

    @property
    def _last_value(self) -> str:
        return self.steps[-1].outputs[0]

    def _require(self, spec: DenseBinarySpec) -> None:
        verdict = dense_binary.supports(spec, self.isa)
        if not verdict.ok:
            raise CannotFold(verdict.reason)

    def _add(
        self,
        family: str,
        spec: BinarizeSpec | DenseBinarySpec,
        source: ir.Value | str,
        result: ir.Value,
        shape: tuple[int, ...],
        dtype: str,
        constants: Sequence[AnyArray],
        nodes: Sequence[ir.Node],
    ) -> None:
        names = [f"{_name(result)}_constant{i}" for i in range(len(constants))]
        self.constants += [Constant.of(name, array) for name, array in zip(names, constants, strict=True)]
        self.buffers.append(Buffer(_name(result), dtype, shape))
        start = source if isinstance(source, str) else _name(source)
        covers = tuple(node.name or node.op_type for node in nodes)
        self.steps.append(Step(family, spec, (start,), tuple(names), (_name(result),), covers))


def _packed(
    spec: DenseBinarySpec,
    weight: Integers,
    *,
    thresholds: th.Array | None = None,
    table: th.Floats | None = None,
) -> list[AnyArray]:
    limits = None if thresholds is None else thresholds.astype(np.int64)
    try:
        return dense_binary.pack(spec, weight, thresholds=limits, table=table)
    except ValueError as error:
        raise CannotFold(str(error)) from error


def _name(value: ir.Value) -> str:
    assert value.name, "values have names after import"
    return value.name


def _sizes(value: ir.Value) -> tuple[int, ...]:
    sizes = tuple(value.shape or ())
    if value.shape is None or not all(isinstance(size, int) for size in sizes):
        raise CannotFold(f"the sizes of {value.name!r} are not fixed")
    return tuple(int(size) for size in sizes if isinstance(size, int))


def _matrix(value: ir.Value) -> tuple[int, int]:
    sizes = _sizes(value)
    if len(sizes) != 2:
        raise CannotFold(f"{value.name!r} has {len(sizes)} axes, not samples and features")
    return sizes[0], sizes[1]


def _only_reader(value: ir.Value) -> ir.Node:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        raise CannotFold(f"value {value.name!r} is not read by one operator alone")
    return uses[0].node


def _to_quantizer(value: ir.Value) -> list[ir.Node]:
    """Return the nodes from the model's input to the first quantizer; shapes may change before it."""
    nodes: list[ir.Node] = []
    while not nodes or nodes[-1].op_type not in th.QUANTIZERS:
        node = _only_reader(value)
        known = node.op_type in th.RULES or node.op_type in _SHAPING
        if not known or node.inputs[0] is not value:
            raise CannotFold(f"node {node.name!r} ({node.op_type}) has no threshold form")
        nodes.append(node)
        value = node.outputs[0]
    return nodes


def _to_output(value: ir.Value) -> list[ir.Node]:
    nodes: list[ir.Node] = []
    while not value.is_graph_output():
        nodes.append(_only_reader(value))
        value = nodes[-1].outputs[0]
    return nodes


def _ends(value: ir.Value) -> bool:
    """Tell whether no further quantizer stands between `value` and the output."""
    return not any(node.op_type in th.QUANTIZERS for node in _to_output(value))


def _weights(value: ir.Value | None) -> tuple[Integers, Codebook]:
    """Return the integer weights [outputs, features] behind the second input of a MatMul, and their codes."""
    node, transposed = value.producer() if value is not None else None, False
    while node is not None and node.op_type == "Transpose":
        transposed, value = not transposed, node.inputs[0]
        node = value.producer() if value is not None else None
    if node is not None and node.op_type in th.QUANTIZERS:
        data, book = constant_of(node.inputs[0]), th.codebook_of(node)
        parameters = [constant_of(parameter) for parameter in node.inputs[1:]]
        known = [array for array in parameters if array is not None]
        if data is None or len(known) != len(parameters):
            raise CannotFold(f"the weights of {node.name!r} are not constant")
        codes = th.codes_of(th.RULES[node.op_type](node, data, known), book)
    else:
        codes, book = _plain_weights(constant_of(value))
    if codes.ndim != 2:
        raise CannotFold(f"weights with {codes.ndim} axes")
    return (codes if transposed else codes.T), book


def _plain_weights(data: th.Array | None) -> tuple[Integers, Codebook]:
    """Read weights that are stored as floats with at most three values around zero."""
    if data is None or not data.any():
        raise CannotFold("the weights are not constant, or all zero")
    code = Code.TERNARY if (data == 0).any() else Code.BINARY
    book = Codebook(code, float(np.abs(data).max()))
    return th.codes_of(data, book), book
