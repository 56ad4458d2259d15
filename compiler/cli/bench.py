"""`pared bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PipelineError
from . import options, render
from .console import progress_bars
from .outcome import Outcome
from .units import bytes_text, count_text, number_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ...bench.bench import BenchReport, CandidateReport
    from ..records import Metric

MEASURE = "Measurement"

Iterations = Annotated[
    int,
    typer.Option(min=1, help="Measured runs per candidate, over ten rounds.", rich_help_panel=MEASURE),
]
Warmup = Annotated[int, typer.Option(min=0, help="Unmeasured runs before.", rich_help_panel=MEASURE)]
Duration = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Measure each candidate at least so long.", rich_help_panel=MEASURE),
]
Percentiles = Annotated[
    str,
    typer.Option(
        "--percentile",
        metavar="P,P,...",
        help="Percentiles of the latency, 0 to 100.",
        rich_help_panel=MEASURE,
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        min=1, help="Samples per inference; above 1 needs a symbolic first size.", rich_help_panel=MEASURE
    ),
]
Peers = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="What runs the float original beside it: onnxruntime, openvino; or none.",
        rich_help_panel=MEASURE,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        metavar="M.onnx",
        help="The float original; default: the source model that the artifact names.",
        rich_help_panel=options.DATA,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="X.npz",
        help="Inputs to run on; default: the artifact's golden inputs.",
        rich_help_panel=options.DATA,
    ),
]


def bench(
    artifact: options.ArtifactPath,
    iterations: Iterations = 200,
    warmup: Warmup = 20,
    duration: Duration = None,
    percentile: Percentiles = "50,90,99",
    batch: Batch = 1,
    peers: Peers = "onnxruntime",
    reference: Reference = None,
    data: Data = None,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Measure an artifact beside the float original, in turns and with pinned threads.

    Latency, throughput, load time, memory, size, and energy where the machine has a counter.

    [bold]Example:[/bold]  pared bench OUT --duration 10 --percentile 50,90,99.9 --json
    """
    from ...bench.bench import bench_artifact

    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        report = bench_artifact(
            artifact,
            iterations=iterations,
            warmup=warmup,
            duration=duration,
            threads=threads,
            batch=batch,
            percentiles=parse_percentiles(percentile),
            peers=[] if peers == "none" else [name.strip() for name in peers.split(",")],
            original=reference,
            data=data,
            progress=progress,
        )
    return Outcome(report, lambda: show(report), as_json, quiet)


def parse_percentiles(text: str) -> tuple[float, ...]:
    """Read `50,90,99.9`.

    Raises:
        PipelineError: `bench-option`, when a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise PipelineError(
            "bench-option", f"--percentile {text!r} is not a list of numbers", "write --percentile 50,90,99"
        ) from err


def show(report: BenchReport) -> RenderableType:
    """Return the view of a report."""
    cores = f", pinned to {render.shortened([str(c) for c in report.cores])}" if report.cores else ""
    how = (
        f"{report.candidates[0].latency.runs} runs in {report.rounds} interleaved rounds, "
        f"batch {report.batch}, {report.threads} thread(s){cores}"
    )
    return render.page(
        _latencies(report),
        _metrics(report.candidates),
        render.facts(
            [
                ("artifact", f"{report.precision} on {report.engine}"),
                ("machine", " with ".join((report.machine.cpu, *report.machine.gpus))),
                ("versions", ", ".join(f"{name} {version}" for name, version in report.tools.items())),
                ("how", how),
            ]
        ),
        render.section("Notes", render.bullets([*report.notes, *_missing(report.candidates[0])])),
        *(_ratio(report, index) for index in range(len(report.ratios))),
    )


def _latencies(report: BenchReport) -> RenderableType:
    percentiles = list(report.candidates[0].latency.percentiles)
    columns = ["latency ms", *percentiles, "min", "mean", "std", "CPU"]
    rows = []
    for found in report.candidates:
        took = found.latency
        numbers = [*took.percentiles.values(), took.min_ms, took.mean_ms, took.std_ms, took.cpu_ms]
        rows.append([found.name, *(f"{value:.3g}" for value in numbers)])
    return render.table(columns, rows, right=columns[1:])


def _metrics(candidates: tuple[CandidateReport, ...]) -> RenderableType:
    """One row per metric, one column per candidate; a reason stands where a value could not be had."""
    names = list(dict.fromkeys(m.name for c in candidates for m in c.metrics))
    by_name = [{m.name: m for m in c.metrics} for c in candidates]
    rows = [[name.replace("_", " "), *(_value(found.get(name)) for found in by_name)] for name in names]
    columns = ["", *(c.name for c in candidates)]
    return render.table(columns, rows, right=columns[1:])


def _missing(found: CandidateReport) -> list[str]:
    """Say why a number could not be had."""
    return [f"{m.name.replace('_', ' ')}: {m.how}" for m in found.metrics if m.value is None]


def _value(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "-"
    if metric.unit == "bytes":
        return bytes_text(int(metric.value))
    if metric.unit == "samples/s":
        return f"{count_text(metric.value)}/s"
    return number_text(metric.value, metric.unit)


def _ratio(report: BenchReport, index: int) -> RenderableType:
    ratio = report.ratios[index]
    faster = ratio.median < 1
    word = "faster" if faster else "slower"
    factor = 1 / ratio.median if faster else ratio.median
    text = (
        f"{factor:.2f}x {word} than float in {ratio.base} "
        f"(time ratio {ratio.median:.3f}, {ratio.low:.3f} to {ratio.high:.3f} over the rounds)"
    )
    return render.styled(text, "good" if faster else "warn")
