"""How the regions of a candidate look to a person, and what was timed to find them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import render
from .units import name_text, number_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from ..backend import RegionRecord, TimedChoice
    from ..driver.report import CandidateRecord

_REASONS_SHOWN = 3
_CHOICES_SHOWN = 8


def candidate_sections(candidate: CandidateRecord) -> Iterator[RenderableType | None]:
    """Yield the sections of a candidate: its regions, and its choices by time; none for a plain one."""
    if candidate.regions:
        yield render.section(f"Regions of {candidate.name}", _regions(candidate.regions))
    if candidate.timed:
        yield render.section(f"Timed for {candidate.name}", _timed(candidate.timed))


def _regions(regions: tuple[RegionRecord, ...]) -> RenderableType:
    rows = [
        (
            region.engine,
            str(len(region.nodes)),
            f"{name_text(region.nodes[0], 24)} … {name_text(region.nodes[-1], 24)}",
            "; ".join(region.reasons[:_REASONS_SHOWN]),
        )
        for region in regions
    ]
    return render.table(["engine", "nodes", "from … to", "why not native"], rows, right=("nodes",),
                        flexible="why not native")  # fmt: skip


def _timed(choices: tuple[TimedChoice, ...]) -> RenderableType:
    """Show the whole model's choice first, then those of its parts."""
    ordered = sorted(choices, key=lambda choice: not choice.what.startswith("plan "))
    rows = []
    for choice in ordered[:_CHOICES_SHOWN]:
        times = [f"{name} {number_text(m.value, m.unit)}" for name, m in choice.times.items()]
        what = "whole model" if choice.what.startswith("plan ") else name_text(choice.what, 24)
        rows.append((what, ", ".join(times), choice.chosen))
    if len(ordered) > len(rows):
        rows.append(("", f"and {len(ordered) - len(rows)} more, see --json", ""))
    return render.table(["choice", "times", "taken"], rows, flexible="times")
