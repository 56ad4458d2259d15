"""How this front says no: always with node, finding and way out."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from ...compiler.ir.walk import node_label


def refusal(reason: str, node: ir.Node, finding: str, way_out: str) -> UnsupportedOp:
    """Return the error to raise about `node`."""
    return UnsupportedOp(f"fpga-{reason}", f"{node_label(node)}: {finding}", way_out)
