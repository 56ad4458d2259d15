"""What the rules of `read.py` stand on: the tensors read so far, refusals, and looking ahead.

Quantized regions are recognised from their first operator on: the rule of a Conv looks ahead for Relu or
Clip and the QuantizeLinear behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ....compiler.errors import UnsupportedOp
from ....compiler.ir.shapes import infer_shapes
from ....compiler.ir.walk import node_label, only_user, producer, static_shape
from ....compiler.ops import dynamic_blocks, expand_custom_ops
from ....compiler.ops.constants import constant_expression
from . import layers as L
from .layers_binary import Unpack
from .quant_weights import is_product_weight
from .quantized import is_plain, limits, quant_of
from .thresholds import is_wide

Rule: TypeAlias = "Callable[[Reader, ir.Node], None]"


# Operators of other domains that there may be rules for.
OWN_OPS = ("BipolarQuant", "MultiThreshold", "Quant", "Trunc", dynamic_blocks.OP)


class Refused(Exception):
    """A node that cannot be lowered; `reason` says which limit and what was found."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{node_label(node)}: {reason}")
        self.node, self.reason = node, reason


def bind_batch(model: ir.Model, batch: int = 1) -> ir.Model:
    """Return a clone whose inputs have fixed sizes: a symbolic first size becomes `batch`.

    Raises:
        UnsupportedOp: another size is symbolic.
    """
    draft = model.clone()
    expand_custom_ops(draft, _is_expanded)
    for value in draft.graph.inputs:
        sizes = list(value.shape or [])
        if sizes and not isinstance(sizes[0], int):
            sizes[0] = batch
        if value.shape is None or not all(isinstance(size, int) for size in sizes):
            raise UnsupportedOp(
                "native-shape",
                f"input {value.name!r} has no fixed shape ({value.shape}); the engine compiles for one",
                "give the sizes with --shape",
            )
        value.shape = ir.Shape(sizes)
    infer_shapes(draft)
    return draft


def _is_expanded(node: ir.Node) -> bool:
    """Say whether an own operator is read as standard ones."""
    return node.op_type != dynamic_blocks.OP and is_wide(node) and not is_product_weight(node)


