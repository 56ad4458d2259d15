"""Building blocks of what a person sees: headings, facts, tables; made for 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .units import name_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

Style = Literal["good", "bad", "warn", "dim", "plain"]

_STYLES: Mapping[Style, str] = {
    "good": "green",
    "bad": "bold red",
    "warn": "yellow",
    "dim": "dim",
    "plain": "",
}


def styled(text: str, style: Style) -> Text:
    """Return text in one of the few styles of the tool; plain when colours are off."""
    from rich.text import Text

    return Text(text, style=_STYLES[style])


def heading(text: str) -> Text:
    """Return a section heading."""
    from rich.text import Text

    return Text(text, style="bold")


@dataclass(frozen=True)
class Name:
    """A layer's name on one line, cut in its middle to the width that its column gets."""

    text: str
    least: int = 12
    most: int = 60

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Tell rich the widths that will do."""
        from rich.measure import Measurement

        return Measurement(min(self.least, len(self.text)), min(self.most, len(self.text)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the text for the width that was given."""
        from rich.text import Text

        yield Text(name_text(self.text, min(self.most, options.max_width)), no_wrap=True)


def verbatim(text: str) -> Text:
    """Return text that is never wrapped or cut: a line to copy into a shell."""
    from rich.text import Text

    return Text(text, style="bold", no_wrap=True, overflow="ignore")


def facts(pairs: Iterable[tuple[str, RenderableType]]) -> Table:
    """Return aligned `name  value` lines without borders; long values wrap under themselves."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    *,
    right: Sequence[str] = (),
    flexible: str | None = None,
) -> Table:
    """Return a table with a ruled header.

    Args:
        columns: headers, with their units.
        rows: cells.
        right: headers of number columns, aligned right.
        flexible: the one column that may wrap; the others keep to one line and end in an ellipsis.
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name != flexible,
            overflow="fold" if name == flexible else "ellipsis",
            header_style="bold",
        )
    for row in rows:
        made.add_row(*row)
    return made


def page(*parts: RenderableType | None) -> RenderableType:
    """Stack the parts that exist, a blank line between them."""
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = []
    for part in parts:
        if part is not None:
            lines += [Text(""), part] if lines else [part]
    return Group(*lines)


def section(title: str, body: RenderableType | None) -> RenderableType | None:
    """Return a heading over its body; nothing when there is no body."""
    from rich.console import Group

    return None if body is None else Group(heading(title), body)


def shortened(items: Sequence[str], limit: int = 8) -> str:
    """Join names for a person, telling how many are left out.

    >>> shortened(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    if len(items) <= limit:
        return ", ".join(items)
    return f"{', '.join(items[:limit])} and {len(items) - limit} more"


def bullets(lines: Sequence[str]) -> RenderableType | None:
    """Return notes, one a line, wrapped under themselves; None when there are none."""
    return facts([("-", line) for line in lines]) if lines else None
