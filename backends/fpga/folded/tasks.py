"""A network as tasks for one array of multipliers: each makes one tensor from one or two that are stored.

Every linear layer goes with the quantizer behind it. Tensors are stored as `q - zero`, so that padding is 0
and products need no correction. A dense layer behind a reordering (Flatten) is a convolution whose window is
the whole picture, with its columns in the stored order; other reorderings inside the network are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ....compiler.errors import UnsupportedOp
from ..graph import Conv, Dense, Ints, Layer, Mix, Move, Network, Pool, Requant, Wire

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Tensor:
    """A stored tensor: channels beside each other, row by row; `low` to `high` are of `q - zero`."""

    name: str
    channels: int
    height: int
    width: int
    low: int
    high: int

    @property
    def pixels(self) -> int:
        """Places in the picture."""
        return self.height * self.width


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor that comes in: `stored.reshape(-1) = wire.reshape(-1)[order]`, channels first."""

    wire: Wire
    tensor: Tensor
    order: Ints


@dataclass(frozen=True, eq=False)
class Task:
    """One tensor made.

    Attributes:
        name: of the layer, for messages.
        sources: stored tensors that it reads; two for a sum.
        tensor: what it makes.
        own: each output channel reads its own channel alone.
        kernel, strides, pads, dilations: of the window, rows then columns; pads at the beginning.
        weights: [out, *kernel, in] or, where `own`, [channels, steps]; [1, steps] where all channels share.
        largest: the largest value instead of the sum.
        requant: None where the accumulator itself leaves.
        low, high: bounds of the accumulator per output channel.
        shift: what the quantizer's thresholds count from, `q = accumulator + shift`.
        kept: other tasks read it.
        leaves: it is an output.
    """

    name: str
    sources: tuple[Tensor, ...]
    tensor: Tensor
    own: bool
    kernel: Pair
    strides: Pair
    pads: Pair
    dilations: Pair
    weights: Ints
    largest: bool
    requant: Requant | None
    low: Ints
    high: Ints
    shift: int = 0
    kept: bool = True
    leaves: bool = False


@dataclass(frozen=True, eq=False)
class Exit:
    """What leaves: `wire.reshape(-1) = (stored + zero).reshape(-1)[order]`, channels first."""

    wire: Wire
    task: str
    order: Ints
    zero: int


@dataclass(frozen=True, eq=False)
class Tasks:
    """A network to run: entries first, then tasks in order."""

    entries: tuple[Entry, ...]
    tasks: tuple[Task, ...]
    exits: tuple[Exit, ...]


def tasks_of(network: Network) -> Tasks:
    """Return the tasks of a network.

    Raises:
        UnsupportedOp: `fpga-folded-...`: reorders inside the network, an input that leaves as it is.
    """
    return _Planner(network).plan()


