"""`pared rebuild`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .outcome import Outcome

if TYPE_CHECKING:
    pass


def rebuild(
    artifact: options.ArtifactPath,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the bytes only, write nothing; exit 1 on a difference.")
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
            "--calib-data",
            metavar="C.npz",
            help="The calibration samples, if they moved.",
            rich_help_panel=options.DATA,
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
    raise NotImplementedError
