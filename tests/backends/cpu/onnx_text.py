"""Models from ONNX text plus weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from pared.compiler.backend import Array
from pared.compiler.ops import register

OPSETS = '"" : 21, "qonnx.custom_op.general" : 2, "com.microsoft" : 1, "foo" : 1'


def parse(body: str, io: str, weights: Mapping[str, Array] | None = None) -> ir.Model:
    """Return the model `io {body}`, such as `(float[2] x) => (float[2] y)` and `y = Relu(x)`."""
    register()
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{OPSETS}]> g {io} {{ {body} }}")
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()
    )
    return ir.from_proto(proto)