class _Planner:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.made_by = {layer.output.name: layer for layer in network.layers}
        self.stored: dict[str, Tensor] = {}
        self.entries: dict[str, Entry] = {}

    def plan(self) -> Tasks:
        for wire in self.network.inputs:
            self._enter(wire)
        leaving = [(name, *self._origin(name)) for name in self.network.outputs]
        last = {origin for _, origin, _ in leaving}
        tasks = [
            self._task(layer) for layer in self.network.layers if _stores(layer) or layer.output.name in last
        ]
        read = {source.name for task in tasks for source in task.sources}
        tasks = [
            replace(task, kept=task.tensor.name in read, leaves=task.tensor.name in last) for task in tasks
        ]
        made = {task.tensor.name for task in tasks}
        for name, origin, _ in leaving:
            if origin not in made:
                raise UnsupportedOp(
                    "fpga-folded-output",
                    f"output {name!r} is an input of the circuit, unchanged",
                    "drop this output",
                )
        exits = tuple(
            Exit(self.network.wires[name], origin, order, self.network.wires[origin].zero)
            for name, origin, order in leaving
        )
        return Tasks(tuple(self.entries.values()), tuple(t for t in tasks if t.kept or t.leaves), exits)

    def _enter(self, wire: Wire) -> None:
        """Store an input in the layout that its only reader reorders it to."""
        order, name = np.arange(_size(wire), dtype=np.int64), wire.name
        while True:
            readers = [layer for layer in self.network.layers if name in layer.inputs]
            only = readers[0] if len(readers) == 1 else None
            if not isinstance(only, Move) or len(only.inputs) != 1 or name in self.network.outputs:
                break
            order, name = order[only.order], only.output.name
        tensor = _tensor(self.network.wires[name])
        self.stored[name] = tensor
        self.entries[name] = Entry(wire, tensor, order)

    def _origin(self, name: str) -> tuple[str, Ints]:
        """Return the tensor behind reorderings, and `wire.reshape(-1) = tensor.reshape(-1)[order]`."""
        order = np.arange(_size(self.network.wires[name]), dtype=np.int64)
        layer = self.made_by.get(name)
        while isinstance(layer, Move) and name not in self.stored:
            if len(layer.inputs) != 1:
                raise UnsupportedOp(
                    "fpga-folded-move",
                    f"layer {layer.name!r}: joins {len(layer.inputs)} tensors",
                    "use engine rtl, or run the layers apart",
                )
            order, name = layer.order[order], layer.inputs[0]
            layer = self.made_by.get(name)
        return name, order

    def _plain(self, name: str, reader: str) -> str:
        """Return the tensor behind reshapes that keep the order and the channels."""
        origin, order = self._origin(name)
        before, after = self.network.wires[origin].shape, self.network.wires[name].shape
        same = before[:1] == after[:1] and order.size == int(np.prod(before, dtype=np.int64))
        if origin != name and not (same and np.array_equal(order, np.arange(order.size))):
            raise UnsupportedOp(
                "fpga-folded-move",
                f"layer {reader!r}: its operand is reordered from {before} to {after}",
                "reorder at the model's input, or before a dense layer",
            )
        return origin

    def _task(self, layer: Layer) -> Task:
        """Return the task of a layer that is stored or leaves."""
        tensor = _tensor(layer.output)
        if isinstance(layer, Requant):
            source = self._plain(layer.inputs[0], layer.name)
            made = source not in self.stored
            task = self._product(self.made_by[source]) if made else self._copy(source, layer)
            task = replace(task, requant=layer)
        else:
            task = self._product(layer)
        if _stores(layer):
            self.stored[layer.output.name] = tensor
        return replace(task, tensor=tensor)

    def _product(self, layer: Layer) -> Task:
        match layer:
            case Dense():
                return self._dense(layer)
            case Conv():
                return self._conv(layer)
            case Pool():
                return self._pool(layer)
            case Mix():
                return self._mix(layer)
        raise AssertionError(f"{layer.name}: {type(layer).__name__} is no layer with sums")

    def _source(self, name: str, reader: str) -> Tensor:
        """Return the stored tensor that `name` is, in the shape that `name` has."""
        origin = self._plain(name, reader)
        shaped = _tensor(self.network.wires[name])
        return replace(self.stored[origin], height=shaped.height, width=shaped.width)

    def _copy(self, name: str, reader: Requant) -> Task:
        """Read a stored tensor as it is: a quantizer behind a quantizer."""
        wire = self.network.wires[name]
        ones = np.ones((1, 1), np.int64)
        task = _own(reader.name, (self._source(name, reader.name),), ones, _ends(wire, wire.zero))
        return replace(task, shift=wire.zero)

    def _dense(self, layer: Dense) -> Task:
        """Read the whole picture in one window."""
        name, order = self._origin(layer.inputs[0])
        tensor = self.stored[name]
        columns = np.zeros((layer.weights.shape[0], tensor.channels * tensor.pixels), np.int64)
        np.add.at(columns.T, order, layer.weights.T)  # columns of one value add up
        pictures = columns.reshape(-1, tensor.channels, tensor.height, tensor.width)
        return _windowed(layer, tensor, np.moveaxis(pictures, 1, 3))

    def _conv(self, layer: Conv) -> Task:
        """Groups other than depthwise become one group with zeros."""
        tensor = self._source(layer.inputs[0], layer.name)
        outputs, inputs, *kernel = layer.weights.shape
        weights = layer.weights.reshape(outputs, inputs, *_pair(tuple(kernel), 1))
        if layer.group == tensor.channels == outputs > 1:
            task = _windowed(layer, tensor, weights[:, 0, :, :, None])
            task = replace(task, own=True, weights=weights.reshape(outputs, -1))
        else:
            task = _windowed(layer, tensor, np.moveaxis(_one_group(weights, layer.group), 1, 3))
        pads = layer.pads[: len(kernel)]
        return replace(
            task, strides=_pair(layer.strides, 1), pads=_pair(pads, 0), dilations=_pair(layer.dilations, 1)
        )

    def _pool(self, layer: Pool) -> Task:
        tensor = self._source(layer.inputs[0], layer.name)
        zero = layer.output.zero if layer.kind == "max" else 0
        task = _own(layer.name, (tensor,), np.ones((1, 1), np.int64), _ends(layer.output, zero))
        return replace(
            task, kernel=_pair(layer.kernel, 1), strides=_pair(layer.strides, 1),
            pads=_pair(layer.pads[: len(layer.kernel)], 0), largest=layer.kind == "max",
        )  # fmt: skip

    def _mix(self, layer: Mix) -> Task:
        """Every operand is a step of the window."""
        tensors = tuple(self._source(name, layer.name) for name in layer.inputs)
        if len(tensors) != 2:
            raise UnsupportedOp(
                "fpga-folded-sum",
                f"layer {layer.name!r}: a sum of {len(tensors)} tensors, two are taken",
                "write it as sums of two",
            )
        return _own(layer.name, tensors, np.asarray([layer.factors], np.int64), _ends(layer.output))


