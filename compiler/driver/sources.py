"""Finds again what an artifact was compiled from, and refuses what is not the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..artifact.manifest import Manifest
from ..data import Samples, open_samples
from ..errors import ArtifactError, DataError


def recorded_source(manifest: Manifest, moved: Path | None) -> Path | bytes:
    """Return the source model, from where it is now or else from its recorded path.

    Raises:
        ArtifactError: it was compiled from memory and `moved` is None.
        DataError: a file is missing or is another one.
    """
    recorded = manifest.source.path
    if moved is None and recorded is None:
        raise ArtifactError(
            "source-unknown", "the artifact was compiled from a model in memory", "give it with -m M.onnx"
        )
    path = moved if moved is not None else Path(str(recorded))
    _check_hash(path, manifest.source.sha256)
    for name, digest in manifest.source.external.items():
        _check_hash(path.parent / name, digest)
    # What came from memory goes in as it did then; a path would leave its traces in the reports.
    return path if recorded is not None else path.read_bytes()


def _check_hash(path: Path, digest: str) -> None:
    if not path.is_file():
        raise DataError("source-missing", f"{path} is not there", "say where it is now with -m M.onnx")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise DataError(
            "source-changed",
            f"{path} is not the file the artifact was compiled from: its sha256 is {found[:12]}…, "
            f"the manifest says {digest[:12]}…",
            "give the original with -m M.onnx, or compile anew",
        )


def recorded_calibration(manifest: Manifest, moved: Path | None) -> Samples | None:
    """Return the calibration samples, from where they are now or else from their recorded path.

    Returns:
        None when the artifact was compiled without any.

    Raises:
        ArtifactError: they came from memory and `moved` is None.
        DataError: they are missing or are others.
    """
    record = manifest.calibration
    if record is None:
        return None
    if moved is None and record.path is None:
        raise ArtifactError(
            "calibration-unknown",
            "the artifact was compiled with calibration data from memory",
            "store them as .npz and rebuild with --calib-data C.npz",
        )
    path = moved if moved is not None else Path(str(record.path))
    if not path.exists():
        raise DataError(
            "calibration-missing-file",
            f"{path}, the calibration data of the artifact, is not there",
            "put it back, or rebuild with --calib-data C.npz",
        )
    samples = open_samples(path, manifest.signature.signature(), purpose="calibration")
    if samples.digest != record.digest:
        raise DataError(
            "calibration-changed",
            f"{path} does not hold the {record.samples} samples the artifact was compiled with",
            "rebuild with --calib-data C.npz, or compile anew",
        )
    return samples
