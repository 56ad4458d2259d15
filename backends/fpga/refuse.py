"""How this front says where: node and finding; reason code and way out stand where it is raised."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.ir.walk import node_label


def at(node: ir.Node, finding: str) -> str:
    """Return an error's message about `node`."""
    return f"{node_label(node)}: {finding}"
