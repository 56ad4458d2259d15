"""The float original of an artifact and the payload as a graph."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..artifact.read import Artifact
from ..errors import ArtifactError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

# Written by the compiler: short name in the payload -> name in the original.
NAMES = "reports/names.json"


def open_original(artifact: Artifact, explicit: str | Path | None, notes: list[str]) -> ir.Model | None:
    """Import the float original with the artifact's input shapes, or note why there is none.

    Raises:
        ModelError: the explicitly named model is refused, or has other inputs than the artifact.
    """
    from ..ir.importer import import_model

    source = artifact.manifest.source
    path = _path(artifact, explicit, notes)
    if path is None:
        return None
    shapes = {port.name: port.shape for port in artifact.signature.inputs}
    imported = import_model(path, shapes)
    if imported.sha256 != source.sha256:
        notes.append(f"{path} is not the file that was compiled (its sha256 differs)")
    _check_inputs(imported.model, artifact, path)
    return imported.model


def _path(artifact: Artifact, explicit: str | Path | None, notes: list[str]) -> Path | None:
    if explicit is not None:
        return Path(explicit)
    source = artifact.manifest.source
    lacking = "so layers and metrics are not compared with it; name it with --reference"
    if source.path is None:
        notes.append(f"the float original was compiled from memory, {lacking}")
        return None
    path = Path(source.path)
    if not path.is_file():
        notes.append(f"the float original {path} is not there, {lacking}")
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != source.sha256:
            notes.append(f"{path} has changed since it was compiled, {lacking}")
            return None
    return path


def _check_inputs(model: ir.Model, artifact: Artifact, path: Path) -> None:
    have = sorted(value.name or "" for value in model.graph.inputs)
    want = sorted(port.name for port in artifact.signature.inputs)
    if have != want:
        raise ModelError(
            "reference-inputs",
            f"{path} has inputs {have}, the artifact {want}",
            "give the model that the artifact was compiled from",
        )


def payload_model(artifact: Artifact) -> ir.Model:
    """Read the payload as a graph.

    Raises:
        ArtifactError: the engine's payload is not an ONNX file.
    """
    import onnx_ir as ir

    path = artifact.path / "model.onnx"
    if not path.is_file():
        engine, files = artifact.manifest.engine.name, artifact.payload_files()
        raise ArtifactError(
            "payload-not-onnx",
            f"the payload of engine {engine} is {files}, so layers are not visible",
            "verify without layers",
        )
    return ir.load(path)


def payload_names(artifact: Artifact) -> tuple[dict[str, str], dict[str, npt.NDArray[np.floating]]]:
    """Return name in the payload -> name in the original, and what original values were divided by.

    Only for the values that were renamed; divisors (by original name) only for those that were scaled.
    """
    from ..ir import scaled

    def text(file: str) -> str | None:
        return artifact.read_text(file) if file in artifact.manifest.files else None

    names = {str(short): str(name) for short, name in json.loads(text(NAMES) or "{}").items()}
    short = {name: key for key, name in names.items()}
    found = scaled.read_scaled(text(f"reports/{scaled.FILE}"))
    names |= {short.get(name, name): entry.of for name, entry in found.items()}
    return names, {entry.of: entry.divisor for entry in found.values()}
