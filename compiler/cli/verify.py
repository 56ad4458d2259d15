"""`pared verify`, also known as `pared compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import exitcodes, options
from .console import progress_bars
from .outcome import Outcome
from .verify_view import show

CHECK = "Checks"

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="TEST.npz",
        help="Samples to check on, labels in an array `labels`; default: the artifact's golden inputs.",
        rich_help_panel=options.DATA,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        metavar="M.onnx",
        help="Float original to compare layers with; default: the source model that the artifact names.",
        rich_help_panel=options.DATA,
    ),
]
MaxDrop = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="POINTS",
        help="Loss of the metric that --bisect brings the artifact within.",
        rich_help_panel=CHECK,
    ),
]
SampleCount = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Use the first N samples only.", rich_help_panel=options.DATA),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="top1, auc, mse, cosine or MODULE:FUNCTION; default: chosen by the labels.",
        rich_help_panel=CHECK,
    ),
]
Rtol = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[OUTPUT:]R",
        help="Allowed error relative to the largest reference value, in place of the stated bound.",
        rich_help_panel=CHECK,
    ),
]
Atol = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[OUTPUT:]A", help="Allowed absolute error, instead of the stated bound; repeatable.",
        rich_help_panel=CHECK,
    ),
]  # fmt: skip
Bisect = Annotated[
    bool,
    typer.Option(
        "--bisect",
        help="Name the layers that cost accuracy and print the --exclude line.",
        rich_help_panel=CHECK,
    ),
]
Layers = Annotated[
    int,
    typer.Option(min=0, help="Show the N layers that are hurt most; 0 shows none.", rich_help_panel=CHECK),
]


def verify(
    artifact: options.ArtifactPath,
    data: Data = None,
    reference: Reference = None,
    samples: SampleCount = None,
    metric: Metric = None,
    rtol: Rtol = None,
    atol: Atol = None,
    bisect: Bisect = False,
    max_drop: MaxDrop = 0.5,
    layers: Layers = 10,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Check an artifact: outputs against the reference semantics, layers against the float original.

    Exits 0 when every output is within the stated bound (bit-exact for integer backends), 1 when not.

    [bold]Example:[/bold]  pared verify OUT --data TEST.npz --bisect
    """
    from ..verify import verify_artifact

    with progress_bars(as_json=as_json, quiet=quiet) as progress:
        report = verify_artifact(
            artifact,
            data,
            reference_model=reference,
            metric=metric,
            rtol=options.parse_tolerances("--rtol", rtol),
            atol=options.parse_tolerances("--atol", atol),
            samples=samples,
            layers=layers > 0,
            bisect=bisect,
            max_drop=max_drop,
            threads=threads,
            progress=progress,
        )
    code = exitcodes.CLEAN if report.passed else exitcodes.FINDING
    return Outcome(report, lambda: show(report, layers), as_json, quiet, code)
