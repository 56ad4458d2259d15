"""Pairs of linear layers whose channels can trade a factor: found in the graph, scaled, rewritten."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.scaled import Scaled
from ...compiler.pass_api import Refusal

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.floating]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"}
)
_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass
class Linear:
    """A linear layer with a constant weight, and the factors found for its channels.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: as stored; arrays are read one layer at a time and never held.
        groups: of a convolution, else 1.
        divide: `[rows]`, output channels are divided by it.
        multiply: `[columns]`, input channels are multiplied by it.
    """

    node: ir.Node
    weight: ir.Value
    groups: int
    rows: int
    columns: int
    divide: Floats = field(init=False)
    multiply: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.divide, self.multiply = np.ones(self.rows), np.ones(self.columns)

    def canonical(self) -> Floats:
        """The weight as `[groups, rows per group, columns per group, kernel]`, factors applied, float64."""
        w = walk.constant(self.weight)
        assert w is not None, self.weight
        g = self.groups
        grid = self._arrange(w.astype(np.float64))
        grid = grid * self.multiply.reshape(g, 1, -1, 1)
        result: Floats = grid / self.divide.reshape(g, -1, 1, 1)
        return result

    def _arrange(self, w: Floats) -> Floats:
        g = self.groups
        if self.node.op_type == "Conv":
            return w.reshape(g, self.rows // g, self.columns // g, -1)
        if self.node.op_type == "ConvTranspose":
            return w.reshape(g, self.columns // g, self.rows // g, -1).transpose(0, 2, 1, 3)
        matrix = w if walk.int_attribute(self.node, "transB", 0) else w.T
        return matrix.reshape(1, self.rows, self.columns, 1)

    def row_ranges(self) -> Floats:
        """Largest magnitude per output channel."""
        ranges: Floats = np.abs(self.canonical()).max(axis=(2, 3)).reshape(-1)
        return ranges

    def column_ranges(self) -> Floats:
        """Largest magnitude per input channel."""
        ranges: Floats = np.abs(self.canonical()).max(axis=(1, 3)).reshape(-1)
        return ranges

    def rewrite(self, model: ir.Model) -> None:
        """Store the scaled weight and bias as new initializers."""
        if np.all(self.divide == 1.0) and np.all(self.multiply == 1.0):
            return
        old = walk.constant(self.weight)
        assert old is not None, self.weight
        new = self.canonical()
        if self.node.op_type == "ConvTranspose":
            new = new.transpose(0, 2, 1, 3)
        elif self.node.op_type != "Conv":
            new = new[0, :, :, 0] if walk.int_attribute(self.node, "transB", 0) else new[0, :, :, 0].T
        replace_operand(model, self.node, 1, new.reshape(old.shape).astype(old.dtype))
        bias = bias_of(self.node)
        if bias is not None and np.any(self.divide != 1.0):
            replace_operand(model, self.node, 2, (bias / self.divide).astype(old.dtype))


@dataclass
class Pair:
    """Two layers and what lies between them.

    Attributes:
        between: from the first layer's output to the second's input, in order.
        axis_from_end: of each node in `between`, where channels are in its output, counted from the end.
        channels: likewise, the output channel of `first` at each index of that axis.
        channel_of: for each input channel of `second`, the output channel of `first` it comes from.
    """

    first: Linear
    second: Linear
    between: list[ir.Node]
    axis_from_end: list[int]
    channels: list[npt.NDArray[np.int64]]
    channel_of: npt.NDArray[np.int64]

    def factor(self) -> Floats:
        """`s` of eq. 11 for the factors so far; 1 where a range is zero or the quotient is not finite."""
        r1 = self.first.row_ranges()
        r2 = np.zeros_like(r1)
        np.maximum.at(r2, self.channel_of, self.second.column_ranges())
        usable = (r1 > 0) & (r2 > 0)
        factor: Floats = np.sqrt(np.where(usable, r1, 1.0) / np.where(usable, r2, 1.0))
        return factor

    def scale(self, scale: Floats) -> None:
        """Set the factors of both layers."""
        self.first.divide = scale
        self.second.multiply = scale[self.channel_of]

    def rewrite_between(self, model: ir.Model, scale: Floats) -> dict[str, Scaled]:
        """Divide constants that are added in between; rename and return the values that are now scaled."""
        start = _Track.start(self.first)
        values = [(self.first.node.outputs[0], scale.reshape(-1, *[1] * start.from_end()))]
        for node, axis, channels in zip(self.between, self.axis_from_end, self.channels, strict=True):
            divisor = scale[channels].reshape(-1, *[1] * axis)
            if node.op_type in ("Add", "Sub"):
                index, constant = _constant_operand(node)
                scaled = constant.astype(np.float64) / divisor
                replace_operand(model, node, index, scaled.astype(constant.dtype))
            values.append((node.outputs[0], divisor))
        found: dict[str, Scaled] = {}
        for value, divisor in values:
            old = str(value.name)
            walk.rename(value, walk.unique_name(model, f"{old}_equalized"))
            found[str(value.name)] = Scaled(old, divisor)
        return found


def find_pairs(model: ir.Model, refused: list[Refusal]) -> list[Pair]:
    """List the pairs that can be equalized; each other weight layer goes to `refused` with the reason."""
    layers: dict[ir.Node, Linear] = {}
    pairs: list[Pair] = []
    for node in walk.all_nodes(model):
        if node.domain or node.op_type not in _LAYERS:
            continue
        found = _pair_of(node, layers)
        if isinstance(found, str):
            refused.append(Refusal(str(node.name), found))
        else:
            pairs.append(found)
    return pairs


def linear_of(node: ir.Node) -> Linear | str:
    """See `node` as a layer whose channels can be scaled, or say why not."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or not walk.is_constant(weight):
        return "weight is not constant"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return f"weight {weight.name!r} is shared"
    shape = walk.static_shape(weight)
    assert shape is not None, f"constant {weight.name!r} without shape"
    if node.op_type == "MatMul" and len(shape) != 2:
        return f"MatMul weight has {len(shape)} dimensions, needs 2"
    if node.op_type == "Gemm" and walk.int_attribute(node, "transA", 0):
        return "Gemm with transA"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not walk.is_constant(bias):
        return "bias is not constant"
    groups = walk.int_attribute(node, "group", 1) if node.op_type.startswith("Conv") else 1
    rows, columns = _channels(node, shape, groups)
    return Linear(node, weight, groups, rows, columns)


