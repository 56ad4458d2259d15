"""Payloads of plain ONNX that any onnxruntime reads: own operators expanded, names shortened."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .backend import Payload
from .ir.compact import compact
from .ir.export import save, to_bytes, weight_bytes
from .ops import expand_custom_ops
from .ort_run import PAYLOAD
from .temporary import folder_prefix

# Attachment: short name -> original one.
NAMES = "names.json"

# Above this the weights lie in a file of their own, which is mapped into memory instead of parsed.
EXTERNAL_BYTES = 256 << 20


def expanded(model: ir.Model) -> ir.Model:
    """Return a copy in standard ONNX."""
    copy = model.clone()
    if expand_custom_ops(copy):
        # Weights that were rounded at compile time leave their float originals behind.
        RemoveUnusedNodesPass()(copy)
    return copy


def onnx_payload(
    draft: ir.Model,
    engine: str,
    options: Mapping[str, str | int | float | bool],
    attachments: Mapping[str, str],
) -> Payload:
    """Return the payload of a model in standard ONNX; `draft` is edited: its names become short.

    Weights beyond 256 MiB go to a second file. `names.json` is added to the attachments.
    """
    names = json.dumps(compact(draft), indent=0) + "\n"
    folder = Path(tempfile.mkdtemp(prefix=folder_prefix("lower")))
    payload = Payload(engine, _write(draft, folder), options, {**attachments, NAMES: names})
    # Who takes the files moves them out; what is left goes with the payload.
    weakref.finalize(payload, shutil.rmtree, folder, ignore_errors=True)
    return payload


def _write(model: ir.Model, folder: Path) -> Mapping[str, bytes | Path]:
    if weight_bytes(model) <= EXTERNAL_BYTES:
        return {PAYLOAD: to_bytes(model)}
    return {path.name: path for path in save(model, folder / PAYLOAD, external_threshold=1024)}
