"""What a verb returns: the record, how to show it, and the exit code; only `app.main` prints it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import exitcodes

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Outcome:
    """The result of one command.

    Attributes:
        record: a typed record (or mapping) that `records.to_json` accepts and whose form is an object.
        show: builds what a person sees, called only without `--json`.
        as_json: print the record as one JSON object instead.
        quiet: print nothing but errors; `--json` wins over it.
        code: the exit code.
    """

    record: object
    show: Callable[[], RenderableType]
    as_json: bool = False
    quiet: bool = False
    code: int = exitcodes.CLEAN
