"""`pared estimate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import compile_options as flags
from . import options, render
from .console import progress_bars
from .outcome import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..driver.estimating import EstimateReport
    from ..estimates import Estimate, LayerEstimate

Model = Annotated[
    Path,
    typer.Option("--model", "-m", metavar="M.onnx", help="The ONNX model.", rich_help_panel=options.MODEL),
]
TargetName = Annotated[
    str,
    typer.Option(help="Device: an FPGA of `pared targets`, or a file.", rich_help_panel=options.MODEL),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="F.svg|F.png|F.pdf",
        help="Draw resources by layer there (needs the extra [bold]report[/bold]).",
        rich_help_panel=options.OUTPUT,
    ),
]


def estimate(
    model: Model,
    target: TargetName,
    shape: options.Shapes = None,
    calib_data: flags.CalibData = None,
    precision: flags.Precision = None,
    sparsity: flags.Sparsity = None,
    exclude: flags.Exclude = None,
    pipeline: flags.Pipeline = None,
    engine: flags.Engine = None,
    engine_option: flags.EngineOption = None,
    plot: Plot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Estimate what hardware a model needs, and whether it fits, before any synthesis.

    [bold]Examples:[/bold]

    pared estimate -m Q.onnx --target fpga-ecp5-25k

    pared estimate -m M.onnx --target fpga-ecp5-25k --precision w4a4 --calib-data C.npz --plot bars.svg
    """
    from ..driver.estimating import estimate_recipe
    from ..recipe import COMMAND_LINE, Recipe

    given: dict[str, object] = {
        "model": os.path.abspath(model),
        "target": target,
        "shapes": options.parse_shapes(shape),
        "calibration": None if calib_data is None else os.path.abspath(calib_data),
        "precision": precision,
        "sparsity": sparsity,
        "exclude": tuple(exclude) if exclude else None,
        "pipeline": pipeline,
        "engine": engine,
        "engine_options": options.parse_settings("--engine-option", engine_option),
    }
    if plot is not None:
        from ..driver.sensitivity_plot import check_plot

        check_plot(plot)
    recipe = Recipe.parse({k: v for k, v in given.items() if v is not None}, place=COMMAND_LINE)
    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        report = estimate_recipe(recipe, progress=progress)
    if plot is not None:
        from ..driver.estimate_plot import draw

        draw(report, plot)
    return Outcome(report, lambda: show(report, plot), as_json, quiet)


def show(report: EstimateReport, plot: Path | None = None) -> RenderableType:
    """Return the view of a report."""
    found = report.estimate
    columns = ["layer", "kind", "products", "LUT", "FF", "BRAM", "DSP", "clocks"]
    rows = [_cells(layer) for layer in found.layers]
    return render.page(
        f"{report.model} on {report.target}, engine {found.engine}: every figure is estimated",
        render.table(columns, rows, right=columns[2:], flexible="layer"),
        render.facts(_facts(report, found)),
        render.section("could be tried", render.bullets(report.ways)),
        None if plot is None else f"plot: {plot}",
    )


def _cells(layer: LayerEstimate) -> list[RenderableType]:
    counts = (layer.products, layer.lut, layer.ff, layer.bram, layer.dsp)
    return [render.Name(layer.name), layer.kind, *map(str, counts), f"{layer.cycles:g}"]


def _facts(report: EstimateReport, found: Estimate) -> list[tuple[str, RenderableType]]:
    time = "-" if found.latency_ns is None else f"{found.latency_ns:g} ns at {found.fmax_mhz:g} MHz"
    whole = ", ".join(f"{count} {name.upper()}" for name, count in found.needs().items())
    return [
        ("verdict", report.verdict),
        ("whole", whole),
        ("latency", f"{found.latency_cycles} clocks, {time}; a result every {found.ii} clock(s)"),
        ("stands on", found.how),
    ]
