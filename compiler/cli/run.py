"""`pared run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DataError
from . import options, render
from .console import progress_bars
from .outcome import Outcome
from .units import bytes_text, plural, shape_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..event_run import EventReport
    from ..run_file import RunReport


def run(
    artifact: options.ArtifactPath,
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
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="X.npz",
            help="Samples: one array per input, first axis = samples (.npz, .npy or a folder of .npy).",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            metavar="E.bin",
            help="A recording instead: events (N-MNIST .bin, .npy or .npz with x, y, t, p) or frames "
            r"\[time, ...] (.npy, .npz), run in order of time with the state kept.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    window: Annotated[
        str,
        typer.Option(
            help="Events of so much time are one frame: 10ms, 500us, 1s.", rich_help_panel=options.DATA
        ),
    ] = "10ms",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse a recording with bad events (out of order, out of range) instead of dropping and "
            "counting them.",
            rich_help_panel=options.DATA,
        ),
    ] = False,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Run an artifact over a file of samples, or over a recording of events.

    [bold]Examples:[/bold]
      pared run OUT --input x.npz --output y.npz
      pared run OUT --events recording.bin --window 10ms --output y.npz
    """
    if (input_file is None) == (events is None):
        raise DataError("run-input", "run takes --input or --events, one of them", "give one")
    if events is not None:
        from ..event_run import run_events

        with progress_bars(as_json=as_json, quiet=quiet) as progress:
            done = run_events(artifact, events, output_file, window=window, strict=strict, progress=progress)
        return Outcome(done, lambda: show_events(done), as_json, quiet)
    assert input_file is not None, "one of the two is given"
    from ..run_file import run_file

    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        report = run_file(artifact, input_file, output_file, threads=threads, progress=progress)
    return Outcome(report, lambda: show(report), as_json, quiet)


def show_events(report: EventReport) -> RenderableType:
    """Return the view of a report on a recording."""
    rate = report.events_per_second
    counters = [(name.replace("_", " "), f"{count}") for name, count in report.counts.items() if count]
    return render.page(
        render.table(["counter", "number"], counters, flexible="counter") if counters else None,
        render.bullets(report.notes),
        f"{plural(report.steps, 'step')} in {report.seconds:.3f} s"
        + (f", {rate:.3g} events/s" if rate else "")
        + f" -> {report.output} ({bytes_text(report.output_bytes)})",
    )


def show(report: RunReport) -> RenderableType:
    """Return the view of a report."""
    arrays = [("input", a) for a in report.inputs] + [("output", a) for a in report.outputs]
    rows = [(kind, a.name, a.dtype, shape_text(a.shape)) for kind, a in arrays]
    return render.page(
        render.table(["", "name", "type", "shape"], rows, flexible="name"),
        render.bullets(report.notes),
        f"{plural(report.samples, 'sample')} -> {report.output} ({bytes_text(report.output_bytes)})",
    )