class Reader:
    """What has been read so far; the rules write into it.

    Attributes:
        tensors: the tensor of every ONNX value that has one (those inside a fused layer have none).
        bits: bit planes of values that a quantizer of one or two bits gives; `real` unpacks them.
        bytes: uint8 tensors of values that no DequantizeLinear makes; `real` dequantizes them.
        layers: the layers so far.
        refused: nodes without a rule, or that their rule refused.
        sequence: names of tensors that do not lie as images or vectors; see `dense.py`.
    """

    def __init__(self, model: ir.Model, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self.tensors: dict[ir.Value, L.Tensor] = {}
        self.bits: dict[ir.Value, L.Tensor] = {}
        self.bytes: dict[ir.Value, L.Tensor] = {}
        self.layers: list[L.Layer] = []
        self.refused: list[tuple[ir.Node, str]] = []
        self.sequence: set[str] = set()
        self._taken: set[ir.Node] = set()
        self._moving = set(model.graph.inputs)  # values that depend on the inputs
        for value in model.graph.inputs:
            self.tensors[value] = _port(value)

    def visit(self, node: ir.Node) -> None:
        """Read one node unless a layer before took it or it is constant."""
        if not any(value in self._moving for value in node.inputs):
            return
        self._moving.update(node.outputs)
        if node in self._taken:
            return
        rule = self._rules.get(node.op_type) if not node.domain or node.op_type in OWN_OPS else None
        try:
            if rule is None:
                raise Refused(node, f"no rule for {node.op_type}")
            rule(self, node)
        except Refused as refusal:
            self.refused.append((refusal.node, refusal.reason))
            self._unknown(node)

    def _unknown(self, node: ir.Node) -> None:
        """Give the outputs of a refused node tensors, so that only its own reason is reported."""
        for value in node.outputs:
            shape = static_shape(value)
            self.tensors[value] = L.Tensor(value.name or "", shape if shape is not None else ())

    def is_constant(self, value: ir.Value | None) -> bool:
        """Say whether `value` does not depend on the inputs."""
        return value is not None and value not in self._moving

    def take(self, *nodes: ir.Node) -> None:
        """Mark nodes as part of a layer."""
        self._taken.update(nodes)

    def quantized(self, value: ir.Value | None) -> L.Tensor | None:
        """Return the uint8 tensor behind a DequantizeLinear, if that is what makes `value`."""
        if value is not None and value in self.bytes:
            return self.bytes[value]
        node = producer(value, "DequantizeLinear")
        if node is None or node.inputs[0] is None or self.is_constant(value):
            return None
        tensor = self.tensors.get(node.inputs[0])
        quant = quant_of(node, node.inputs[0].dtype) if is_plain(node) else ""
        return None if tensor is None or isinstance(quant, str) else with_quant(tensor, quant)

    def real(self, value: ir.Value | None, node: ir.Node) -> L.Tensor:
        """Return the float tensor of a value; refuses constants and values inside fused layers."""
        if value is not None and value not in self.tensors and value in self.bits:
            self.emit(Unpack((self.bits[value],), tensor_of(value, node), covers(value.producer())), value)
        if value is not None and value not in self.tensors and (tensor := self.quantized(value)) is not None:
            made = L.Tensor(value.name or "", tensor.shape)
            maker = producer(value)
            self.emit(L.Convert((tensor,), made, covers(maker)), value)
        if value is None or value not in self.tensors:
            raise Refused(node, f"input {getattr(value, 'name', None)!r} is constant or inside a fused layer")
        tensor = self.tensors[value]
        if tensor.quant is not None:
            raise Refused(node, f"input {value.name!r} is quantized and no DequantizeLinear stands before it")
        if tensor.dtype != "float32":
            raise Refused(node, f"input {value.name!r} is {tensor.dtype}; the kernels compute in float32")
        return tensor

    def emit_bits(self, layer: L.Layer, value: ir.Value) -> None:
        """Add a layer that makes `value` as bit planes."""
        self.layers.append(layer)
        self.bits[value] = layer.output

    def emit(self, layer: L.Layer, value: ir.Value) -> None:
        """Add a layer that makes `value`."""
        self.layers.append(layer)
        self.tensors[value] = layer.output

    def output(self, value: ir.Value) -> L.Tensor:
        """Return the tensor of a graph output."""
        if (value in self.bits or value in self.bytes) and (maker := value.producer()) is not None:
            return self.real(value, maker)
        if value not in self.tensors:
            raise UnsupportedOp("native-output", f"output {value.name!r} is constant or inside a fused layer")
        return self.tensors[value]


def covers(*nodes: ir.Node | None) -> tuple[str, ...]:
    """Return the names of nodes; provenance for the report."""
    return tuple(node.name or node.op_type for node in nodes if node is not None)


def with_quant(tensor: L.Tensor, quant: L.Quant) -> L.Tensor:
    """Return the tensor read with these parameters (those of its DequantizeLinear)."""
    return L.Tensor(tensor.name, tensor.shape, quant)


def _port(value: ir.Value) -> L.Tensor:
    shape = static_shape(value)
    assert shape is not None, f"input {value.name!r} is not bound"
    signed = value.dtype == ir.DataType.INT8
    byte = value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    quant = L.Quant(1.0, 128 if signed else 0, signed) if byte else None
    return L.Tensor(value.name or "", shape, quant, dtype_of(value))


# --- looking ahead ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tail:
    """What follows an operator and becomes part of its layer.

    Attributes:
        value: the last value of the chain.
        nodes: the nodes that were followed.
        low, high: clipping in reals.
        quant: parameters of the quantizer at the end, None without one.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...] = ()
    low: float = -np.inf
    high: float = np.inf
    quant: L.Quant | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """Return the clipping as limits of the quantized value."""
        assert self.quant is not None, "limits of a float tail"
        return limits(self.low, self.high, self.quant)


def clip_of(node: ir.Node) -> tuple[float, float] | None:
    """Return the limits of a Relu or Clip with constant limits."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip" or node.domain:
        return None
    ends = [-np.inf, np.inf]
    for index, value in enumerate(node.inputs[1:3]):
        array = constant_expression(value)
        if value is not None and array is None:
            return None
        if array is not None:
            ends[index] = float(array.reshape(()))
    return ends[0], ends[1]


def clipped(value: ir.Value) -> Tail:
    """Follow one Relu or Clip that alone reads `value`."""
    node = only_user(value)
    found = clip_of(node) if node is not None else None
    if node is None or found is None:
        return Tail(value)
    return Tail(node.outputs[0], (node,), *found)


def quantized_tail(value: ir.Value) -> Tail | None:
    """Follow [Relu | Clip] and a QuantizeLinear to 8 bits; None when there is no such chain."""
    tail = clipped(value)
    node = only_user(tail.value)
    if node is None or node.op_type != "QuantizeLinear" or node.domain or not is_plain(node):
        return None
    quant = quant_of(node, node.outputs[0].dtype)
    if isinstance(quant, str):
        return None
    return Tail(node.outputs[0], (*tail.nodes, node), tail.low, tail.high, quant)


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the operator must have."""
    value = node.inputs[index]
    assert value is not None, f"{node.op_type} without input {index}"
    return value


def shape_of(value: ir.Value, node: ir.Node) -> tuple[int, ...]:
    """Return the static shape of a value, or refuse."""
    shape = static_shape(value)
    if shape is None:
        raise Refused(node, f"value {value.name!r} has no fixed shape")
    return shape


def tensor_of(value: ir.Value, node: ir.Node, quant: L.Quant | None = None) -> L.Tensor:
    """Return the tensor for a value, or refuse when its shape is not fixed."""
    dtype = "float32" if quant is not None else dtype_of(value)
    return L.Tensor(value.name or "", shape_of(value, node), quant, dtype)


def dtype_of(value: ir.Value) -> str:
    """Return the dtype of plain numbers as NumPy names it; bytes have none, their `Quant` says it all."""
    if value.dtype is None or value.dtype in (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8):
        return "float32"
    return value.dtype.name.lower()


def any_tensor(reader: Reader, node: ir.Node) -> tuple[L.Tensor, Tail]:
    """Return what an operator that only moves data reads and ends with, quantized where both ends agree."""
    value = input_of(node, 0)
    tensor = reader.tensors.get(value)
    if tensor is not None and tensor.quant is None and tensor.dtype != "float32":
        return tensor, Tail(node.outputs[0])
    if tensor is not None and tensor.quant is not None:
        return tensor, Tail(node.outputs[0], quant=tensor.quant)
    x, tail = reader.quantized(value), quantized_tail(node.outputs[0])
    if (
        x is not None
        and tail is not None
        and tail.quant == x.quant
        and not (tail.low != -np.inf or tail.high != np.inf)
    ):
        return x, tail
    return reader.real(value, node), Tail(node.outputs[0])
