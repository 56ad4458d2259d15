"""Builds an artifact again from its own manifest and compares every byte."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .artifact.compare import differences
from .artifact.manifest import NAME
from .artifact.read import open_artifact
from .driver import compile_recipe
from .driver.assemble import MEASURED, read_decisions
from .driver.job import Inputs
from .driver.report import Repeat
from .driver.sources import recorded_calibration, recorded_source
from .recipe import Recipe
from .target import Target

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
    source = recorded_source(manifest, model)
    data = recorded_calibration(manifest, calibration)
    recipe = Recipe.parse(dict(manifest.recipe), place=f"{path}/{NAME}")
    repeat = Repeat(manifest.choice, read_decisions(artifact), artifact.read_text(MEASURED))
    target = Target.from_json(manifest.target.resolved)
    inputs = Inputs(model=source, calibration=data, target=target, progress=progress)
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