def _channels(node: ir.Node, shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    if node.op_type == "Conv":
        return shape[0], shape[1] * groups
    if node.op_type == "ConvTranspose":
        return shape[1] * groups, shape[0]
    return (shape[0], shape[1]) if walk.int_attribute(node, "transB", 0) else (shape[1], shape[0])


def bias_of(node: ir.Node) -> Floats | None:
    """The constant bias of a layer in float64, or None."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = walk.constant(value)
    return None if bias is None else bias.astype(np.float64)


def _pair_of(node: ir.Node, layers: dict[ir.Node, Linear]) -> Pair | str:
    first = _known(node, layers)
    if isinstance(first, str):
        return first
    between: list[ir.Node] = []
    axes: list[int] = []
    channels: list[npt.NDArray[np.int64]] = []
    value = node.outputs[0]
    if value.shape is None:
        return f"shape of {value.name!r} is not known"
    track = _Track.start(first)
    while True:
        if value.is_graph_output():
            return f"output {value.name!r} is a graph output"
        uses = value.uses()
        if len(uses) != 1:
            return f"output {value.name!r} feeds {len(uses)} nodes"
        user = walk.users(value)[0]
        if user.graph is not node.graph:
            return f"output {value.name!r} is read inside a body"
        if not user.domain and user.op_type in _LAYERS:
            return _close(first, user, value, between, axes, channels, track, layers)
        if reason := track.step(user, value):
            return reason
        between.append(user)
        axes.append(track.from_end())
        channels.append(track.channel_of)
        value = user.outputs[0]


def _known(node: ir.Node, layers: dict[ir.Node, Linear]) -> Linear | str:
    if node in layers:
        return layers[node]
    found = linear_of(node)
    if isinstance(found, Linear):
        layers[node] = found
    return found


def _close(
    first: Linear,
    user: ir.Node,
    value: ir.Value,
    between: list[ir.Node],
    axes: list[int],
    channels: list[npt.NDArray[np.int64]],
    track: _Track,
    layers: dict[ir.Node, Linear],
) -> Pair | str:
    if user.inputs[0] is not value:
        return f"{user.op_type} {user.name!r} does not read it as data"
    second = _known(user, layers)
    if isinstance(second, str):
        return f"next layer {user.name!r}: {second}"
    wanted = 1 if user.op_type.startswith("Conv") else track.rank - 1
    if track.axis != wanted or len(track.channel_of) != second.columns:
        return f"channels do not line up with those of {user.name!r}"
    return Pair(first, second, between, axes, channels, track.channel_of)


@dataclass
class _Track:
    """Where the first layer's channels are as the value moves on.

    Attributes:
        rank: of the value.
        axis: of the channels.
        channel_of: first layer's channel of each index of that axis.
    """

    rank: int
    axis: int
    channel_of: npt.NDArray[np.int64]

    @classmethod
    def start(cls, layer: Linear) -> _Track:
        shape = layer.node.outputs[0].shape
        assert shape is not None, f"{layer.node.name}: checked before"
        rank = shape.rank()
        axis = 1 if layer.node.op_type.startswith("Conv") else rank - 1
        return cls(rank, axis, np.arange(layer.rows))

    def from_end(self) -> int:
        return self.rank - 1 - self.axis

    def step(self, node: ir.Node, value: ir.Value) -> str | None:
        """Move over `node`, which reads `value`; the reason when that is not possible."""
        if not node.domain:
            if node.op_type in _HOMOGENEOUS and node.inputs[0] is value:
                return self._plain(node)
            if node.op_type == "Clip" and _is_relu(node):
                return None
            if node.op_type in ("Add", "Sub", "Mul"):
                return self._arithmetic(node)
            if node.op_type == "Transpose":
                self.axis = walk.ints_attribute(node, "perm", range(self.rank)[::-1]).index(self.axis)
                return None
            if node.op_type in _FLATTENING:
                return self._flatten(node, value)
        return f"{node.op_type} {node.name!r} is not positively homogeneous"

    def _plain(self, node: ir.Node) -> str | None:
        if "Pool" not in node.op_type:
            slope_is_fixed = node.op_type != "PRelu" or walk.is_constant(node.inputs[1])
            return None if slope_is_fixed else f"PRelu {node.name!r} has a computed slope"
        if self.axis != 1 or len(node.outputs) > 1:
            return f"{node.op_type} {node.name!r} mixes channels or returns indices"
        return None

    def _arithmetic(self, node: ir.Node) -> str | None:
        operands = [walk.constant(v) for v in node.inputs]
        constant = next((c for c in operands if c is not None), None)
        if constant is None:
            return f"{node.op_type} {node.name!r} joins another computed value"
        return None if constant.ndim <= self.rank else f"{node.op_type} {node.name!r} changes the rank"

    def _flatten(self, node: ir.Node, value: ir.Value) -> str | None:
        """[batch, ...rest] to [batch, product of rest]: every index remembers its channel."""
        before, after = value.shape, node.outputs[0].shape
        rest = [] if before is None else list(before)[1:]
        sizes = [dim for dim in rest if isinstance(dim, int)]
        last = None if after is None or after.rank() != 2 else after[1]
        if self.axis < 1 or len(sizes) != len(rest) or last != int(np.prod(sizes)):
            return f"{node.op_type} {node.name!r} does not keep one row per sample"
        shape = [1] * len(sizes)
        shape[self.axis - 1] = -1
        self.channel_of = np.broadcast_to(self.channel_of.reshape(shape), sizes).reshape(-1)
        self.rank, self.axis = 2, 1
        return None


def _is_relu(node: ir.Node) -> bool:
    """Clip from 0 to infinity."""
    bounds = [walk.scalar(v) for v in node.inputs[1:3]]
    absent = [v is None for v in node.inputs[1:3]]
    low_is_zero = len(bounds) > 0 and bounds[0] == 0.0
    high_is_open = len(bounds) < 2 or absent[1] or bounds[1] == np.inf
    return low_is_zero and high_is_open


def _constant_operand(node: ir.Node) -> tuple[int, Array]:
    for index, value in enumerate(node.inputs):
        constant = walk.constant(value)
        if constant is not None:
            return index, constant
    raise AssertionError(f"{node.name}: no constant operand, though the chain was accepted")


def replace_operand(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Give `node` a new constant; the new one takes the old one's name."""
    old = node.inputs[index]
    assert old is not None, node
    assert isinstance(node.graph, ir.Graph), node
    new = walk.add_initializer(node.graph, walk.unique_name(model, f"{old.name}_equalized"), array)
    node.replace_input_with(index, new)
    maker = old.producer()
    if maker is not None:
        walk.remove_if_dead(maker)
    else:
        walk.drop_unused_initializer(old)
