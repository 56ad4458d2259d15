"""Which operators stay in float32, and why; which operands of the others have a half form.

Kernels of half models read half values, compute in float32 and round once (docs/semantics.md), so softmax,
normalizations and products lose nothing inside. What stays in float32 is what a half *result* would spoil.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ...compiler.ir.operators import schema_of
from ...compiler.ir.walk import bodies

_RANGE = "its result can leave the range of half floats"
_ANGLES = "angles and coordinates need more digits than half floats have"
_STATE = "its state is carried through many steps"
_TYPED = "its element type is part of its meaning"

_GROUPS: Mapping[str, str] = {
    "Pow Exp ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd CumSum Det "
    "LRN LpNormalization LpPool GlobalLpPool MeanVarianceNormalization": _RANGE,
    "Sin Cos Tan Asin Acos Atan GridSample AffineGrid RoiAlign MaxRoiPool DeformConv DFT STFT": _ANGLES,
    "LSTM GRU RNN": _STATE,
    "BitCast CastLike EyeLike RandomNormalLike RandomUniformLike Bernoulli Multinomial "
    "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss MelWeightMatrix": _TYPED,
}
# Operator -> why it stays in float32.
KEPT_OPS: Mapping[str, str] = {op: why for names, why in _GROUPS.items() for op in names.split()}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nodes that only follow: between values kept in float32 they stay there too, which saves the casts.
FOLLOWERS = _names(
    "Add Sub Mul Div Sqrt Reciprocal Neg Abs Log Max Min Clip Where ReduceMean ReduceMax ReduceMin Softmax "
    "LogSoftmax Reshape Flatten Squeeze Unsqueeze Expand Transpose Slice Concat Identity Gather Erf "
    "Sigmoid Tanh Equal Less Greater LessOrEqual GreaterOrEqual Sum Mean Dropout Tile Split Pad"
)
# Huge values (masks of -3e38) are gone behind these.
SQUASHING = _names("Softmax Sigmoid Tanh Clip Max Min Equal Less Greater LessOrEqual GreaterOrEqual")
# A bound beyond the range of half floats is no bound: it may become infinite.
BOUNDED = _names("Clip Max Min Pad")

# Read for angles: what computes these alone stays in float32 from its constants on.
ANGULAR = _names("Sin Cos Tan")

LAYERS = _names("Conv ConvTranspose Gemm MatMul")

# Scale, shift and statistics of a layer that has types of their own for them.
_OWN_TYPES: Mapping[str, frozenset[int]] = {"BatchNormalization": frozenset((1, 2, 3, 4))}
# Mean and deviation have the type that the layer computes in, float32.
_FLOAT_RESULTS: Mapping[str, frozenset[int]] = {"LayerNormalization": frozenset((1, 2))}

QUANTIZERS = _names(
    "QuantizeLinear DynamicQuantizeLinear Quant BipolarQuant Trunc MultiThreshold DynamicBlockQuantize"
)
DEQUANTIZERS = _names("DequantizeLinear Quant BipolarQuant Trunc MultiThreshold")


@dataclass(frozen=True)
class Form:
    """Which operands and results of an operator may be half floats; the last entry stands for more."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]

    def takes(self, index: int) -> bool:
        """Say whether input `index` may be half."""
        return bool(self.inputs) and self.inputs[min(index, len(self.inputs) - 1)]

    def makes(self, index: int) -> bool:
        """Say whether output `index` may be half."""
        return bool(self.outputs) and self.outputs[min(index, len(self.outputs) - 1)]


@functools.lru_cache(maxsize=1024)
def _form(op: str, version: int, half: str) -> Form:
    schema = onnx.defs.get_schema(op, version, "")
    types = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}

    def both(kind: str) -> bool:
        return {"tensor(float)", half} <= types.get(kind, set())

    inputs = [both(i.type_str) for i in schema.inputs]
    for index in _OWN_TYPES.get(op, ()):
        inputs[index] = False
    outputs = [both(o.type_str) for o in schema.outputs]
    for index in _FLOAT_RESULTS.get(op, ()):
        outputs[index] = False
    return Form(tuple(inputs), tuple(outputs))


def form_of(node: ir.Node, versions: dict[str, int], kind: ir.DataType) -> Form:
    """Return which operands of `node` may be of the half type `kind`, by its operator's schema."""
    if node.domain or schema_of(node, versions) is None:
        return Form((), ())
    return _form(node.op_type, versions[""], f"tensor({kind.name.lower()})")


def reason_to_keep(node: ir.Node, form: Form) -> str | None:
    """Say why a node stays in float32 whatever its values are, or None."""
    if node.op_type in QUANTIZERS or node.op_type in DEQUANTIZERS:
        return "quantizers compute in float32"
    if node.domain:
        return f"no half form of {node.domain}::{node.op_type}"
    if bodies(node):
        return "values go in and out of its bodies in float32"
    if node.op_type in KEPT_OPS:
        return KEPT_OPS[node.op_type]
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return f"a square: {_RANGE}"
    floats = [i for i, v in enumerate(node.inputs) if v is not None and v.dtype == ir.DataType.FLOAT]
    if node.op_type == "Cast" or not floats:
        return "it makes a value of a type of its own"
    if not any(form.takes(index) for index in floats):
        return f"ONNX has no half form of {node.op_type}"
    if any(not isinstance(v.type, ir.TensorType) for v in (*node.inputs, *node.outputs) if v is not None):
        return "its values are no tensors"
    return None
