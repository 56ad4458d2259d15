"""A compilation about to start: everything the recipe names has been opened and checked."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..backend import Backend, Configurable, Signature
from ..data import Samples, Source, open_samples
from ..errors import DataError, TargetError, nearest
from ..ir.export import signature_of
from ..ir.importer import Imported, ModelSource, import_model
from ..pass_api import Context, Pass, PassTable
from ..pipeline import parse_pipeline, print_pipeline
from ..recipe import Recipe
from ..registry import BACKENDS, MACROS, PASSES
from ..target import Target
from .precision import Precision, check_halves, default_pipeline, parse_precision
from .pruning import shrinking_text

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Inputs:
    """What a caller may hand over in memory instead of by path.

    Attributes:
        model, calibration, test_data: used where the recipe names no path.
        target: used instead of the one the recipe names (a rebuild has it in the manifest).
        progress: called as `progress(label, done, total)`.
        cancel: set to stop.
    """

    model: ModelSource | None = None
    calibration: Source | Samples | None = None
    test_data: Source | Samples | None = None
    target: Target | None = None
    progress: Progress | None = None
    cancel: threading.Event | None = None


@dataclass(frozen=True)
class Job:
    """Recipe, model, data, target, backend and passes, ready to run.

    Attributes:
        recipe: resolved: `pipeline` is filled in.
        precision: None for float.
    """

    recipe: Recipe
    imported: Imported
    signature: Signature
    target: Target
    backend: Backend
    precision: Precision | None
    passes: Sequence[Pass]
    ctx: Context
    test_data: Samples | None


def prepare(
    recipe: Recipe,
    inputs: Inputs,
    table: PassTable = PASSES,
    decisions: Mapping[str, str] | None = None,
) -> Job:
    """Open and check everything; what is wrong with the request shows here, before any work.

    `decisions` are what the backend chose by measuring when the artifact was first built.

    Raises:
        ParedError: of the kind that fits, naming flag or key.
    """
    from ...targets import load_target

    target = inputs.target if inputs.target is not None else load_target(recipe.target)
    precision = parse_precision(recipe.precision, target.numerics.halves)
    given = recipe.calibration is not None or inputs.calibration is not None
    shrinking = shrinking_text(recipe, has_calibration=given)
    derived = default_pipeline(precision, recipe.opt_level, shrinking)
    text = recipe.pipeline if recipe.pipeline is not None else derived
    passes = parse_pipeline(text, table, MACROS)
    check_halves(passes, target)
    backend = _backend(target)
    target = _with_options(target, backend, recipe)
    imported = import_model(_source(recipe, inputs), recipe.shapes)
    signature = signature_of(imported.model)
    calibration = _samples(recipe.calibration, inputs.calibration, signature, "calibration")
    if (
        precision is not None
        and precision.needs_calibration
        and calibration is None
        and recipe.pipeline is None
    ):
        raise DataError(
            "calibration-missing",
            f"precision {recipe.precision} quantizes activations, so their ranges must be measured",
            "give --calib-data, or use --precision int8-dynamic, int8-datafree or w8 (weights only)",
        )
    ctx = Context(
        calibration=calibration,
        seed=recipe.seed,
        decisions=decisions,
        threads=recipe.threads,
        engine_named=recipe.engine is not None,
        target=target,
        exclude=recipe.exclude,
    )
    if inputs.progress is not None:
        ctx = dataclasses.replace(ctx, progress=inputs.progress)
    if inputs.cancel is not None:
        ctx = dataclasses.replace(ctx, cancel=inputs.cancel)
    resolved = recipe.model_copy(update={"pipeline": print_pipeline(passes)})
    test_data = _samples(recipe.test_data, inputs.test_data, signature, "test")
    return Job(resolved, imported, signature, target, backend, precision, passes, ctx, test_data)


def _source(recipe: Recipe, inputs: Inputs) -> ModelSource:
    source = inputs.model if inputs.model is not None else recipe.model
    if source is None:
        raise DataError("model-missing", "no model was given", "give -m M.onnx or `model:` in the recipe")
    return source


def _backend(target: Target) -> Backend:
    if target.backend not in BACKENDS:
        raise TargetError(
            "target-backend",
            f"target {target.name} needs backend {target.backend!r}",
            nearest(target.backend, [*BACKENDS]),
        )
    return BACKENDS[target.backend]()


def _with_options(target: Target, backend: Backend, recipe: Recipe) -> Target:
    """Put the recipe's engine options over those of the target; only names that the backend knows."""
    if not recipe.engine_options:
        return target
    known = backend.option_names if isinstance(backend, Configurable) else frozenset()
    for key in recipe.engine_options:
        if key not in known:
            raise TargetError(
                "engine-option",
                f"backend {backend.name} has no engine option {key!r}",
                nearest(key, sorted(known)) if known else "leave it out",
            )
    return target.model_copy(update={"options": target.options | recipe.engine_options})


def _samples(
    path: str | None, memory: Source | Samples | None, signature: Signature, purpose: str
) -> Samples | None:
    source = memory if memory is not None else path
    return None if source is None else open_samples(source, signature, purpose=purpose)
