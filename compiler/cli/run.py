"""`pared run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, render
from .console import progress_bars
from .outcome import Outcome
from .units import bytes_text, plural, shape_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..run_file import RunReport


def run(
    artifact: options.ArtifactPath,
    input_file: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="X.npz",
            help="Samples: one array per input, first axis = samples (.npz, .npy or a folder of .npy).",
            rich_help_panel=options.DATA,
        ),
    ],
    output_file: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="Y.npz",
            help="Where the outputs go: one array per output, first axis = samples. Replaced in one step.",
            rich_help_panel=options.DATA,
        ),
    ],
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Run an artifact over a file of samples.

    [bold]Example:[/bold]  pared run OUT --input x.npz --output y.npz
    """
    from ..run_file import run_file

    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        report = run_file(artifact, input_file, output_file, threads=threads, progress=progress)
    return Outcome(report, lambda: show(report), as_json, quiet)


def show(report: RunReport) -> RenderableType:
    """Return the view of a report."""
    arrays = [("input", a) for a in report.inputs] + [("output", a) for a in report.outputs]
    rows = [(kind, a.name, a.dtype, shape_text(a.shape)) for kind, a in arrays]
    return render.page(
        render.table(["", "name", "type", "shape"], rows, flexible="name"),
        render.bullets(report.notes),
        f"{plural(report.samples, 'sample')} -> {report.output} ({bytes_text(report.output_bytes)})",
    )
