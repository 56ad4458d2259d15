"""Engine `ort`, compile time: a plain `model.onnx` that any onnxruntime runs."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...compiler.backend import Payload
from ...compiler.ir.compact import compact
from ...compiler.ir.export import save, to_bytes, weight_bytes
from ...compiler.ir.walk import all_nodes
from ...compiler.ops import expand_custom_ops
from ...compiler.temporary import folder_prefix
from .float_weights import free_float_weights
from .fusion import check_fusion
from .ort_session import PAYLOAD
from .packed_weights import pack_weights

NAMES = "names.json"
FUSION = "fusion.json"

# Above this the weights lie in a file of their own, which is mapped into memory instead of parsed.
EXTERNAL_BYTES = 256 << 20


def lower(model: ir.Model, engine: str = "ort") -> Payload:
    """Write the model as standard ONNX, own operators expanded, names shortened; `model` is not edited.

    Weights beyond 256 MiB go to a second file. The attachments: `names.json` maps short names to original
    ones; of quantized models, `fusion.json` says which layers onnxruntime runs on integers. Weights of few
    values are stored in few bits. Whether an engine can run the payload shows when it is loaded.
    """
    copy = model.clone()
    if expand_custom_ops(copy):
        # Weights that were rounded at compile time leave their float originals behind.
        RemoveUnusedNodesPass()(copy)
    attachments = _checked_fusion(copy)
    pack_weights(copy)
    attachments[NAMES] = json.dumps(compact(copy), indent=0) + "\n"
    folder = Path(tempfile.mkdtemp(prefix=folder_prefix("lower")))
    files = _write(copy, folder)
    payload = Payload(engine, files, {}, attachments)
    # The writer moves the files out; what is left goes with the payload.
    weakref.finalize(payload, shutil.rmtree, folder, ignore_errors=True)
    return payload


def _checked_fusion(model: ir.Model) -> dict[str, str]:
    """Look at what onnxruntime fuses of a quantized model, and free the weights that it does not."""
    if all(node.op_type != "DequantizeLinear" for node in all_nodes(model)):
        return {}
    fusion = check_fusion(model)
    free_float_weights(model, fusion.dequantized)
    record = {"integer_layers": fusion.integer_layers, "float_layers": fusion.float_layers, "ops": fusion.ops}
    return {FUSION: json.dumps(record, indent=1) + "\n"}


def _write(model: ir.Model, folder: Path) -> Mapping[str, bytes | Path]:
    if weight_bytes(model) <= EXTERNAL_BYTES:
        return {PAYLOAD: to_bytes(model)}
    return {path.name: path for path in save(model, folder / PAYLOAD, external_threshold=1024)}
