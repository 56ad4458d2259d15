"""Checks what onnxruntime makes of a quantized graph: which layers run on integers, which stay float."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ...compiler import ort
from ...compiler.ir.walk import all_nodes, producer, static_shape

CACHE_BYTES = 1 << 20
"""Larger float weights are read from memory; unpacking integers is faster then."""

# Operators whose cost matters; between DequantizeLinear and QuantizeLinear they should run on integers.
_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"})
_INTEGER = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat",
     "DynamicQuantizeMatMul"}
)  # fmt: skip


@dataclass(frozen=True)
class Fusion:
    """What onnxruntime runs.

    Attributes:
        ops: operator type -> number of nodes in the optimised graph, bodies included.
        integer_layers: compute layers that run on integers.
        float_layers: what the compute layers make that run in float although a weight or input is quantized.
        dequantized: names of the values that DequantizeLinear makes in every run, and of those that
            MatMulNBits unpacks although they are small.
    """

    ops: dict[str, int]
    integer_layers: int
    float_layers: tuple[str, ...]
    dequantized: frozenset[str]

    @property
    def complete(self) -> bool:
        """Tell whether every quantized layer runs on integers."""
        return not self.float_layers


def check_fusion(model: ir.Model) -> Fusion:
    """Return what onnxruntime makes of a model, on any machine; `model` is not edited."""
    graphs = _graphs(ort.optimized_model(model, "extended").graph)
    nodes = [node for graph in graphs for node in graph.node]
    dequantized = {out for node in nodes if node.op_type == "DequantizeLinear" for out in node.output}
    left = [
        node.output[0]
        for node in nodes
        if node.op_type in _COMPUTE and not dequantized.isdisjoint(node.input)
    ]
    dequantized |= _small_blocks(model, nodes)
    ops = Counter(node.op_type for node in nodes)
    integer = sum(ops[name] for name in _INTEGER)
    return Fusion(dict(sorted(ops.items())), integer, tuple(left), frozenset(dequantized))


def _small_blocks(model: ir.Model, nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Return weights of MatMulNBits that would fit the cache as floats, which is then faster."""
    made = {out for node in nodes if node.op_type == "MatMulNBits" for out in node.output}
    found: set[str] = set()
    for layer in all_nodes(model):
        maker = producer(layer.inputs[1], "DequantizeLinear") if len(layer.inputs) > 1 else None
        if maker is None or layer.outputs[0].name not in made:
            continue
        if 4 * math.prod(static_shape(maker.inputs[0]) or (CACHE_BYTES,)) < CACHE_BYTES:
            found.add(str(maker.outputs[0].name))
    return found


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(found for body in inner for found in _graphs(body))]
