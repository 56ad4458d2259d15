"""Evaluation of what depends on constants only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import (
    Array,
    all_graphs,
    bodies,
    constant,
    constant_tensor,
    is_constant,
    remove_chain,
    static_shape,
)
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .common import is_op, label, replace_by_constant
from .evaluate import Outcome, run_nodes, sizes_by_inference

KIB, MIB = 1024, 1024 * 1024
_FREE_GROWTH_BYTES = 4 * KIB
_GROWTH_FACTOR = 64
_BUDGET_BYTES = 16 * MIB

_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
}  # fmt: skip
# Not places to fold: a quantized weight stays quantized, and an initializer is what a Constant becomes.
_KEPT = {"DequantizeLinear", "Constant"}
# The result can be far bigger than the inputs, so a shape that the file states is not believed.
_GROWING = {
    "ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "EyeLike", "Reshape",
    "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "CenterCropPad", "Col2Im",
    "AffineGrid", "MaxUnpool", "STFT", "DFT", "Einsum",
}  # fmt: skip
# The result has at most (rank of the input) x (elements of the input) elements, whatever the data.
_BOUNDED = {"NonZero", "Compress", "Unique", "NonMaxSuppression"}
_FOREIGN = {ir.DataType.STRING, ir.DataType.BFLOAT16, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}


@dataclass(frozen=True)
class FoldConstants:
    """Replace nodes whose inputs are all constant by their results, as onnxruntime computes them.

    Exact. Constant nodes become initializers. DequantizeLinear and operators outside ONNX (Quant, ...)
    stay, for they say what is quantized, and so does control flow. Left alone with a reason: random
    operators, types without a NumPy form, and results that would make the model big: more than
    64 times the constants they come from (and more than 4 KiB), or together more than all constants of
    the model plus 16 MiB. Such results are told from shapes and never computed.
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        weights = sum(
            value.const_value.nbytes
            for graph in all_graphs(model)
            for value in graph.initializers.values()
            if value.const_value is not None
        )
        budget = _Budget(left=weights + _BUDGET_BYTES)
        for graph in list(all_graphs(model)):
            ctx.check_cancelled()
            lifted = _lift_constant_nodes(model, graph)
            stats.changed += lifted + _Folder(model, graph, budget, stats).fold(ctx)
        return stats


def _lift_constant_nodes(model: ir.Model, graph: ir.Graph) -> int:
    lifted = 0
    for node in list(graph):
        if is_op(node, "Constant") and not node.outputs[0].is_graph_output():
            array = constant(node.outputs[0])
            if array is not None and array.dtype.kind in "biuf":
                replace_by_constant(model, node.outputs[0], array)
                graph.remove(node, safe=True)
                lifted += 1
    return lifted


@dataclass
class _Budget:
    """Bytes that folding may still add to the model."""

    left: int


