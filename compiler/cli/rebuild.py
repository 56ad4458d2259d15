"""`pared rebuild`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PipelineError
from . import exitcodes, options, render
from .console import progress_bars
from .outcome import Outcome
from .units import plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..rebuild import RebuildReport


def rebuild(
    artifact: options.ArtifactPath,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare only and keep nothing; the default without -o."),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="M.onnx",
            help="The source model, if it moved.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    calib_data: Annotated[
        Path | None,
        typer.Option(
            metavar="C.npz", help="The calibration samples, if they moved.", rich_help_panel=options.DATA
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT2",
            help="Keep the rebuilt artifact there.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Build an artifact again from its own manifest and compare every byte.

    Exits 0 when all files are the same, 1 when one differs, 2 when a source is missing or has changed.

    [bold]Example:[/bold]  pared rebuild OUT --check
    """
    if check and output is not None:
        raise PipelineError(
            "usage", "--check keeps nothing, -o keeps the rebuilt artifact", "give one of them"
        )
    from ..rebuild import rebuild_artifact

    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        report = rebuild_artifact(
            artifact, model=model, calibration=calib_data, output=output, progress=progress
        )
    code = exitcodes.CLEAN if report.same else exitcodes.FINDING
    return Outcome(report, lambda: show(report), as_json, quiet, code)


def show(report: RebuildReport) -> RenderableType:
    """Return the view of a report, the first difference first."""
    kept = None if report.output is None else f"kept at {report.output}"
    if report.same:
        verdict = f"{plural(report.files, 'file')} rebuilt as {report.candidate}: the same bytes"
        return render.page(render.styled(verdict, "good"), kept)
    verdict = f"{plural(len(report.differences), 'difference')} after rebuilding {report.candidate}"
    return render.page(render.styled(verdict, "bad"), render.bullets(report.differences), kept)
