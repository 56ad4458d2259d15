"""Layers that low rank applies to: reading them, what their chains cost, and writing the chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import (
    add_initializer,
    constant,
    constant_tensor,
    drop_unused_initializer,
    int_attribute,
    unique_name,
)
from ..quantize.moments import Layer, conv_geometry, layer_of
from .methods import Shaped, Stage, Weights, Window
from .whiten import Floats

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer with constant weights of its own.

    Attributes:
        layer: how its inputs are read as patches.
        shape: of its weights as [M, C, kh, kw].
        window: of a convolution.
        size: height and width of its input; (rows, 1) for matrix products, 1 for what is not known.
    """

    layer: Layer
    shape: tuple[int, int, int, int]
    window: Window
    size: tuple[int, int]

    @property
    def node(self) -> ir.Node:
        """The ONNX node."""
        return self.layer.node

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the layer as it is."""
        return self.cost(((self.shape, self.window),))[0]

    @property
    def parameters(self) -> int:
        """Weights of the layer as it is, bias apart."""
        return math.prod(self.shape)

    def weights(self, gram: Floats | None) -> Weights:
        """Return the weights, read in float64, with the second moment of the layer's patches."""
        array = constant(self.node.inputs[1])
        assert array is not None, "read_dense has seen a constant"
        matrix = self.layer.to_matrix(array.astype(np.float64))
        return Weights(matrix.reshape(self.shape), gram, self.window)

    def cost(self, shapes: Sequence[Shaped]) -> tuple[int, int]:
        """Return MACs and parameters of a chain in place of the layer."""
        macs, (height, width) = 0, self.size
        for shape, window in shapes:
            kh, kw = shape[2:]
            top, left, bottom, right = window.pads
            height = _out(height + top + bottom, kh, window.strides[0], window.dilations[0])
            width = _out(width + left + right, kw, window.strides[1], window.dilations[1])
            macs += height * width * math.prod(shape)
        return macs, sum(math.prod(shape) for shape, _ in shapes)


def _out(size: int, kernel: int, stride: int, dilation: int) -> int:
    return max((size - (kernel - 1) * dilation - 1) // stride + 1, 1)


def read_dense(node: ir.Node) -> Dense | str:
    """Return the view of a Conv, Gemm or MatMul, or why its weights cannot be factored. Reads no weights."""
    weight = node.inputs[1]
    tensor = None if weight is None else constant_tensor(weight)
    if weight is None or tensor is None:
        return "the weight is not a float constant (quantized already?)"
    if tensor.dtype not in _FLOATS:
        return f"the weight is {tensor.dtype}"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return f"weight {weight.name!r} is shared or a graph output"
    shape = tuple(int(size) for size in tensor.shape.numpy())
    layer = layer_of(node, shape)
    if isinstance(layer, str):
        return layer
    return _conv(node, layer, shape) if node.op_type == "Conv" else _matrix(node, layer)


def _matrix(node: ir.Node, layer: Layer) -> Dense | str:
    if node.op_type == "Gemm" and int_attribute(node, "transA", 0):
        return "the input is transposed (transA)"
    dims = node.inputs[0].shape if node.inputs[0] is not None else None
    rows = math.prod(dim for dim in dims[:-1] if isinstance(dim, int)) if dims is not None else 1
    return Dense(layer, (layer.rows, layer.columns, 1, 1), Window(), (rows, 1))


def _conv(node: ir.Node, layer: Layer, shape: tuple[int, ...]) -> Dense | str:
    if layer.groups != 1:
        return f"a convolution of {layer.groups} groups"
    if len(shape) not in (3, 4):
        return f"a convolution over {len(shape) - 2} axes"
    data = node.inputs[0]
    dims = [] if data is None or data.shape is None else data.shape.dims[2:]
    spatial = tuple(dim if isinstance(dim, int) else 1 for dim in dims) or (1,) * (len(shape) - 2)
    if "auto_pad" in node.attributes and not all(isinstance(dim, int) for dim in dims or [None]):
        return "auto_pad needs a known input size"
    found = conv_geometry(node, shape[2:], spatial)
    # A convolution along one axis is one along two, of which the second has length 1.
    one = (1,) if len(shape) == 3 else ()
    half = len(found.pads) // 2
    none = (0,) if one else ()
    pads = (*found.pads[:half], *none, *found.pads[half:], *none)
    window = Window((*found.strides, *one), pads, (*found.dilations, *one))  # type: ignore[arg-type]
    return Dense(layer, (*shape, *one), window, (*spatial, *one))  # type: ignore[arg-type]


def write_chain(model: ir.Model, dense: Dense, stages: tuple[Stage, ...]) -> None:
    """Put the chain in the layer's place: its own node becomes the last stage and keeps bias and names."""
    node, data = dense.node, dense.node.inputs[0]
    assert node.graph is not None, "a node without a graph"
    assert data is not None, "a layer without input"
    for index, stage in enumerate(stages[:-1]):
        made = ir.node(
            "Conv" if node.op_type == "Conv" else "MatMul",
            [data, _constant(model, dense, stage, f"lowrank_{index}", plain=True)],
            _attributes(dense, stage) if node.op_type == "Conv" else {},
            name=unique_name(model, f"{node.name or node.op_type}_lowrank_{index}"),
        )
        made.outputs[0].name = unique_name(model, f"{node.outputs[0].name}_lowrank_{index}")
        node.graph.insert_before(node, made)
        data = made.outputs[0]
    old = node.inputs[1]
    node.replace_input_with(0, data)
    node.replace_input_with(1, _constant(model, dense, stages[-1], "lowrank", plain=False))
    assert old is not None, "a layer has weights"
    drop_unused_initializer(old)
    if node.op_type == "Conv":
        node.attributes.pop("auto_pad", None)
        for name, value in _attributes(dense, stages[-1]).items():
            node.attributes[name] = ir.AttrInt64s(name, value)


def _constant(model: ir.Model, dense: Dense, stage: Stage, suffix: str, *, plain: bool) -> ir.Value:
    """Register a stage's weights as its node wants them; `plain`: as a MatMul does."""
    node, old = dense.node, dense.node.inputs[1]
    assert node.graph is not None, "a node without a graph"
    assert old is not None, "a layer without weights"
    assert old.dtype is not None, "weights without a type"
    weight = stage.weight
    if node.op_type == "Conv":
        weight = weight.reshape(weight.shape[: len(dense.layer.weight_shape)])
    else:
        weight = weight[:, :, 0, 0]
        weight = weight.T if plain or dense.layer.transposed else weight
    array = np.array(weight, old.dtype.numpy(), order="C")
    return add_initializer(node.graph, unique_name(model, f"{old.name}_{suffix}"), array)


def _attributes(dense: Dense, stage: Stage) -> dict[str, list[int]]:
    axes = len(dense.layer.weight_shape) - 2
    window, pads = stage.window, stage.window.pads
    return {
        "kernel_shape": list(stage.weight.shape[2 : 2 + axes]),
        "strides": list(window.strides[:axes]),
        "pads": [*pads[:axes], *pads[2 : 2 + axes]],
        "dilations": list(window.dilations[:axes]),
    }
