"""`pared compile`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import compile_options as flags
from . import options
from .outcome import Outcome

if TYPE_CHECKING:
    from ..recipe import Recipe


def compile_verb(
    model: flags.Model = None,
    target: flags.Target = None,
    shape: options.Shapes = None,
    fallback: flags.FallbackOption = None,
    calib_data: flags.CalibData = None,
    test_data: flags.TestData = None,
    precision: flags.Precision = None,
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
        "exclude": tuple(exclude) if exclude else None,
        "max_drop": max_drop,
        "metric": metric,
        "force": force,
        "pipeline": pipeline,
        "opt_level": opt_level,
        "seed": seed,
        "engine": engine,
        "threads": threads,
    }
    recipe = merged_recipe(config, given)
    raise NotImplementedError(recipe, save_config, dry_run, print_pipeline, verify_each, dump_ir, output)


def merged_recipe(config: Path | None, given: dict[str, object]) -> Recipe:
    """Return the recipe of `--config` with every given flag put over it.

    Raises:
        PipelineError: the file or a value is wrong.
    """
    from ..recipe import Recipe

    base = Recipe.read(config).model_dump() if config is not None else {}
    return Recipe.parse(base | {k: v for k, v in given.items() if v is not None}, place="command line")


def _absolute(path: Path | None) -> str | None:
    """Make a path independent of the working directory: the saved recipe outlives it."""
    return None if path is None else os.path.abspath(path)
