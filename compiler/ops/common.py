"""What the own ops share: how a schema is declared and how an op is written in standard ONNX ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

Array = npt.NDArray[np.number]
AttributeValue = int | float | str | Sequence[int]

QONNX_DOMAIN = "qonnx.custom_op.general"
FINN_DOMAIN = "finn.custom_op.general"
PARED_DOMAIN = "pared.ops"

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)"]
_NUMBERS = [*_FLOATS, *(f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64))]


def _same_as_first_input(ctx: onnx.shape_inference.InferenceContext) -> None:
    """Shape inference of every own op: one output with the type and shape of input 0."""
    if ctx.has_input(0):
        ctx.set_output_type(0, ctx.get_input_type(0))


def make_schema(
    name: str,
    domain: str,
    doc: str,
    inputs: Mapping[str, str],
    attributes: Mapping[str, int | float | str],
    optional: Sequence[str] = (),
) -> OpSchema:
    """Build the schema of an element-wise own op.

    Args:
        name: op type.
        domain: op domain.
        doc: one line.
        inputs: input name -> type variable, `T` (floats, the type of the output) or `N` (any number).
        attributes: attribute name -> default value.
        optional: names of inputs that may be left out.
    """
    parameter, option = OpSchema.FormalParameter, OpSchema.FormalParameterOption
    schema = OpSchema(
        name,
        domain,
        1,
        doc,
        inputs=[
            parameter(key, kind, param_option=option.Optional if key in optional else option.Single)
            for key, kind in inputs.items()
        ],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", _FLOATS, "float types"), ("N", _NUMBERS, "numbers")],
        attributes=[
            OpSchema.Attribute(key, onnx.helper.make_attribute(key, value))
            for key, value in attributes.items()
        ],
    )
    schema.set_type_and_shape_inference_function(_same_as_first_input)
    return schema


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def channel_axis(scale_shape: Sequence[int], rank: int) -> int | None:
    """Return the only axis along which a broadcast scale varies; None for one value.

    Raises:
        ValueError: when it varies along several axes, or has a higher rank than the tensor.
    """
    if len(scale_shape) > rank and int(np.prod(scale_shape)) != 1:
        raise ValueError(f"scale of shape {list(scale_shape)} does not broadcast into rank {rank}")
    offset = rank - len(scale_shape)
    axes = [offset + axis for axis, size in enumerate(scale_shape) if size != 1]
    if len(axes) > 1:
        raise ValueError(f"scale of shape {list(scale_shape)} varies along several axes")
    return axes[0] if axes else None


class Expander:
    """Collects the standard nodes that take the place of one own op.

    Values get names `<output>_<suffix>` that are unique in the model; constants become initializers of the
    graph the node lives in.
    """

    def __init__(self, node: ir.Node, taken: set[str]) -> None:
        self.node = node
        self.nodes: list[ir.Node] = []
        self._taken = taken
        self._base = node.outputs[0].name or node.op_type
        graph = node.graph
        assert isinstance(graph, ir.Graph), f"{node.op_type} {node.name!r} is in no graph"
        self._graph = graph

    def _name(self, suffix: str) -> str:
        name, count = f"{self._base}_{suffix}", 1
        while name in self._taken:
            name, count = f"{self._base}_{suffix}{count}", count + 1
        self._taken.add(name)
        return name

    def constant(self, array: Array, suffix: str) -> ir.Value:
        """Add an initializer."""
        array = np.array(array, order="C")
        array.setflags(write=False)
        name = self._name(suffix)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
        )
        self._graph.register_initializer(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | Array],
        dtype: ir.DataType | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        shape: ir.Shape | None = None,
    ) -> ir.Value:
        """Add a node with one output; arrays become initializers.

        `dtype` and `shape` default to those of the replaced node's output.
        """
        values = [item if isinstance(item, ir.Value) else self.constant(item, "c") for item in inputs]
        output, old = ir.Value(name=self._name(op_type.lower())), self.node.outputs[0]
        kind = dtype if dtype is not None else old.dtype
        if kind is not None:
            output.dtype = kind
        known = shape if shape is not None else old.shape
        output.shape = None if known is None else known.copy()
        converted = ir.convenience.convert_attributes(attributes or {})
        self.nodes.append(ir.Node("", op_type, values, converted, outputs=[output]))
        return output
