"""Builds an artifact again from its own manifest and compares every byte."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .artifact.compare import differences
from .artifact.manifest import NAME, Manifest
from .artifact.read import open_artifact
from .data import open_samples
from .driver import compile_recipe
from .driver.assemble import MEASURED
from .driver.job import Inputs
from .driver.report import Repeat
from .errors import ArtifactError, DataError
from .recipe import Recipe

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RebuildReport:
    """The result of a rebuild.

    Attributes:
        same: every file has the same bytes, the manifest included.
        differences: one line each, the first one first; empty when `same`.
        digest: sha256 of the artifact's manifest, `rebuilt_digest` that of the rebuilt one.
        candidate: the variant and engine that were built, as the manifest pins them.
        output: where the rebuilt artifact was kept, or None.
        files: how many files were compared.
    """

    artifact: Path
    same: bool
    differences: tuple[str, ...]
    digest: str
    rebuilt_digest: str
    candidate: str
    output: Path | None
    files: int


def rebuild_artifact(
    path: Path,
    *,
    model: Path | None = None,
    calibration: Path | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> RebuildReport:
    """Compile the manifest's recipe again, with its engine pinned, and compare.

    Measurements are not taken again: timings differ from run to run and are copied.

    Args:
        path: the artifact.
        model: where its source model is now; None takes the recorded path.
        calibration: where its calibration data are now; None takes the recorded path.
        output: keep the rebuilt artifact there; None builds in a temporary folder.
        progress: called as `progress(label, done, total)`.

    Raises:
        ArtifactError: the artifact is missing or damaged, or was compiled from memory.
        DataError: model or calibration data are missing or are not those it was compiled from.
    """
    artifact = open_artifact(path)
    manifest = artifact.manifest
    source = _source(manifest, model)
    data = _calibration(manifest, calibration)
    recipe = Recipe.parse(dict(manifest.recipe), place=f"{path}/{NAME}")
    repeat = Repeat(manifest.choice, artifact.read_text(MEASURED))
    inputs = Inputs(model=source, calibration=data, progress=progress)
    with tempfile.TemporaryDirectory(prefix="pared-rebuild-") as folder:
        place = output if output is not None else Path(folder) / "artifact"
        rebuilt = compile_recipe(recipe, place, inputs=inputs, repeat=repeat).artifact
        assert rebuilt is not None, "a compilation with an output gives an artifact"
        found = differences(artifact.manifest, rebuilt.manifest)
    return RebuildReport(
        artifact=path,
        same=not found,
        differences=tuple(found),
        digest=artifact.digest,
        rebuilt_digest=rebuilt.digest,
        candidate=manifest.choice.candidate,
        output=output,
        files=len(manifest.files) + 1,
    )


def _source(manifest: Manifest, model: Path | None) -> Path | bytes:
    recorded = manifest.source.path
    if model is None and recorded is None:
        raise ArtifactError(
            "source-unknown", "the artifact was compiled from a model in memory", "give it with -m M.onnx"
        )
    path = model if model is not None else Path(str(recorded))
    _check_hash(path, manifest.source.sha256, "-m M.onnx")
    for name, digest in manifest.source.external.items():
        _check_hash(path.parent / name, digest, "-m M.onnx")
    # What came from memory goes in as it did then; a path would leave its traces in the reports.
    return path if recorded is not None else path.read_bytes()


def _check_hash(path: Path, digest: str, flag: str) -> None:
    if not path.is_file():
        raise DataError("source-missing", f"{path} is not there", f"say where it is now with {flag}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise DataError(
            "source-changed",
            f"{path} is not the file the artifact was compiled from: its sha256 is {found[:12]}…, "
            f"the manifest says {digest[:12]}…",
            f"give the original with {flag}, or compile anew",
        )


def _calibration(manifest: Manifest, calibration: Path | None) -> Path | None:
    record = manifest.calibration
    if record is None:
        return None
    flag = "--calib-data C.npz"
    if calibration is None and record.path is None:
        raise ArtifactError(
            "calibration-unknown",
            "the artifact was compiled with calibration data from memory",
            f"store them as .npz and give {flag}",
        )
    path = calibration if calibration is not None else Path(str(record.path))
    if not path.exists():
        raise DataError("calibration-missing-file", f"{path} is not there", f"say where it is with {flag}")
    samples = open_samples(path, manifest.signature.signature(), purpose="calibration")
    if samples.digest != record.digest:
        raise DataError(
            "calibration-changed",
            f"{path} does not hold the {record.samples} samples the artifact was compiled with",
            f"give the original data with {flag}, or compile anew",
        )
    return path
