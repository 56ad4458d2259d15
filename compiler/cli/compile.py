"""`pared compile`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PipelineError
from ..files import write_file
from . import compile_options as flags
from . import options, render
from .compile_view import show
from .console import progress_bars
from .outcome import Outcome

if TYPE_CHECKING:
    from ..driver.report import CompileReport
    from ..recipe import Recipe


def compile_verb(
    model: flags.Model = None,
    target: flags.Target = None,
    shape: options.Shapes = None,
    fallback: flags.FallbackOption = None,
    calib_data: flags.CalibData = None,
    test_data: flags.TestData = None,
    precision: flags.Precision = None,
    sparsity: flags.Sparsity = None,
    prune_criterion: flags.PruneCriterion = None,
    prune_pattern: flags.PrunePattern = None,
    max_macs: flags.MaxMacs = None,
    max_params: flags.MaxParams = None,
    shrink: flags.ShrinkBy = None,
    exclude: flags.Exclude = None,
    max_drop: flags.MaxDrop = None,
    metric: flags.Metric = None,
    force: flags.Force = None,
    pipeline: flags.Pipeline = None,
    opt_level: flags.OptLevel = None,
    config: flags.Config = None,
    save_config: flags.SaveConfig = None,
    seed: flags.Seed = None,
    engine: flags.Engine = None,
    engine_option: flags.EngineOption = None,
    threads: flags.Threads = None,
    dry_run: flags.DryRun = False,
    print_pipeline: flags.PrintPipeline = False,
    verify_each: flags.VerifyEach = False,
    dump_ir: flags.DumpIr = None,
    output: flags.Output = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Compile an ONNX model into a verified, measured artifact.

    [bold]Examples:[/bold]

    pared compile -m M.onnx -o OUT

    pared compile -m M.onnx --precision int8 --calib-data C.npz -o OUT

    pared compile -m M.onnx --sparsity 0.5 --precision int8 --calib-data C.npz -o OUT

    pared compile -m M.onnx --max-macs 0.5 --calib-data C.npz -o OUT

    pared compile -c recipe.yaml --dry-run
    """
    given: dict[str, object] = {
        "model": _absolute(model),
        "target": target,
        "shapes": options.parse_shapes(shape),
        "fallback": fallback,
        "calibration": _absolute(calib_data),
        "test_data": _absolute(test_data),
        "precision": precision,
        "sparsity": sparsity,
        "prune_criterion": prune_criterion,
        "prune_pattern": prune_pattern,
        "max_macs": max_macs,
        "max_params": max_params,
        "shrink": shrink,
        "exclude": tuple(exclude) if exclude else None,
        "max_drop": max_drop,
        "metric": metric,
        "force": force,
        "pipeline": pipeline,
        "opt_level": opt_level,
        "seed": seed,
        "engine": engine,
        "engine_options": options.parse_settings("--engine-option", engine_option),
        "threads": threads,
    }
    recipe = merged_recipe(config, given)
    text = resolved_pipeline(recipe)
    if print_pipeline:
        _save(recipe, text, save_config)
        return Outcome({"pipeline": text}, lambda: render.page(render.verbatim(text)), as_json, quiet)
    if recipe.model is None:
        raise PipelineError("model-missing", "no model was given", "give -m M.onnx or `model:` in the recipe")
    if output is None and not dry_run:
        raise PipelineError(
            "output-missing", "there is no place for the artifact", "give -o OUT or --dry-run"
        )

    from ..driver import compile_recipe
    from ..driver.job import Inputs

    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        result = compile_recipe(
            recipe,
            None if dry_run else output,
            inputs=Inputs(progress=progress),
            verify_each=verify_each,
            dump_ir=dump_ir,
        )
    _save(recipe, text, save_config)
    written = None if result.artifact is None else output
    record = CompileOutput(written, result.artifact.digest if result.artifact else None, result.report)
    return Outcome(record, lambda: show(result.report, written), as_json, quiet)


@dataclass(frozen=True)
class CompileOutput:
    """What `--json` prints.

    Attributes:
        output: folder of the artifact; None for a dry run.
        digest: sha256 of the artifact's manifest, and through it of everything in it.
    """

    output: Path | None
    digest: str | None
    report: CompileReport


# What the pipeline follows from when none is given.
_SHRINKING = {"sparsity", "prune_criterion", "prune_pattern", "max_macs", "max_params", "shrink"}
_DERIVING = {"precision", "opt_level"} | _SHRINKING


def merged_recipe(config: Path | None, given: dict[str, object]) -> Recipe:
    """Return the recipe of `--config` with every given flag put over it.

    A pipeline that the file's own precision and level stand for (`--save-config` writes it out) gives way
    when a flag changes one of these.

    Raises:
        PipelineError: the file or a value is wrong.
    """
    from ..recipe import COMMAND_LINE, Recipe

    flags = {k: v for k, v in given.items() if v is not None}
    if config is None:
        return Recipe.parse(flags, place=COMMAND_LINE)
    base = Recipe.read(config)
    if flags.keys() & _DERIVING and base.pipeline is not None:
        derived = resolved_pipeline(base.model_copy(update={"pipeline": None}))
        if resolved_pipeline(base) == derived:
            base = base.model_copy(update={"pipeline": None})
    return Recipe.parse(base.model_dump() | flags, place=COMMAND_LINE)


def resolved_pipeline(recipe: Recipe) -> str:
    """Return the pipeline text that the recipe stands for, macros expanded.

    Raises:
        PipelineError: unknown precision, pass or option.
    """
    from ...targets import load_target
    from .. import pipeline
    from ..driver.precision import default_pipeline, parse_precision
    from ..driver.pruning import shrinking_text
    from ..registry import MACROS, PASSES

    text = recipe.pipeline
    shrinking = shrinking_text(recipe, has_calibration=recipe.calibration is not None)
    if text is None:
        halves = load_target(recipe.target).numerics.halves
        precision = parse_precision(recipe.precision, halves)
        text = default_pipeline(precision, recipe.opt_level, shrinking)
    return pipeline.print_pipeline(pipeline.parse_pipeline(text, PASSES, MACROS))


def _save(recipe: Recipe, pipeline: str, place: Path | None) -> None:
    """Write the recipe with nothing left to defaults, in one step."""
    if place is not None:
        write_file(place, recipe.model_copy(update={"pipeline": pipeline}).text().encode())


def _absolute(path: Path | None) -> str | None:
    """Make a path independent of the working directory: the saved recipe outlives it."""
    return None if path is None else os.path.abspath(path)
