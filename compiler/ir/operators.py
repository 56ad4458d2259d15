"""Is every operator known? The schemas of onnx and of pared's own ops decide."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ..errors import UnsupportedOp, nearest
from .walk import all_nodes, node_label

# Operators of onnxruntime that import rewrites to QuantizeLinear/DequantizeLinear around standard ones.
MICROSOFT = "com.microsoft"
QOPERATORS = frozenset(
    {
        "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat",
        "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearWhere", "QGemm",
        "QuantizeLinear", "DequantizeLinear", "MatMulNBits",
    }
)  # fmt: skip

_DOMAINS = frozenset({"", "ai.onnx.ml", "qonnx.custom_op.general", "finn.custom_op.general", "pared.ops"})


def schema_of(node: ir.Node, versions: dict[str, int]) -> onnx.defs.OpSchema | None:
    """Return the schema of `node` at the model's opset, or None when no such operator is known."""
    version = versions.get(node.domain)
    if version is None:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None


def check_operators(model: ir.Model) -> None:
    """Refuse operators that nobody knows, naming the node and the closest known operators.

    Raises:
        UnsupportedOp: `unknown-domain`, `unknown-op`, `old-op`.
    """
    versions = model.opset_imports
    known: set[tuple[str, str]] = set()
    for node in all_nodes(model):
        if (node.domain, node.op_type) in known:
            continue
        if node.domain == MICROSOFT and node.op_type in QOPERATORS:
            versions.setdefault(MICROSOFT, 1)
        elif node.domain not in _DOMAINS or schema_of(node, versions) is None:
            raise _unknown(node, versions)
        known.add((node.domain, node.op_type))


def _unknown(node: ir.Node, versions: dict[str, int]) -> UnsupportedOp:
    if node.domain == MICROSOFT:
        return UnsupportedOp(
            "unknown-op",
            f"{node_label(node)} is an operator that onnxruntime made while optimizing",
            "give the model as it was before onnxruntime's optimizer",
        )
    if node.domain not in _DOMAINS:
        return UnsupportedOp(
            "unknown-domain",
            f"{node_label(node)} is of the unknown domain {node.domain!r}",
            f"known domains: {', '.join(sorted(repr(domain) for domain in _DOMAINS))}",
        )
    if onnx.defs.has(node.op_type, node.domain):
        return UnsupportedOp(
            "unknown-op",
            f"{node_label(node)} does not exist in opset {versions.get(node.domain)} of its domain",
            "export the model with the opset that the operator belongs to",
        )
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == node.domain})
    return UnsupportedOp("unknown-op", f"{node_label(node)} is no known operator", _closest(node, names))


def _closest(node: ir.Node, names: list[str]) -> str:
    hint = nearest(node.op_type, names)
    return hint.split("? valid")[0] + "?" if "did you mean" in hint else "see onnx/docs/Operators.md"