def _stores(layer: Layer) -> bool:
    return isinstance(layer, Requant) or (isinstance(layer, Pool) and layer.kind == "max")


def _windowed(layer: Dense | Conv, tensor: Tensor, weights: Ints) -> Task:
    kernel = weights.shape[1], weights.shape[2]
    low, high = _ends(layer.output)
    return Task(
        layer.name, (tensor,), tensor, False, kernel, (1, 1), (0, 0), (1, 1), weights, False, None, low, high
    )


def _own(name: str, sources: tuple[Tensor, ...], weights: Ints, ends: tuple[Ints, Ints]) -> Task:
    one = 1, 1
    return Task(name, sources, sources[0], True, one, one, (0, 0), one, weights, False, None, *ends)


def _one_group(weights: Ints, group: int) -> Ints:
    """Return weights [out, in, *kernel] without groups."""
    outputs, inputs = weights.shape[:2]
    whole = np.zeros((outputs, inputs * group, *weights.shape[2:]), np.int64)
    for g in range(group):
        rows = slice(g * outputs // group, (g + 1) * outputs // group)
        whole[rows, g * inputs : (g + 1) * inputs] = weights[rows]
    return whole


def _size(wire: Wire) -> int:
    return int(np.prod(wire.shape, dtype=np.int64))


def _pair(sizes: tuple[int, ...], filler: int) -> Pair:
    """Return rows and columns of one or two spatial axes."""
    rows, columns = (filler,) * (2 - len(sizes)) + sizes
    return rows, columns


def _tensor(wire: Wire) -> Tensor:
    channels, *spatial = wire.shape or (1,)
    height, width = _pair(tuple(spatial), 1)
    return Tensor(wire.name, channels, height, width, wire.least - wire.zero, wire.most - wire.zero)


def _ends(wire: Wire, zero: int = 0) -> tuple[Ints, Ints]:
    """Return the bounds of `q - zero`, per channel."""
    shape = wire.shape or (1,)
    rows = (np.broadcast_to(end, shape).reshape(shape[0], -1) for end in (wire.low - zero, wire.high - zero))
    low, high = rows
    return low.min(axis=1), high.max(axis=1)
