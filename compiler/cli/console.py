"""Consoles and progress bars: results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

ProgressCallback = Callable[[str, int, int], None]


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that never reads markup or emoji codes out of node names.

    `NO_COLOR` and non-terminals are honoured by rich; without a terminal the width is 80 columns
    unless `COLUMNS` says otherwise.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def wants_bars(*, as_json: bool, quiet: bool) -> bool:
    """Say whether an animated bar is welcome: a terminal, a person, and not a CI job."""
    if as_json or quiet or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty()


def _ignore(label: str, done: int, total: int) -> None:
    """Progress nobody watches."""


@contextmanager
def progress_bars(*, as_json: bool, quiet: bool) -> Iterator[ProgressCallback]:
    """Give a thread-safe `progress(label, done, total)`; the bars vanish at the end."""
    if not wants_bars(as_json=as_json, quiet=quiet):
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=make_console(stderr=True),
        transient=True,
    )
    with bars:
        yield _callback(bars)


def _callback(bars: Progress) -> ProgressCallback:
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()

    def update(label: str, done: int, total: int) -> None:
        with lock:
            if label not in tasks:
                tasks[label] = bars.add_task(label[:40], total=total)
        bars.update(tasks[label], completed=done, total=total)

    return update
