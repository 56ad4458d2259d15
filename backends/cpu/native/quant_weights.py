"""Which QONNX quantizers give weights of products; those are read as integers, not written out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....compiler.ir.quant import QONNX_DOMAIN, Rounding, view
from ....compiler.ops.constants import constant_expression


def is_product_weight(node: ir.Node) -> bool:
    """Say whether a Quant of 3 to 8 bits, with zero points 0, gives weights that only products read."""
    if (node.domain, node.op_type) != (QONNX_DOMAIN, "Quant"):
        return False
    uses = list(node.outputs[0].uses())
    if not uses or not all(use.node.op_type in ("Gemm", "MatMul") and use.idx == 1 for use in uses):
        return False
    params = view(node.outputs[0])
    if params is None or not 3 <= params.spec.bits <= 8 or bool(np.any(params.zero_point != 0)):
        return False
    return params.spec.rounding is Rounding.ROUND and constant_expression(node.inputs[0]) is not None
