"""`pared sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, render
from .console import progress_bars
from .outcome import Outcome
from .units import name_text, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..driver.sensitivity import Effect, SensitivityReport
    from ..records import Metric

WHAT = "What to try"

Model = Annotated[
    Path,
    typer.Option("--model", "-m", metavar="M.onnx", help="The float model.", rich_help_panel=options.MODEL),
]
Calibration = Annotated[
    Path,
    typer.Option(
        "--calib-data",
        metavar="C.npz",
        help="Samples: one array per input, first axis = samples.",
        rich_help_panel=options.DATA,
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option(
        "--test-data",
        metavar="T.npz",
        help="Labelled samples: the drop of a metric is shown too.",
        rich_help_panel=options.DATA,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option("--metric", help="top1, auc, mse, cosine or MODULE:FUNCTION.", rich_help_panel=options.DATA),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="TEXT",
        help="Pipeline text to try on every layer, e.g. 'prune{sparsity=0.9}'; repeatable; default: 8 and 4 "
        "bits, half and 80 % zeros, low rank.",
        rich_help_panel=WHAT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Layer to leave out: name or regular expression; repeatable.", rich_help_panel=WHAT),
]
Count = Annotated[
    int,
    typer.Option("--samples", min=1, help="Samples that the SQNR is taken on.", rich_help_panel=WHAT),
]
Timed = Annotated[
    bool,
    typer.Option("--time", help="Measure every layer by itself, before and after.", rich_help_panel=WHAT),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="F.svg|F.png|F.pdf",
        help="Draw SQNR by layer and method there (needs the extra [bold]report[/bold]).",
        rich_help_panel=options.OUTPUT,
    ),
]


def sensitivity(
    model: Model,
    calib_data: Calibration,
    test_data: TestData = None,
    metric: MetricName = None,
    method: Methods = None,
    exclude: Exclude = None,
    samples: Count = 16,
    time: Timed = False,
    shape: options.Shapes = None,
    plot: Plot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Try every method on every layer, one at a time: what it costs in accuracy and what it saves.

    [bold]Examples:[/bold]

    pared sensitivity -m M.onnx --calib-data C.npz

    pared sensitivity -m M.onnx --calib-data C.npz --method 'prune{sparsity=0.9}' --time --plot s.svg
    """
    from ..driver.sensitivity import METHODS, analyse
    from ..driver.sensitivity_job import SensitivityInputs, open_job

    inputs = SensitivityInputs(
        model, calib_data, test_data, metric, options.parse_shapes(shape), tuple(exclude or ()), samples, time
    )
    if plot is not None:
        from ..driver.sensitivity_plot import check_plot

        check_plot(plot)
    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        job = open_job(inputs, progress)
        report = analyse(job.model, model.name, method or METHODS, job.probe, job.ctx)
    if plot is not None:
        from ..driver.sensitivity_plot import draw

        draw(report, plot)
    return Outcome(report, lambda: show(report, plot), as_json, quiet)


def show(report: SensitivityReport, plot: Path | None = None) -> RenderableType:
    """Return the view of a report: one table per method."""
    return render.page(
        f"{report.model}: one layer changed at a time, outputs of {plural(report.samples, 'sample')}",
        *(render.section(method, _table(report, method)) for method in report.methods),
        "weights, left (nonzeros) and MACs: after over before; est. and time: over that of the float layer, "
        "estimated and measured",
        None if plot is None else f"plot: {plot}",
    )


def _table(report: SensitivityReport, method: str) -> RenderableType:
    effects = [effect for effect in report.effects if effect.method == method]
    done = [effect for effect in effects if not effect.reason]
    drop = [f"{report.metric} drop"] if report.metric else []
    columns = ["layer", "SQNR dB", *drop, "weights", "left", "MACs", "est.", "time"]
    rows: list[list[RenderableType]] = [
        [render.Name(effect.layer), *_cells(effect, bool(drop))] for effect in done
    ]
    refused = [f"{name_text(e.layer, 40)}: {e.reason}" for e in effects if e.reason]
    return render.page(
        render.table(columns, rows, right=columns[1:], flexible="layer") if rows else None,
        render.bullets(refused),
    )


def _cells(effect: Effect, with_drop: bool) -> list[str]:
    drop = "-" if effect.drop is None else f"{effect.drop:+.2f}"
    return [
        _decibel(effect.sqnr_db),
        *([drop] if with_drop else []),
        _share(effect.bytes_after, effect.bytes_before),
        "-" if effect.nonzero is None else f"{effect.nonzero:.2f}",
        _share(effect.macs_after, effect.macs_before),
        _times(effect.predicted),
        _times(effect.measured),
    ]


def _share(after: int | None, before: int | None) -> str:
    return f"{after / before:.2f}" if after is not None and before else "-"


def _decibel(value: float | None) -> str:
    return "-" if value is None else "equal" if value == float("inf") else f"{value:.1f}"


def _times(metric: Metric | None) -> str:
    return "-" if metric is None or metric.value is None else f"{metric.value:.2f}"
