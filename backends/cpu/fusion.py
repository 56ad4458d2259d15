"""Checks what onnxruntime makes of a quantized graph: which layers run on integers, which stay float."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ...compiler import ort
from ...compiler.ops import expand_custom_ops

# Operators whose cost matters; between DequantizeLinear and QuantizeLinear they should run on integers.
_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"})
_INTEGER = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat",
     "DynamicQuantizeMatMul", "MatMulNBits"}
)  # fmt: skip


@dataclass(frozen=True)
class Fusion:
    """What onnxruntime runs.

    Attributes:
        ops: operator type -> number of nodes in the optimised graph, bodies included.
        integer_layers: compute layers that run on integers.
        float_layers: names of the compute layers that run in float although a weight or input is quantized.
    """

    ops: dict[str, int]
    integer_layers: int
    float_layers: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Tell whether every quantized layer runs on integers."""
        return not self.float_layers


def check_fusion(model: ir.Model) -> Fusion:
    """Return what onnxruntime makes of a model, all optimisations on; `model` is not edited."""
    copy = model.clone()
    expand_custom_ops(copy)
    nodes: list[onnx.NodeProto] = []
    dequantized: set[str] = set()
    for graph in _graphs(ort.optimized_model(copy).graph):
        nodes.extend(graph.node)
        dequantized.update(
            out for node in graph.node if node.op_type == "DequantizeLinear" for out in node.output
        )
    left = [
        node.name or (node.output[0] if node.output else node.op_type)
        for node in nodes
        if node.op_type in _COMPUTE and not dequantized.isdisjoint(node.input)
    ]
    ops = Counter(node.op_type for node in nodes)
    return Fusion(dict(sorted(ops.items())), sum(ops[name] for name in _INTEGER), tuple(left))


def unfused_dequantizers(model: ir.Model) -> set[str]:
    """Return the names of the values that onnxruntime would still make by DequantizeLinear, on any machine.

    `model` has no own operators any more; it is not edited.
    """
    graphs = _graphs(ort.optimized_model(model, "extended").graph)
    return {
        out
        for graph in graphs
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        for out in node.output
    }


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(found for body in inner for found in _graphs(body))]
