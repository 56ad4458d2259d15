"""SizeGuard: a node that stops shape inference before absurd sizes cost memory.

onnx's inference makes each element of a computed shape a dimension, follows the content of vectors through
a few ops whatever their length, and never ends a `Slice` whose step overflows. Running out of memory in there
kills the process (protobuf's destructors do not survive it), so the node in front looks first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema
from onnx.numpy_helper import to_array

from .common import PARED_DOMAIN

OP = "SizeGuard"
Kind = Literal["absurd-size", "long-vector"]
ABSURD: Kind = "absurd-size"
LONG: Kind = "long-vector"

# NumPy holds at most 64 axes; real shapes have a handful, real steps fit in 31 bits.
_MOST_SIZES = 64
_MOST_STEP = 2**31

# Op type -> the first input that is taken as sizes.
_TAKES_SIZES: Mapping[str, int] = {
    "AffineGrid": 1,
    "CenterCropPad": 1,
    "Col2Im": 1,
    "ConstantOfShape": 0,
    "Expand": 1,
    "MaxUnpool": 2,
    "Reshape": 1,
    "Resize": 2,
    "Tile": 1,
}
# The ops through which onnx follows the content of vectors (`has_data_propagation_function`).
_FOLLOWED = frozenset(
    {"Add", "Cast", "Concat", "Gather", "Mul", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze"}
)
_STEPS = 4


def is_followed(node: ir.Node) -> bool:
    """Return whether onnx's data propagation looks into the inputs of `node`."""
    return not node.domain and node.op_type in _FOLLOWED


def guards_of(node: ir.Node, longest: int) -> Iterator[onnx.NodeProto]:
    """Yield the nodes to put in front of `node`; none where it can do no harm.

    Args:
        node: any node.
        longest: the most elements of a vector to follow; 0 where inference follows none.
    """
    if node.domain:
        return
    sizes = node.inputs[_TAKES_SIZES.get(node.op_type, len(node.inputs)) :]
    if not all(_is_constant(value) for value in sizes):
        yield _guard(node, sizes, ABSURD, _MOST_SIZES)
    if longest and is_followed(node):
        if node.op_type == "Slice" and len(node.inputs) > _STEPS:
            yield _guard(node, node.inputs[_STEPS:], ABSURD, _MOST_SIZES)
        yield _guard(node, node.inputs, LONG, longest)


def _is_constant(value: ir.Value | None) -> bool:
    # Import has checked what constants declare.
    return value is None or value.const_value is not None


def _guard(node: ir.Node, values: Sequence[ir.Value | None], kind: Kind, most: int) -> onnx.NodeProto:
    names = [value.name for value in values if value is not None and value.name]
    unused = f"{node.outputs[0].name}/{OP}-{kind}"
    return onnx.helper.make_node(OP, names, [unused], domain=PARED_DOMAIN, kind=kind, most=most)


def _infer(ctx: onnx.shape_inference.InferenceContext) -> None:
    kind, most = ctx.get_attribute("kind").s.decode(), ctx.get_attribute("most").i
    for index in range(ctx.get_num_inputs()):
        # None where nothing is known, whatever onnx's annotation says.
        known: onnx.TypeProto | None = ctx.get_input_type(index)
        dims = list(known.tensor_type.shape.dim) if known is not None else []
        if len(dims) == 1 and dims[0].dim_value > most:
            raise onnx.shape_inference.InferenceError(kind)
        if kind == ABSURD and _steps_far(ctx.get_input_data(index)):
            raise onnx.shape_inference.InferenceError(kind)
    first: onnx.TypeProto | None = ctx.get_input_type(0)
    if first is not None:
        ctx.set_output_type(0, first)


def _steps_far(steps: onnx.TensorProto | None) -> bool:
    return steps is not None and any(abs(int(step)) > _MOST_STEP for step in to_array(steps).flat)


def _schema() -> OpSchema:
    parameter, option, kinds = OpSchema.FormalParameter, OpSchema.FormalParameterOption, OpSchema.AttrType
    tensors = sorted(onnx.defs.get_schema("Concat").inputs[0].types)
    schema = OpSchema(
        OP,
        PARED_DOMAIN,
        1,
        "Stops shape inference in front of sizes that no real model has; its output is not used.",
        inputs=[parameter("looked_at", "T", param_option=option.Variadic, is_homogeneous=False)],
        outputs=[parameter("unused", "U")],
        type_constraints=[("T", tensors, "any tensor"), ("U", tensors, "the type of the first input")],
        attributes=[
            OpSchema.Attribute("kind", kinds.STRING, "What to say."),
            OpSchema.Attribute("most", kinds.INT, "The most elements of a vector."),
        ],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


SCHEMA = _schema()
