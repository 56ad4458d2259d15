"""The table of schedules: the first row that takes a function maps it to threads.

A new schedule is a row here; `takes` asks the function itself, or for a mark that its emitter left
(`base.MARK`). The last row takes everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import depthwise, fallback, gemv, recurrent, split, tensor_core
from .base import Apply, Chip, Entry

if TYPE_CHECKING:
    from tvm import tirx

TABLE: tuple[Entry, ...] = (
    *recurrent.ENTRIES, *depthwise.ENTRIES, *gemv.ENTRIES, split.CHOSEN, *tensor_core.ENTRIES, split.TIMED,
    *fallback.ENTRIES,
)  # fmt: skip


def choose(function: tirx.PrimFunc, chip: Chip, table: Sequence[Entry] = TABLE) -> tuple[str, tirx.PrimFunc]:
    """Return the name of the schedule that takes a function, and the function mapped to threads."""
    for entry in table:
        if entry.takes(function, chip):
            scheduled = applied(entry.apply, function, chip)
            if scheduled is not None:
                return entry.name, scheduled
    raise AssertionError("the table's last row takes every function")


def applied(apply: Apply, function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    """Return the scheduled function, or None where TVM finds no way to transform its loops as asked.

    What stands around a product may be anything; `takes` looks at the product.
    """
    from tvm.error import InternalError
    from tvm.s_tir import ScheduleError

    try:
        return apply(function, chip)
    except (ScheduleError, InternalError):
        return None


def alternatives(
    function: tirx.PrimFunc, chip: Chip, table: Sequence[Entry] = TABLE
) -> Iterator[tuple[str, tirx.PrimFunc]]:
    """Yield every schedule that takes a function, by name: the static choice, its other sizes, other rows."""
    for entry in table:
        if entry.takes(function, chip):
            scheduled = applied(entry.apply, function, chip)
            if scheduled is None:
                continue
            yield entry.name, scheduled
            if entry.others is not None:
                yield from entry.others(function, chip)
