"""Weights of recurrent nodes and of loop bodies: stored as integers, dequantized once outside the loop.

Only storage and memory traffic change, the arithmetic stays float. What counts as such a weight:

* W and R of LSTM, GRU and RNN nodes anywhere in the model,
* constant weights of Conv, ConvTranspose, Gemm and MatMul inside Scan, Loop and If bodies,
* constants that reach one of these through data movement only (Slice, Concat, Transpose, ...: exporters
  reorder gates in the graph); then the stored constant is quantized, where it is stored.

The DequantizeLinear stands in the outermost graph around all loops, so a body that runs a thousand times
captures a finished float tensor. If branches keep theirs: dequantizing a branch not taken would be waste.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.exclusion import excluded_by
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats, Refusal

Array = npt.NDArray[np.generic]

_CELLS = frozenset({"LSTM", "GRU", "RNN"})
_LOOPS = frozenset({"Scan", "Loop"})
_MOVEMENT = frozenset(
    {"Slice", "Concat", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Identity", "Split"}
)
_DEPTH = 16  # data movement steps followed from a weight to the stored constants
_STORAGE: Mapping[int, tuple[npt.DTypeLike, int]] = {8: (np.int8, 127), 4: (ml_dtypes.int4, 7)}


@dataclass(frozen=True)
class StoredWeight:
    """A constant to be stored as integers.

    Attributes:
        value: the initializer or Constant node output.
        axis: channel axis of the scale.
        node: the node that multiplies by it, for reports.
    """

    value: ir.Value
    axis: int
    node: ir.Node


@dataclass(frozen=True)
class QuantizeRecurrent:
    """Store recurrent weights and weights of control-flow bodies as symmetric integers per output channel.

    Lossy, mutates the model. Bidirectional cells share the scale of a channel between both directions.

    Attributes:
        bits: 8, or 4 (packed INT4).
        per_channel: one scale per output channel (per row of W and R); else one per tensor.
        min_elements: smaller weights stay float, they would gain nothing over scale and node.
    """

    name: ClassVar[str] = "quantize-recurrent"
    effect: ClassVar[Effect] = Effect.LOSSY
    bits: Literal[4, 8] = 8
    per_channel: bool = True
    min_elements: int = 256

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; needs no calibration data."""
        stats = PassStats()
        parents = _parents(model)
        done: set[ir.Value] = set()
        before = after = 0
        for weight in find_weights(model, stats.refused, ctx.exclude):
            ctx.check_cancelled()
            if weight.value in done:
                continue
            done.add(weight.value)
            if reason := self._refuse(weight.value):
                stats.refused.append(Refusal(str(weight.node.name), reason))
                continue
            sizes = self._store(model, weight, parents)
            before, after = before + sizes[0], after + sizes[1]
            stats.changed += 1
        stats.details |= {"weights_stored": stats.changed, "bytes_before": before, "bytes_after": after}
        return stats

    def _refuse(self, value: ir.Value) -> str | None:
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return f"weight {value.name!r} is {value.dtype}, not float"
        if value.is_graph_output():
            return f"weight {value.name!r} is also a graph output"
        size = 0 if value.shape is None else int(np.prod(value.shape.numpy()))
        if size < self.min_elements:
            return f"weight {value.name!r} has {size} elements, fewer than {self.min_elements}"
        return None

    def _store(self, model: ir.Model, weight: StoredWeight, parents: Parents) -> tuple[int, int]:
        old = weight.value
        array = walk.constant(old)
        assert array is not None, weight
        assert old.graph is not None, weight
        axis = weight.axis if self.per_channel else None
        q, scale = store_integers(array, axis, self.bits)
        home = _home(old.graph, parents)
        base = str(old.name)
        stored = walk.add_initializer(home, walk.unique_name(model, f"{base}_quantized"), q)
        scales = walk.add_initializer(home, walk.unique_name(model, f"{base}_scale"), scale)
        attributes = {} if axis is None else {"axis": axis}
        name = walk.unique_name(model, f"{base}_dequantize")
        node = ir.node("DequantizeLinear", [stored, scales], attributes, name=name)
        node.outputs[0].type, node.outputs[0].shape = old.type, ir.Shape(array.shape)
        home.insert_before(home[0], node)
        maker = old.producer()
        walk.replace_value(old, node.outputs[0])
        if maker is not None:
            walk.remove_if_dead(maker)
        else:
            walk.drop_unused_initializer(old)
        return array.nbytes, q.size * self.bits // 8 + scale.nbytes


