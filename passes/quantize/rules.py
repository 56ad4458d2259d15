"""Which operators can be quantized and how: one small rule per operator, and a loud default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.quant import QuantSpec, Scheme

Granularity: TypeAlias = Literal["tensor", "channel", "block"]

# A uint8 x int8 product is below 2**15, so an int32 accumulator holds this many of them with certainty.
_MAX_TERMS = 2**31 // (255 * 127)

_QUANTIZED_MAKERS = frozenset({"DequantizeLinear", "Quant", "BipolarQuant", "MultiThreshold"})


@dataclass(frozen=True)
class Policy:
    """What the user asked for; every rule reads it.

    Attributes:
        bits: width of weights, 1 to 16.
        act_bits: width of activations, 2 to 16.
        act: `static` ranges from calibration, `dynamic` ranges at run time, `none`: weights only.
        weights: one scale per tensor, per output channel, or per block of `block_size` inputs.
        block_size: elements of the reduced axis that share a scale with `weights=block`.
        signed: activations as signed integers.
        symmetric: activations with zero point in the middle of the integer range.
        weight_symmetric: weights with zero point 0.
        pow2: scales are powers of two.
        tables: quantize constant tables that Gather reads.
        io: `int8` makes flow from the graph inputs count as quantized.
    """

    bits: int = 8
    act_bits: int = 8
    act: Literal["static", "dynamic", "none"] = "static"
    weights: Granularity = "channel"
    block_size: int = 32
    signed: bool = False
    symmetric: bool = False
    weight_symmetric: bool = True
    pow2: bool = False
    tables: bool = True
    io: Literal["float", "int8"] = "float"

    def activation(self) -> QuantSpec:
        """Return the format of activations."""
        return QuantSpec(self.act_bits, self.signed, scheme=self._scheme(self.symmetric))

    def weight(self, axis: int | None, reduced: int | None = None, size: int = 0) -> QuantSpec:
        """Return the format of weights.

        Args:
            axis: of the output channels; None forces one scale.
            reduced: axis that is summed over, which blocks lie along; None forbids blocks.
            size: its length; blocks need more than one.
        """
        scheme, narrow = self._scheme(self.weight_symmetric), self.weight_symmetric and self.bits > 1
        if self.bits == 1:
            scheme = Scheme.BIPOLAR
        if self.weights == "block" and reduced is not None and size > self.block_size:
            return QuantSpec(self.bits, True, narrow, scheme, reduced, self.block_size)
        return QuantSpec(self.bits, True, narrow, scheme, None if self.weights == "tensor" else axis)

    def _scheme(self, symmetric: bool) -> Scheme:
        if self.pow2:
            return Scheme.POWER_OF_TWO
        return Scheme.SYMMETRIC if symmetric else Scheme.ASYMMETRIC


Kind: TypeAlias = Literal["compute", "flow", "share", "table"]


@dataclass(frozen=True)
class Choice:
    """What a rule decided for a node.

    Attributes:
        kind: `compute` gains from integers by itself; `flow` joins when its surroundings are integer;
            `share` is flow whose result has the scale of its operand; `table` is a lookup.
        weights: operand index -> format of a constant operand.
        activations: operand indices that read activations.
        bias: operand index of a constant bias, or None.
        added: the Add behind the node whose constant is its bias, or None.
    """

    kind: Kind
    weights: Mapping[int, QuantSpec]
    activations: tuple[int, ...]
    bias: int | None = None
    added: ir.Node | None = None


Rule: TypeAlias = Callable[[ir.Node, Policy], "Choice | str"]


def _operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _refuse_operand(value: ir.Value | None, what: str) -> str | None:
    if value is None:
        return f"{what} is missing"
    if value.dtype != ir.DataType.FLOAT:
        return f"{what} {value.name!r} is {value.dtype.name if value.dtype else 'of unknown type'}, not FLOAT"
    maker = value.producer()
    if maker is not None and maker.op_type in _QUANTIZED_MAKERS:
        return f"{what} {value.name!r} is already quantized"
    return None


def stored_bytes(value: ir.Value | None) -> ir.Value | None:
    """Return the int8 constant that a weight was made of by a pass before, dequantized without blocks."""
    maker = walk.producer(value, "DequantizeLinear")
    source = None if maker is None else maker.inputs[0]
    if maker is None or source is None or walk.int_attribute(maker, "block_size", 0):
        return None
    return source if walk.is_constant(source) and source.dtype == ir.DataType.INT8 else None


def _is_ready(value: ir.Value | None, policy: Policy) -> bool:
    """Say whether a weight has its 8 bits already, so that only activations are left to quantize."""
    return policy.act == "static" and policy.act_bits == 8 and stored_bytes(value) is not None


def _weights(index: int, value: ir.Value, policy: Policy, spec: QuantSpec) -> dict[int, QuantSpec]:
    return {} if _is_ready(value, policy) else {index: spec}


def _refuse_product_weight(value: ir.Value | None, policy: Policy) -> str | None:
    return None if _is_ready(value, policy) else _refuse_weight(value)


def _refuse_weight(value: ir.Value | None) -> str | None:
    if reason := _refuse_operand(value, "weight"):
        return reason
    assert value is not None
    tensor = walk.constant_tensor(value)
    if tensor is None:
        return f"weight {value.name!r} is not constant"
    if value.is_graph_output():
        return f"weight {value.name!r} is also a graph output"
    return f"weight {value.name!r} is empty" if tensor.size == 0 else None


def _refuse_terms(terms: int, policy: Policy) -> str | None:
    if policy.bits <= 8 and policy.act_bits <= 8 and policy.act != "none" and terms > _MAX_TERMS:
        return f"a sum of {terms} products may leave int32, which holds {_MAX_TERMS}"
    return None


def _rank(value: ir.Value) -> int:
    tensor = walk.constant_tensor(value)
    assert tensor is not None
    return len(tensor.shape)


def _sizes(value: ir.Value) -> tuple[int, ...]:
    tensor = walk.constant_tensor(stored_bytes(value) or value)
    assert tensor is not None
    return tuple(int(size) for size in tensor.shape.numpy())


def _bias(node: ir.Node, index: int, channels: int) -> int | None:
    """Return `index` when that operand is a constant vector with one entry per channel."""
    value = _operand(node, index)
    if value is None or not walk.is_constant(value) or value.dtype != ir.DataType.FLOAT:
        return None
    sizes = _sizes(value)
    return index if sizes in ((channels,), (1, channels)) and not value.is_graph_output() else None


def _conv(node: ir.Node, policy: Policy) -> Choice | str:
    weight = _operand(node, 1)
    reason = _refuse_operand(node.inputs[0], "input") or _refuse_product_weight(weight, policy)
    if reason:
        return reason
    assert weight is not None
    sizes = _sizes(weight)
    terms = 1
    for size in sizes[1:]:
        terms *= size
    if reason := _refuse_terms(terms, policy):
        return reason
    weights = _weights(1, weight, policy, policy.weight(0, 1, sizes[1]))
    return Choice("compute", weights, (0,), _bias(node, 2, sizes[0]))


def _conv_transpose(node: ir.Node, policy: Policy) -> Choice | str:
    weight = _operand(node, 1)
    reason = _refuse_operand(node.inputs[0], "input") or _refuse_weight(weight)
    if reason:
        return reason
    assert weight is not None
    sizes, groups = _sizes(weight), walk.int_attribute(node, "group", 1)
    terms = 1
    for size in (sizes[0] // groups, *sizes[2:]):
        terms *= size
    if reason := _refuse_terms(terms, policy):
        return reason
    # Weights are [in, out / groups, ...]: with groups, a slice of axis 1 belongs to several outputs.
    axis = 1 if groups == 1 else None
    bias = _bias(node, 2, sizes[1]) if groups == 1 else None
    return Choice("compute", {1: policy.weight(axis)}, (0,), bias)


def _gemm(node: ir.Node, policy: Policy) -> Choice | str:
    if walk.is_constant(node.inputs[0]) and not walk.is_constant(node.inputs[1]):
        return "the left operand is constant and the right one is not"
    weight = node.inputs[1]
    reason = _refuse_operand(node.inputs[0], "input") or _refuse_product_weight(weight, policy)
    if reason:
        return reason
    assert weight is not None
    if any(getattr(node.attributes.get(k), "value", 1.0) != 1.0 for k in ("alpha", "beta")):
        return "alpha or beta is not 1"
    axis = 0 if walk.int_attribute(node, "transB", 0) else 1
    sizes = _sizes(weight)
    if reason := _refuse_terms(sizes[1 - axis], policy):
        return reason
    spec = policy.weight(axis, 1 - axis, sizes[1 - axis])
    return Choice("compute", _weights(1, weight, policy, spec), (0,), _bias(node, 2, sizes[axis]))


def _matmul(node: ir.Node, policy: Policy) -> Choice | str:
    if _is_ready(node.inputs[1], policy):
        return _refuse_operand(node.inputs[0], "input") or Choice("compute", {}, (0,))
    constant = [walk.is_constant(value) for value in node.inputs]
    if all(constant):
        return "both operands are constant"
    for value, is_constant in zip(node.inputs, constant, strict=True):
        reason = _refuse_weight(value) if is_constant else _refuse_operand(value, "input")
        if reason:
            return reason
    if not any(constant):
        return _matmul_of_activations(policy)
    side = constant.index(True)
    weight = node.inputs[side]
    assert weight is not None
    rank = _rank(weight)
    # One scale per row of a left operand cannot be taken out of the sum by every kernel: per tensor there.
    axis = rank - 1 if side == 1 and rank >= 2 else None
    sizes = _sizes(weight)
    terms = sizes[-2] if side == 1 and rank >= 2 else sizes[-1]
    if reason := _refuse_terms(terms, policy):
        return reason
    reduced = rank - 2 if axis is not None else None
    return Choice("compute", {side: policy.weight(axis, reduced, terms)}, (1 - side,))


def _matmul_of_activations(policy: Policy) -> Choice | str:
    if policy.act != "static":
        return "both operands are activations, whose ranges are not static"
    return Choice("compute", {}, (0, 1))


def _gather(node: ir.Node, policy: Policy) -> Choice | str:
    table = node.inputs[0]
    if table is None or not walk.is_constant(table) or table.dtype != ir.DataType.FLOAT:
        return _SHARE_RULE(node, policy)
    if reason := _refuse_weight(table):
        return reason
    if not policy.tables:
        return "tables stay float by configuration"
    rank, axis = _rank(table), walk.int_attribute(node, "axis", 0)
    # The scale must not depend on the gathered index: channels lie on the last axis.
    channel = rank - 1 if rank >= 2 and axis % rank != rank - 1 else None
    return Choice("table", {0: policy.weight(channel)}, ())


def _elementwise(node: ir.Node, policy: Policy) -> Choice | str:
    constants: dict[int, QuantSpec] = {}
    activations: list[int] = []
    for index, value in enumerate(node.inputs):
        constant = walk.is_constant(value)
        reason = _refuse_weight(value) if constant else _refuse_operand(value, "input")
        if reason:
            return reason
        if constant:
            constants[index] = policy.activation()
        else:
            activations.append(index)
    return Choice("flow", constants, tuple(activations)) if activations else "all operands are constant"


def _pool(node: ir.Node, policy: Policy) -> Choice | str:
    if len(node.outputs) > 1 and not walk.is_unused(node.outputs[1]):
        return "the indices of the maxima are used"
    kind: Kind = "share" if node.op_type == "MaxPool" else "flow"
    return _refuse_operand(node.inputs[0], "input") or Choice(kind, {}, (0,))


def _share(node: ir.Node, policy: Policy) -> Choice | str:
    return _refuse_operand(node.inputs[0], "input") or Choice("share", {}, (0,))


def _resize(node: ir.Node, policy: Policy) -> Choice | str:
    mode = walk.attribute(node, "mode", "nearest")
    kind: Kind = "share" if mode == "nearest" else "flow"
    return _refuse_operand(node.inputs[0], "input") or Choice(kind, {}, (0,))


_SHARE_RULE: Rule = _share

RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "Add": _elementwise,
    "Mul": _elementwise,
    "Concat": _elementwise,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "Resize": _resize,
    "Transpose": _share,
    "Reshape": _share,
    "Flatten": _share,
    "Squeeze": _share,
    "Unsqueeze": _share,
    "DepthToSpace": _share,
    "SpaceToDepth": _share,
    "Slice": _share,
}

# Operators that stay float on purpose; their reasons stand in the report's summary, not once per node.
STAYS_FLOAT: Mapping[str, str] = {
    "Softmax": "exponents need more than 8 bits",
    "LogSoftmax": "exponents need more than 8 bits",
    "LayerNormalization": "a mean of squares needs more than 8 bits",
    "RMSNormalization": "a mean of squares needs more than 8 bits",
    "InstanceNormalization": "a mean of squares needs more than 8 bits",
    "GroupNormalization": "a mean of squares needs more than 8 bits",
    "BatchNormalization": "run canonicalize first: it folds into the layer before",
}

# No arithmetic on quantizable floats, absorbed by a neighbour, or cheap one-operand functions.
_NEUTRAL = """
Relu Clip Identity Constant ConstantOfShape Shape Size Cast Expand Tile Range Where Equal Less
Greater Not And Or Split Pad Dropout QuantizeLinear DequantizeLinear Quant BipolarQuant Trunc
MultiThreshold DynamicQuantizeLinear Sigmoid Tanh Exp Log Sqrt Neg Abs Erf Gelu HardSigmoid
HardSwish LeakyRelu Elu PRelu Softplus Sub Div Pow Reciprocal ReduceMean ReduceSum ReduceMax
ReduceMin Max Min ArgMax TopK Sin Cos Floor Ceil Round If Loop Scan LSTM GRU RNN
"""
NEUTRAL = frozenset(_NEUTRAL.split())
