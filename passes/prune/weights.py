"""Weights that can be pruned: found in every graph, seen as matrices, refused with reasons, stored anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.exclusion import excluded_by
from ...compiler.ir import walk
from ...compiler.pass_api import Refusal

Floats = npt.NDArray[np.floating]
Array = npt.NDArray[np.generic]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CELLS = frozenset({"LSTM", "GRU", "RNN"})
_DEQUANTIZERS = frozenset({"DequantizeLinear", "Quant", "BipolarQuant", "Trunc", "DynamicQuantizeLinear"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})

Layout = Literal["rows", "transposed", "deconvolution", "cell"]


@dataclass(frozen=True)
class View:
    """How a stored weight is seen as matrices `[groups, rows, k]`, one row per output.

    Attributes:
        shape: of the weight as stored.
        groups: of a convolution, or directions of a recurrent cell.
        layout: `rows`: stored in this order; `transposed`: `[k, rows]`; `deconvolution`: ConvTranspose;
            `cell`: W or R of a recurrent cell, `[directions, gates * hidden, k]`.
    """

    shape: tuple[int, ...]
    groups: int
    layout: Layout

    def to_matrix(self, array: Array) -> Array:
        """Arrange an array of the weight's shape."""
        g = self.groups
        if self.layout == "transposed":
            return np.ascontiguousarray(array.T)[None]
        if self.layout == "cell":
            return array
        if self.layout == "rows":
            return array.reshape(g, self.shape[0] // g, -1)
        split = array.reshape(g, self.shape[0] // g, self.shape[1], -1).transpose(0, 2, 1, 3)
        return split.reshape(g, self.shape[1], -1)

    def from_matrix(self, matrix: Array) -> Array:
        """Undo `to_matrix`."""
        g = self.groups
        if self.layout == "transposed":
            return np.ascontiguousarray(matrix[0].T)
        if self.layout in ("rows", "cell"):
            return np.ascontiguousarray(matrix).reshape(self.shape)
        split = matrix.reshape(g, self.shape[1], self.shape[0] // g, -1).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(split).reshape(self.shape)

    @property
    def columns(self) -> int:
        """`k`."""
        kernel = int(np.prod(self.shape[2:]))
        if self.layout == "transposed":
            return self.shape[0]
        if self.layout == "deconvolution":
            return self.shape[0] // self.groups * kernel
        return self.shape[2] if self.layout == "cell" else self.shape[1] * kernel


@dataclass(frozen=True)
class Use:
    """A node that multiplies by a weight; `port` is 1, or 2 for the recurrent weight of a cell."""

    node: ir.Node
    port: int


@dataclass(frozen=True)
class Weight:
    """A constant to prune, and everybody who multiplies by it, all seeing it the same way."""

    value: ir.Value
    view: View
    uses: tuple[Use, ...]

    @property
    def name(self) -> str:
        """Of the first node, for reports; recurrent weights with their letter."""
        use = self.uses[0]
        letter = {1: "W", 2: "R"}[use.port] if use.node.op_type in _CELLS else ""
        return f"{use.node.name} {letter}".rstrip()

    def matrix(self) -> Floats:
        """The weight as `[groups, rows, k]`, float64; read from the model at every call."""
        array = walk.constant(self.value)
        assert array is not None, self.value
        return self.view.to_matrix(array).astype(np.float64)


def find_weights(model: ir.Model, refused: list[Refusal], exclude: tuple[str, ...] = ()) -> list[Weight]:
    """List prunable weights in graph order; what cannot be pruned goes to `refused`."""
    found: dict[ir.Value, list[tuple[Use, View]]] = {}
    for node in walk.all_nodes(model):
        for value, use in _operands(node):
            view = _view(node, value)
            if excluded_by(str(node.name), exclude):
                view = "excluded by name"
            if isinstance(view, str):
                refused.append(Refusal(str(node.name), view))
            else:
                found.setdefault(value, []).append((use, view))
    weights = [_joined(value, uses) for value, uses in found.items()]
    refused.extend(w for w in weights if isinstance(w, Refusal))
    return [w for w in weights if isinstance(w, Weight)]


def _operands(node: ir.Node) -> Iterator[tuple[ir.Value, Use]]:
    if node.domain:
        return
    ports = (1, 2) if node.op_type in _CELLS else (1,) if node.op_type in _LAYERS else ()
    for port in ports:
        value = node.inputs[port] if len(node.inputs) > port else None
        if value is not None:
            yield value, Use(node, port)


def _view(node: ir.Node, value: ir.Value) -> View | str:
    """See the weight as matrices, or say why not."""
    shape = walk.static_shape(value)
    if not walk.is_constant(value) or shape is None:
        return _not_constant(node, value)
    if value.dtype not in _FLOATS:
        return f"weight {value.name!r} is {value.dtype}, pruning needs float: put prune before quantize"
    if value.is_graph_output():
        return f"weight {value.name!r} is also a graph output"
    if node.op_type in _CELLS:
        return View(shape, shape[0], "cell")
    if node.op_type.startswith("Conv"):
        layout: Layout = "rows" if node.op_type == "Conv" else "deconvolution"
        return View(shape, walk.int_attribute(node, "group", 1), layout)
    if len(shape) != 2:
        return f"{node.op_type} weight has {len(shape)} dimensions, pruning needs 2"
    return View(shape, 1, "rows" if walk.int_attribute(node, "transB", 0) else "transposed")


def _not_constant(node: ir.Node, value: ir.Value) -> str:
    maker = value.producer()
    if maker is not None and maker.op_type in _DEQUANTIZERS and walk.is_constant(maker.inputs[0]):
        return f"weight {value.name!r} is quantized already: put prune before quantize"
    if node.op_type == "MatMul" and walk.is_constant(node.inputs[0]):
        return f"constant {str(node.inputs[0].name)!r} is the left operand" if node.inputs[0] else ""
    return f"weight {value.name!r} is not constant"


def _joined(value: ir.Value, uses: list[tuple[Use, View]]) -> Weight | Refusal:
    first, view = uses[0]
    counted = {(use.node, use.port) for use, _ in uses}
    strangers = [node for node, port in value.uses() if (node, port) not in counted]
    name = str(first.node.name)
    if strangers:
        other = strangers[0]
        return Refusal(name, f"weight {value.name!r} is also read by {other.op_type} {other.name!r}")
    if any(v != view for _, v in uses[1:]):
        return Refusal(name, f"weight {value.name!r} is shared by layers that read it in different layouts")
    return Weight(value, view, tuple(use for use, _ in uses))


def store(model: ir.Model, weight: Weight, matrix: Floats) -> ir.Value:
    """Put `[groups, rows, k]` in the place of the weight; the new constant takes the old one's name."""
    old = weight.value
    array = walk.constant(old)
    assert array is not None, old
    return replace_constant(model, old, weight.view.from_matrix(matrix).astype(array.dtype))


def replace_constant(model: ir.Model, old: ir.Value, array: Array) -> ir.Value:
    """Let every reader of a constant read `array` under the old name; the old one goes."""
    assert isinstance(old.graph, ir.Graph), old
    graph, name, maker = old.graph, str(old.name), old.producer()
    walk.rename(old, walk.unique_name(model, f"{name}_replaced"))
    new = walk.add_initializer(graph, name, array)
    for user, index in old.uses():
        user.replace_input_with(index, new)
    if maker is not None:
        walk.remove_if_dead(maker)
    else:
        walk.drop_unused_initializer(old)
    return new
