"""Elementwise operators of any rank, with broadcasts, constants, and quantizers around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, only_user
from ....compiler.ops.common import float_attribute
from . import layers as L
from . import layers_sequence as S
from .kernels.elementwise_f32 import Op
from .quantized import array_of, is_plain, quant_of
from .reader import Reader, Refused, Rule, clip_of, covers, shape_of, tensor_of

Ops = Sequence[Op]


def either(image: Rule, general: Rule) -> Rule:
    """Return a rule that reads images and vectors with `image`, everything else with `general`."""

    def rule(reader: Reader, node: ir.Node) -> None:
        if is_image(reader, node):
            try:
                image(reader, node)
                return
            except Refused:
                pass
        general(reader, node)

    return rule


def is_image(reader: Reader, node: ir.Node) -> bool:
    """Say whether a node reads and writes images or vectors only, none of which is part of a sequence."""
    shapes = [shape_of(value, node) for value in node.outputs]
    for value in node.inputs:
        if value is None or reader.is_constant(value):
            continue
        tensor = reader.tensors.get(value) or reader.quantized(value)
        shapes.append(shape_of(value, node))
        if tensor is not None and tensor.name in reader.sequence:
            return False
    return all(len(shape) in (2, 4) for shape in shapes)


def operand(reader: Reader, value: ir.Value | None, node: ir.Node) -> L.Tensor:
    """Return the tensor of a value, still quantized where a DequantizeLinear makes it."""
    if value is not None and value not in reader.tensors and (tensor := reader.quantized(value)) is not None:
        return tensor
    return reader.real(value, node)


@dataclass(frozen=True)
class End:
    """How a layer ends: the value it makes, the quantizer that it takes along, the tensor it writes."""

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    tensor: L.Tensor


def ending(value: ir.Value, node: ir.Node) -> End:
    """Return the end of a layer whose float result is `value`, with a quantizer that alone reads it."""
    user = only_user(value)
    if user is not None and user.op_type == "QuantizeLinear" and not user.domain and is_plain(user):
        quant = quant_of(user, user.outputs[0].dtype)
        if not isinstance(quant, str):
            return End(user.outputs[0], (user,), tensor_of(user.outputs[0], node, quant))
    return End(value, (), tensor_of(value, node))


def emit(reader: Reader, node: ir.Node, end: End, layer: L.Layer) -> None:
    """Add a layer of a sequence."""
    reader.take(*end.nodes)
    reader.emit(layer, end.value)
    reader.sequence.add(layer.output.name)


@dataclass
class Writer:
    """A chain being written: its inputs and constants are collected first, then operations are added."""

    reader: Reader
    node: ir.Node
    rank: int
    inputs: list[L.Tensor] = field(default_factory=list)
    arrays: list[L.Floats] = field(default_factory=list)
    ops: list[tuple[str, tuple[object, ...], float, float]] = field(default_factory=list)

    def value(self, value: ir.Value | None) -> object:
        """Return a reference to an operand."""
        if value is None:
            raise Refused(self.node, "an operand is missing")
        if not self.reader.is_constant(value):
            tensor = operand(self.reader, value, self.node)
            if tensor not in self.inputs:
                self.inputs.append(tensor)
            return ("in", self.inputs.index(tensor))
        array = array_of(value)
        if array is None or array.dtype not in (np.float32, np.bool_):
            raise Refused(self.node, f"constant {value.name!r} is no array of float32")
        return self.constant(np.asarray(array, np.float32))

    def constant(self, array: L.Floats) -> object:
        """Return a reference to a constant."""
        if array.size == 1:
            return self.op("const", alpha=float(array.reshape(())))
        self.arrays.append(array.reshape((1,) * (self.rank - array.ndim) + array.shape))
        return ("array", len(self.arrays) - 1)

    def op(self, name: str, *args: object, alpha: float = 0.0, beta: float = 0.0) -> object:
        """Add an operation and return a reference to its value."""
        self.ops.append((name, args, alpha, beta))
        return ("op", len(self.ops) - 1)

    def finished(self) -> tuple[Op, ...]:
        """Return the operations with their operands numbered."""
        first = {"in": 0, "array": len(self.inputs), "op": len(self.inputs) + len(self.arrays)}

        def number(reference: object) -> int:
            assert isinstance(reference, tuple), "made by this class"
            kind, index = reference
            return first[kind] + int(index)

        return tuple(Op(name, tuple(map(number, args)), a, b) for name, args, a, b in self.ops)


Formula = Callable[[Writer, ir.Node], object]


def _plain(name: str) -> Formula:
    return lambda w, node: w.op(name, *(w.value(value) for value in node.inputs))


def _folded(name: str) -> Formula:
    """Return an operator of any number of operands."""

    def formula(w: Writer, node: ir.Node) -> object:
        total, *rest = (w.value(value) for value in node.inputs)
        for other in rest:
            total = w.op(name, total, other)
        return total if rest else w.op("const")

    return formula


def _with(name: str, alpha: tuple[str, float], beta: tuple[str, float] | None = None) -> Formula:
    """Return a function with parameters, each with its default."""

    def formula(w: Writer, node: ir.Node) -> object:
        numbers = [float_attribute(node, *pair) if pair else 0.0 for pair in (alpha, beta)]
        return w.op(name, w.value(node.inputs[0]), alpha=numbers[0], beta=numbers[1])

    return formula


def _div(w: Writer, node: ir.Node) -> object:
    divisor = array_of(node.inputs[1]) if w.reader.is_constant(node.inputs[1]) else None
    if divisor is not None and divisor.size == 1 and divisor.dtype == np.float32:
        number = float(divisor.reshape(()))
        if number and abs(np.frexp(number)[0]) == 0.5:  # the quotient by a power of two is a product
            factor = w.op("const", alpha=1 / number)
            return w.op("mul", w.value(node.inputs[0]), factor)
    return w.op("div", w.value(node.inputs[0]), w.value(node.inputs[1]))


def _pow(w: Writer, node: ir.Node) -> object:
    x, array = w.value(node.inputs[0]), array_of(node.inputs[1])
    exponent = float(array.reshape(())) if array is not None and array.size == 1 else None
    if exponent == 0.5:
        return w.op("sqrt", x)
    if exponent in (2.0, 3.0):
        square = w.op("mul", x, x)
        return square if exponent == 2.0 else w.op("mul", square, x)
    if exponent == -1.0:
        return w.op("reciprocal", x)
    raise Refused(node, f"exponent {exponent}; the chain has 2, 3, 0.5 and -1")


def _clip(w: Writer, node: ir.Node) -> object:
    limits = clip_of(node)
    if limits is None:
        raise Refused(node, "the limits are not constant")
    return w.op("clip", w.value(node.inputs[0]), alpha=limits[0], beta=limits[1])


def _gelu(w: Writer, node: ir.Node) -> object:
    tanh = attribute(node, "approximate", "none") == "tanh"
    return w.op("gelu-tanh" if tanh else "gelu", w.value(node.inputs[0]))


def _where(w: Writer, node: ir.Node) -> object:
    if not w.reader.is_constant(node.inputs[0]):
        raise Refused(node, "the condition is not constant")
    return w.op("where", *(w.value(value) for value in node.inputs))


def _mish(w: Writer, node: ir.Node) -> object:
    x = w.value(node.inputs[0])
    return w.op("mul", x, w.op("tanh", w.op("softplus", x)))


def _copy(w: Writer, node: ir.Node) -> object:
    return w.value(node.inputs[0])


FORMULAS: Mapping[str, Formula] = {
    "Abs": _plain("abs"),
    "Add": _plain("add"),
    "Ceil": _plain("ceil"),
    "Clip": _clip,
    "Cos": _plain("cos"),
    "DequantizeLinear": _copy,
    "Div": _div,
    "Elu": _with("elu", ("alpha", 1.0)),
    "Erf": _plain("erf"),
    "Exp": _plain("exp"),
    "Floor": _plain("floor"),
    "Gelu": _gelu,
    "HardSigmoid": _with("hard-sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": _plain("hard-swish"),
    "LeakyRelu": _with("leaky-relu", ("alpha", 0.01)),
    "Log": _plain("log"),
    "Max": _folded("max"),
    "Min": _folded("min"),
    "Mish": _mish,
    "Mul": _plain("mul"),
    "Neg": _plain("neg"),
    "PRelu": _plain("prelu"),
    "Pow": _pow,
    "Reciprocal": _plain("reciprocal"),
    "Relu": _plain("relu"),
    "Round": _plain("round"),
    "Sigmoid": _plain("sigmoid"),
    "Sin": _plain("sin"),
    "Softplus": _plain("softplus"),
    "Sqrt": _plain("sqrt"),
    "Sub": _plain("sub"),
    "Sum": _folded("add"),
    "Tanh": _plain("tanh"),
    "Where": _where,
}


def chain(reader: Reader, node: ir.Node) -> None:
    """Read an elementwise operator as a chain of its own; neighbours are merged later."""
    if int_attribute(node, "axis", 1) != 1 and node.op_type == "DequantizeLinear":
        raise Refused(node, "scales along an axis")
    shape = shape_of(node.outputs[0], node)
    writer = Writer(reader, node, len(shape))
    FORMULAS[node.op_type](writer, node)
    if not writer.inputs:
        raise Refused(node, "no operand depends on the input")
    image = is_image(reader, node)
    end = ending(node.outputs[0], node)
    layer = S.Chain(
        tuple(writer.inputs),
        end.tensor,
        covers(node, *end.nodes),
        writer.finished(),
        tuple(writer.arrays),
        image,
    )
    reader.take(*end.nodes)
    reader.emit(layer, end.value)
    if not image:
        reader.sequence.add(end.tensor.name)
