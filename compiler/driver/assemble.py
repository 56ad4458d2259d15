"""Puts a finished compilation into an artifact."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from ..artifact.manifest import (
    BoundRecord,
    CalibrationRecord,
    ChoiceRecord,
    EngineRecord,
    Manifest,
    SignatureRecord,
    SourceRecord,
    TargetRecord,
)
from ..artifact.read import Artifact, open_artifact
from ..artifact.write import ArtifactWriter
from ..backend import DECISIONS
from ..records import to_json
from .choose import Choice
from .job import Job
from .oracle import Oracle
from .report import CompileReport, Repeat

_TOOLS = ("pared", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
REPORT = "reports/compile.json"
MEASURED = "reports/measured.json"


def write_artifact(
    job: Job,
    choice: Choice,
    oracle: Oracle,
    report: CompileReport,
    attachments: dict[str, str],
    out: Path,
    repeat: Repeat | None,
) -> Artifact:
    """Write everything at once; an older artifact at `out` is replaced whole.

    With `repeat`, a rebuild, choice and measurements are those of the artifact that is built again.

    Raises:
        ArtifactError: occupied, unwritable or full.
    """
    with ArtifactWriter(out) as writer:
        for name, content in choice.payload.files.items():
            writer.add(name, content)
        writer.add_golden(oracle.inputs, choice.outputs)
        writer.add(REPORT, _text(_stable(report)))
        writer.add(MEASURED, _text(_varying(report)) if repeat is None else repeat.measured)
        writer.add("reports/recipe.yaml", job.recipe.text())
        for name, text in attachments.items():
            writer.add(f"reports/{name}", text)
        return open_artifact(writer.commit(_manifest(job, choice, oracle, report, repeat)))


def read_decisions(artifact: Artifact) -> dict[str, str]:
    """Return what the artifact's backend chose by measuring, by what it was chosen for."""
    name = f"reports/{DECISIONS}"
    if name not in artifact.manifest.files:
        return {}
    return {str(what): str(option) for what, option in json.loads(artifact.read_text(name)).items()}


def _manifest(
    job: Job, choice: Choice, oracle: Oracle, report: CompileReport, repeat: Repeat | None
) -> Manifest:
    calibration = job.ctx.calibration
    return Manifest(
        name=job.imported.model.graph.name or "model",
        signature=SignatureRecord.of(report.signature),
        target=TargetRecord(name=job.target.name, digest=job.target.digest, resolved=job.target.to_json()),
        engine=EngineRecord(
            backend=job.backend.name, name=choice.payload.engine, options=dict(choice.payload.options)
        ),
        choice=_choice(choice) if repeat is None else repeat.choice,
        pipeline=job.recipe.pipeline or "",
        recipe=job.recipe.model_dump(mode="json"),
        source=SourceRecord(
            path=report.source, sha256=job.imported.sha256, external=dict(job.imported.external)
        ),
        calibration=None
        if calibration is None
        else CalibrationRecord(
            path=job.recipe.calibration, digest=calibration.digest, samples=len(calibration)
        ),
        seed=job.recipe.seed,
        bounds={
            name: BoundRecord(atol=bound.atol, rtol_of_max=bound.rtol_of_max, how=bound.how)
            for name, bound in oracle.bounds(choice.variant).items()
        },
        tools={name: _version(name) for name in _TOOLS},
    )


def _choice(choice: Choice) -> ChoiceRecord:
    # Ratios differ from run to run; the manifest names the kind of reason, measured.json the figures.
    timed = any(candidate.latency is not None for candidate in choice.candidates)
    why = "measured" if timed else choice.why
    return ChoiceRecord(candidate=choice.name, precision=choice.variant, why=why)


def _stable(report: CompileReport) -> object:
    record = to_json(report)
    assert isinstance(record, dict), "a report is an object"
    return {key: value for key, value in record.items() if key not in ("seconds", "candidates", "notes")}


def _varying(report: CompileReport) -> object:
    record = to_json(report)
    assert isinstance(record, dict), "a report is an object"
    return {key: record[key] for key in ("seconds", "candidates", "notes")}


def _text(record: object) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        from ... import __version__

        return __version__