@dataclass
class _Folder:
    """One sweep over a graph: collects constant nodes and runs them in as few sessions as possible."""

    model: ir.Model
    graph: ir.Graph
    budget: _Budget
    stats: PassStats
    known: Outcome = field(default_factory=dict)
    pending: list[ir.Node] = field(default_factory=list)
    planned: set[ir.Value] = field(default_factory=set)
    folded: list[ir.Node] = field(default_factory=list)
    leaf_bytes: dict[ir.Value, int] = field(default_factory=dict)

    def fold(self, ctx: Context) -> int:
        for count, node in enumerate(list(self.graph)):
            if count % 256 == 0:
                ctx.check_cancelled()
            if _is_candidate(node) and self._constant_inputs(node):
                self._consider(node)
        self._flush()
        return self._commit()

    def _constant_inputs(self, node: ir.Node) -> bool:
        real = [value for value in node.inputs if value is not None]
        return all(value in self.planned or value in self.known or is_constant(value) for value in real)

    def _consider(self, node: ir.Node) -> None:
        reason = _unfit(node) or self._too_big(node)
        if reason is not None:
            self.stats.refused.append(Refusal(label(node), reason))
            return
        self.pending.append(node)
        self.planned.update(node.outputs)

    def _too_big(self, node: ir.Node) -> str | None:
        """Tell the size of the result before computing it, and book it; a reason to leave it otherwise."""
        sizes = self._output_bytes(node)
        if sizes is None:
            return "the size of the result cannot be told beforehand"
        leaves = max((self._leaf_bytes(value) for value in node.inputs if value is not None), default=0)
        total = sum(sizes)
        if total > max(_FREE_GROWTH_BYTES, _GROWTH_FACTOR * leaves):
            return (
                f"the result of {total} bytes is more than {_GROWTH_FACTOR} times the constants it comes from"
            )
        if total > self.budget.left:
            return f"its {total} bytes exceed what folding may add to this model"
        self.budget.left -= total
        self.leaf_bytes.update(dict.fromkeys(node.outputs, leaves))
        return None

    def _leaf_bytes(self, value: ir.Value) -> int:
        if value in self.leaf_bytes:
            return self.leaf_bytes[value]
        tensor = constant_tensor(value)
        return 0 if tensor is None else tensor.nbytes

    def _output_bytes(self, node: ir.Node) -> list[int] | None:
        shapes = None if node.op_type in _GROWING else _declared_shapes(node)
        if shapes is None:
            self._flush()
            arrays = {value: self._array(value) for value in node.inputs if value is not None}
            shapes = sizes_by_inference(node, self._opset(), arrays)
            if shapes is None and node.op_type in _BOUNDED:
                widest = max((array.size * max(array.ndim, 1) * 8 for array in arrays.values()), default=0)
                return [widest for _ in node.outputs]
        return None if shapes is None else [_nbytes(s, o) for s, o in zip(shapes, _named(node), strict=True)]

    def _array(self, value: ir.Value) -> Array:
        found = self.known.get(value)
        if found is None:
            found = constant(value)
        assert found is not None, "only constants are looked up"
        return found

    def _opset(self) -> int:
        return self.model.opset_imports[""]

    def _flush(self) -> None:
        """Compute what is pending; when a session refuses the lot, node by node."""
        nodes, self.pending = self.pending, []
        if nodes and not self._run(nodes) and len(nodes) > 1:
            for node in nodes:
                if self._constant_after_failure(node):
                    self._run([node])
        self.planned.clear()

    def _constant_after_failure(self, node: ir.Node) -> bool:
        return all(value is None or value in self.known or is_constant(value) for value in node.inputs)

    def _run(self, nodes: list[ir.Node]) -> bool:
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph
        from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

        made = {output for node in nodes for output in node.outputs}
        feeds = {v: self._array(v) for node in nodes for v in node.inputs if v is not None and v not in made}
        try:
            self.known.update(run_nodes(nodes, self._opset(), feeds))
        except (Fail, InvalidArgument, InvalidGraph, NoKernel, RuntimeError) as err:
            if len(nodes) == 1:
                reason = f"onnxruntime cannot evaluate it: {str(err).splitlines()[0]}"
                self.stats.refused.append(Refusal(label(nodes[0]), reason))
            return False
        self.folded.extend(nodes)
        return True

    def _commit(self) -> int:
        """Put the results that others read in place of the nodes."""
        inner = set(self.folded)
        for node in self.folded:
            for output in node.outputs:
                if output.is_graph_output() or any(user not in inner for user in output.consumers()):
                    replace_by_constant(self.model, output, np.array(self.known[output]))
        for node in reversed(self.folded):
            if node.graph is not None:
                remove_chain(node)
        return len(self.folded)


def _named(node: ir.Node) -> list[ir.Value]:
    return [output for output in node.outputs if output.name]


def _nbytes(shape: Iterable[int], output: ir.Value) -> int:
    elements = 1
    for dim in shape:
        elements *= dim
    itemsize = 8.0 if output.dtype is None else output.dtype.itemsize
    return int(elements * itemsize)


def _declared_shapes(node: ir.Node) -> list[tuple[int, ...]] | None:
    shapes = [static_shape(output) for output in _named(node)]
    known = [shape for shape in shapes if shape is not None]
    return known if len(known) == len(shapes) else None


def _is_candidate(node: ir.Node) -> bool:
    return not (node.domain or node.op_type in _KEPT or bodies(node))


def _unfit(node: ir.Node) -> str | None:
    if node.op_type in _RANDOM:
        return "random operator"
    if any(value is not None and not _plain(value) for value in (*node.inputs, *_named(node))):
        return "a type that is not evaluated (strings, sequences, bfloat16, below 8 bits)"
    return None


def _plain(value: ir.Value) -> bool:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return False
    dtype = value.dtype
    return dtype is None or (dtype.itemsize >= 1 and dtype not in _FOREIGN and "FLOAT8" not in dtype.name)
