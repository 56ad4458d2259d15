"""Layers that low rank applies to: reading them, what their chains cost, and writing the chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ...compiler.ir.stats import macs_of
from ...compiler.ir.walk import (
    add_initializer,
    constant_tensor,
    drop_unused_initializer,
    int_attribute,
    unique_name,
)
from ..prune.statistics import Parents
from ..prune.weights import Layout, Use, View, Weight
from ..quantize.moments import conv_geometry
from .methods import Shaped, Stage, Weights, Window
from .whiten import Floats

CELLS = ("LSTM", "GRU")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer with constant weights of its own.

    Attributes:
        weight: how it is stored, and who reads it.
        shape: of its weights as [M, C, kh, kw].
        window: of a convolution.
        size: height and width of its input; (rows, 1) for matrix products, 1 for what is not known.
        times: how often one inference runs it; loops repeat their bodies.
    """

    weight: Weight
    shape: tuple[int, int, int, int]
    window: Window
    size: tuple[int, int]
    times: int = 1

    @property
    def node(self) -> ir.Node:
        """The ONNX node."""
        return self.weight.uses[0].node

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
        matrix = self.weight.matrix().astype(np.float64, copy=False)
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
        return macs * self.times, sum(math.prod(shape) for shape, _ in shapes)


def _out(size: int, kernel: int, stride: int, dilation: int) -> int:
    return max((size - (kernel - 1) * dilation - 1) // stride + 1, 1)


def repeats(node: ir.Node, parents: Parents) -> int:
    """Return how often one inference runs a node, 1 where a trip count is not known."""
    times, graph = 1, node.graph
    while isinstance(graph, ir.Graph) and graph in parents:
        loop = parents[graph]
        once = sum(macs_of(inner) or 0 for inner in graph)
        times *= max((macs_of(loop) or 0) // once, 1) if once else 1
        graph = loop.graph
    return times


def read_dense(node: ir.Node) -> Dense | str:
    """Return the view of a layer, or why its weights cannot be factored. Reads no weights.

    Of LSTM and GRU, the input weights: the chain's first stage then runs once over the whole sequence.
    """
    weight = node.inputs[1]
    tensor = None if weight is None else constant_tensor(weight)
    if weight is None or tensor is None:
        return "the weight is not a float constant (quantized already?)"
    if tensor.dtype not in _FLOATS:
        return f"the weight is {tensor.dtype}"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return f"weight {weight.name!r} is shared or a graph output"
    shape = tuple(int(size) for size in tensor.shape.numpy())
    return _conv(node, weight, shape) if node.op_type == "Conv" else _matrix(node, weight, shape)


def _matrix(node: ir.Node, weight: ir.Value, shape: tuple[int, ...]) -> Dense | str:
    if node.op_type == "Gemm" and int_attribute(node, "transA", 0):
        return "the input is transposed (transA)"
    layout: Layout = "rows" if int_attribute(node, "transB", 0) else "transposed"
    if node.op_type in CELLS:
        if shape[0] != 1:
            return "a cell of two directions"
        layout = "cell"
    elif len(shape) != 2:
        return f"{node.op_type} weight has {len(shape)} dimensions, low rank needs 2"
    rows, columns = (shape[1], shape[0]) if layout == "transposed" else shape[-2:]
    dims = node.inputs[0].shape if node.inputs[0] is not None else None
    count = math.prod(dim for dim in dims[:-1] if isinstance(dim, int)) if dims is not None else 1
    read = Weight(weight, View(shape, 1, layout), (Use(node, 1),))
    return Dense(read, (rows, columns, 1, 1), Window(), (count, 1))


def _conv(node: ir.Node, weight: ir.Value, shape: tuple[int, ...]) -> Dense | str:
    groups = int_attribute(node, "group", 1)
    if groups != 1:
        return f"a convolution of {groups} groups"
    if len(shape) not in (3, 4):
        return f"a convolution over {len(shape) - 2} axes"
    data = node.inputs[0]
    dims = [] if data is None or data.shape is None else data.shape.dims[2:]
    spatial = tuple(dim if isinstance(dim, int) else 1 for dim in dims) or (1,) * (len(shape) - 2)
    known = bool(dims) and all(isinstance(dim, int) for dim in dims)
    if "auto_pad" in node.attributes and not known:
        return "auto_pad needs a known input size"
    found = conv_geometry(node, shape[2:], spatial)
    # A convolution along one axis is one along two, of which the second has length 1.
    one = (1,) if len(shape) == 3 else ()
    half = len(found.pads) // 2
    none = (0,) if one else ()
    pads = (*found.pads[:half], *none, *found.pads[half:], *none)
    window = Window((*found.strides, *one), pads, (*found.dilations, *one))
    read = Weight(weight, View(shape, 1, "rows"), (Use(node, 1),))
    return Dense(read, (*shape, *one), window, (*spatial, *one))


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
        weight = weight.reshape(weight.shape[: len(dense.weight.view.shape)])
    else:
        weight = weight[:, :, 0, 0]
        weight = weight.T if plain or dense.weight.view.layout == "transposed" else weight
        weight = weight[None] if node.op_type in CELLS and not plain else weight
    array = np.array(weight, old.dtype.numpy(), order="C")
    return add_initializer(node.graph, unique_name(model, f"{old.name}_{suffix}"), array)


def _attributes(dense: Dense, stage: Stage) -> dict[str, list[int]]:
    axes = len(dense.weight.view.shape) - 2
    window, pads = stage.window, stage.window.pads
    return {
        "kernel_shape": list(stage.weight.shape[2 : 2 + axes]),
        "strides": list(window.strides[:axes]),
        "pads": [*pads[:axes], *pads[2 : 2 + axes]],
        "dilations": list(window.dilations[:axes]),
    }
