"""Engine `ort`, compile time: a plain `model.onnx` that any onnxruntime runs."""

from __future__ import annotations

import json

import onnx_ir as ir

from ...compiler.backend import Payload
from ...compiler.ir.walk import all_nodes
from ...compiler.onnx_payload import expanded, onnx_payload
from .float_weights import free_float_weights
from .fusion import check_fusion
from .packed_weights import pack_weights

FUSION = "fusion.json"


def lower(model: ir.Model, engine: str = "ort") -> Payload:
    """Write the model as standard ONNX, own operators expanded, names shortened; `model` is not edited.

    Weights beyond 256 MiB go to a second file. The attachments: `names.json` maps short names to original
    ones; of quantized models, `fusion.json` says which layers onnxruntime runs on integers. Weights of few
    values are stored in few bits. Whether an engine can run the payload shows when it is loaded.
    """
    copy = expanded(model)
    attachments = _checked_fusion(copy)
    pack_weights(copy)
    return onnx_payload(copy, engine, {}, attachments)


def _checked_fusion(model: ir.Model) -> dict[str, str]:
    """Look at what onnxruntime fuses of a quantized model, and free the weights that it does not."""
    if all(node.op_type != "DequantizeLinear" for node in all_nodes(model)):
        return {}
    fusion = check_fusion(model)
    free_float_weights(model, fusion.dequantized)
    record = {"integer_layers": fusion.integer_layers, "float_layers": fusion.float_layers, "ops": fusion.ops}
    return {FUSION: json.dumps(record, indent=1) + "\n"}