Parents = Mapping[ir.Graph, ir.Node]


def find_weights(
    model: ir.Model, refused: list[Refusal], exclude: tuple[str, ...] = ()
) -> list[StoredWeight]:
    """List the weights of recurrent cells and body nodes; what cannot be taken goes to `refused`."""
    found: list[StoredWeight] = []
    for graph in walk.all_graphs(model):
        inside = graph is not model.graph
        for node in graph:
            operands = list(_operands(node, inside))
            if operands and excluded_by(str(node.name), exclude):
                refused.append(Refusal(str(node.name), "excluded by name"))
                continue
            for value, axis in operands:
                sources = list(_sources(value, axis, _DEPTH))
                if not sources and value.producer() is not None:
                    refused.append(Refusal(str(node.name), f"weight {value.name!r} is not constant"))
                found.extend(StoredWeight(source, at, node) for source, at in sources)
    return found


def store_integers(array: Array, axis: int | None, bits: int) -> tuple[Array, Array]:
    """Return symmetric integers and scales: `w ~ q * scale`, error at most half a scale.

    Args:
        array: float weight.
        axis: scale per index of this axis; None for one scale.
        bits: 8 (int8) or 4 (`ml_dtypes.int4`).
    """
    dtype, top = _STORAGE[bits]
    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    weight = array.astype(np.float32)
    peak = np.abs(weight).max(axis=others, keepdims=True)
    # A channel of zeros gets scale 1; subnormal scales would lose the integers' precision.
    smallest = 2.0**-14 if array.dtype == np.float16 else 2.0**-126
    scale = np.where(peak > top * smallest, peak / np.float32(top), np.float32(1.0)).astype(array.dtype)
    q = np.clip(np.rint(weight / scale.astype(np.float32)), -top, top)
    return q.astype(np.int8).astype(dtype), scale.reshape(-1) if axis is not None else scale.reshape(())


def _operands(node: ir.Node, inside_body: bool) -> Iterator[tuple[ir.Value, int]]:
    """Yield (weight operand, channel axis) of a node."""
    if node.domain:
        return
    if node.op_type in _CELLS:
        yield from ((value, 1) for value in node.inputs[1:3] if value is not None)
    elif inside_body:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        axis = _channel_axis(node, value)
        if value is not None and axis is not None and not _is_activation(node, value):
            yield value, axis


def _channel_axis(node: ir.Node, value: ir.Value | None) -> int | None:
    rank = 0 if value is None or value.shape is None else value.shape.rank()
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if walk.int_attribute(node, "transB", 0) else 1
    return rank - 1 if node.op_type == "MatMul" and rank >= 2 else None


def _is_activation(node: ir.Node, value: ir.Value) -> bool:
    """A MatMul or Gemm of two computed values is no weight layer; nothing is refused there."""
    return node.op_type in ("MatMul", "Gemm") and not any(True for _ in _sources(value, 0, _DEPTH))


def _sources(value: ir.Value, axis: int, depth: int) -> Iterator[tuple[ir.Value, int]]:
    """Yield the constants that `value` is made of by data movement; nothing when any part is computed."""
    if walk.is_constant(value):
        yield value, axis
        return
    node = value.producer()
    if node is None or node.domain or node.op_type not in _MOVEMENT or depth == 0:
        return
    data = [v for v in node.inputs if v is not None] if node.op_type == "Concat" else [node.inputs[0]]
    parts = [list(_sources(v, 0, depth - 1)) for v in data if v is not None]
    if all(parts):
        # Rows are channels where exporters reorder gates; any axis is legal at the constant itself.
        yield from ((source, 0) for part in parts for source, _ in part)


def _parents(model: ir.Model) -> dict[ir.Graph, ir.Node]:
    return {body: node for node in walk.all_nodes(model) for body in walk.bodies(node)}


def _home(graph: ir.Graph, parents: Parents) -> ir.Graph:
    """The graph around the outermost loop that `graph` is in; `graph` itself outside loops."""
    home = current = graph
    while (node := parents.get(current)) is not None:
        assert isinstance(node.graph, ir.Graph), "nodes of functions were inlined at import"
        current = node.graph
        if node.op_type in _LOOPS:
            home = current
    return home
