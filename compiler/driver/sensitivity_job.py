"""Opens what `pared sensitivity` was given: model, samples, labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..data import open_samples
from ..errors import DataError
from ..exclusion import idle_patterns
from ..ir.export import signature_of
from ..ir.importer import import_model
from ..manager import Manager
from ..pass_api import Context
from ..pipeline import parse_pipeline
from ..registry import MACROS, PASSES
from .sensitivity import Probe


@dataclass(frozen=True)
class SensitivityInputs:
    """What the command line says; see its options."""

    model: Path
    calibration: Path
    test_data: Path | None
    metric: str | None
    shapes: Mapping[str, tuple[int | str, ...]] | None
    exclude: tuple[str, ...]
    samples: int
    timed: bool


@dataclass(frozen=True)
class SensitivityJob:
    """The canonicalized model, how to judge, and the context of the passes."""

    model: ir.Model
    probe: Probe
    ctx: Context


def open_job(inputs: SensitivityInputs, progress: Callable[[str, int, int], None]) -> SensitivityJob:
    """Open everything and clean up the model.

    Raises:
        ParedError: of the kind that fits, naming the flag.
    """
    imported = import_model(inputs.model, inputs.shapes)
    signature = signature_of(imported.model)
    calibration = open_samples(str(inputs.calibration), signature, purpose="calibration")
    labelled = None
    if inputs.test_data is not None:
        labelled = open_samples(str(inputs.test_data), signature, purpose="test")
    ctx = Context(calibration=calibration, exclude=inputs.exclude, progress=progress)
    model = Manager().run(imported.model, parse_pipeline("canonicalize", PASSES, MACROS), ctx).model
    idle = idle_patterns(inputs.exclude, (node.name or "" for node in model.graph))
    if idle:
        raise DataError(
            "exclude-unmatched",
            f"--exclude {idle[0]!r} matches no node",
            "list names with `pared inspect --json`",
        )
    probe = Probe(calibration.head(inputs.samples), labelled, inputs.metric, inputs.timed)
    return SensitivityJob(model, probe, ctx)
