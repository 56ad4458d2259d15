"""Options shared by several verbs, and the parsers of their texts."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ParedError

OUTPUT = "Output"
MODEL = "Model"
DATA = "Data"

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout and nothing else.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors only; no progress bars.", rich_help_panel=OUTPUT),
]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="OUT", help="Artifact folder written by `pared compile -o OUT`.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME:DIMS",
        help="Bind an input's shape, e.g. [bold]x:1x3x224x224[/bold]; repeatable. A word in place of "
        "a number keeps that size symbolic.",
        rich_help_panel=MODEL,
    ),
]

Threads = Annotated[
    int,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of the engine.",
        rich_help_panel="Engine",
    ),
]

_DIM = re.compile(r"[1-9][0-9]*|[A-Za-wyz_][A-Za-wyz0-9_]*")


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int | str, ...]] | None:
    """Read `NAME:1x3x224x224` texts; None when there are none.

    The last colon separates, since input names may hold colons (`input:0:1x10`). Nothing after it means
    a scalar.

    Raises:
        ParedError: `bad-shape`, naming the text.
    """
    if not texts:
        return None
    shapes: dict[str, tuple[int | str, ...]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        if not colon or not name:
            raise _bad_shape(text, "there is no NAME: before the sizes")
        if name in shapes:
            raise _bad_shape(text, f"input {name!r} is given twice")
        shapes[name] = tuple(_dim(part, text) for part in dims.split("x")) if dims else ()
    return shapes


def _dim(part: str, text: str) -> int | str:
    if not _DIM.fullmatch(part):
        raise _bad_shape(text, f"{part!r} is neither a positive number nor a name")
    return int(part) if part.isdigit() else part


def _bad_shape(text: str, why: str) -> ParedError:
    return ParedError("bad-shape", f"--shape {text!r} is not understood: {why}", "write NAME:1x3x224x224")


def parse_tolerances(flag: str, texts: Sequence[str] | None) -> dict[str, float]:
    """Read `1e-4` (every output, key `""`) and `out0:1e-4` (one output) texts.

    Raises:
        ParedError: `bad-tolerance`, naming the flag and the text.
    """
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0.0 <= value < float("inf"):
            raise ParedError(
                "bad-tolerance",
                f"{flag} {text!r} is not a number >= 0",
                f"write {flag} 1e-4, or {flag} OUTPUT:1e-4 for one output",
            )
        found[name] = value
    return found


def parse_settings(flag: str, texts: Sequence[str] | None) -> dict[str, str | int | float | bool] | None:
    """Read `KEY=VALUE` texts, values as TOML has them, else text; None when there are none.

    Raises:
        ParedError: `bad-setting`, naming the flag and the text.
    """
    found: dict[str, str | int | float | bool] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise ParedError("bad-setting", f"{flag} {text!r} is not KEY=VALUE", f"write {flag} KEY=VALUE")
        try:
            read = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            read = value
        found[key] = read if isinstance(read, str | int | float | bool) else value
    return found or None
