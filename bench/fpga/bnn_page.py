"""Writes docs/results/fpga_bnn.md from what `bnn.py` kept."""

from __future__ import annotations

import json
from pathlib import Path

from ..results import Page
from .bnn import FORMS, SPARSE_FORMS

_PATH = Path("docs/results/fpga_bnn.md")
_ABOUT = """
`python -m pared.bench.fpga.bnn pack`, `... route`, then `... page`. ECP5-25k, speed grade 6,
`latency_cutoff` 4, one result per clock, harness of three pins included. LUT4 and FF are counted by nextpnr
after packing (equal to the routed counts where both were taken); "LUT4 without wide" is the same with yosys'
`-nowidelut`; Fmax and latency are post-route, seed 1, null where the design was not routed. Levels: adders
in the longest path, as da4ml counts. Every form is compared with NumPy or the golden integers first.

Binary layers are one layer of -1 and +1 with its thresholds, bits in and out. Forms: *independent*, a tree
of adders per channel; *shared*, da4ml's common subexpressions (the road before); *da4ml's own
decomposition*, which is a spanning tree too, with at most 8 more levels; *tree of N levels*, ours
(arXiv 2308.13735), whose differences are added independently or share subexpressions. The road takes a tree
of 2 levels with shared differences.

da4ml's own decomposition reaches the same area as ours with more levels, clocks and flip-flops; without it
(the road before) its shared subexpressions leave the gain on the table. yosys makes wide LUTs of the small
adders of *shared* and doubles their area: the comparison without wide LUTs is the fair one. No pass edits the
graph for this: there a channel that reads another's sum would be one more layer.

Sparse layers are random neurons of few inputs and a quantizer, as adders and as tables (arXiv 2004.03021, by
functional decomposition into tables of four inputs).
"""
_HEADINGS = (
    "design", "form", "LUT4", "LUT4 without wide", "FF", "clocks", "levels", "Fmax MHz", "latency ns",
)  # fmt: skip


def write(folder: Path) -> None:
    """Write the page."""
    page = Page(_PATH, "Binary layers and small neurons on ECP5", _ABOUT, _HEADINGS)
    order = [*FORMS, *SPARSE_FORMS]
    found: dict[tuple[str, str], dict[str, object]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda p: p.name.split(".")[2] == "route"):
        design, form, _ = path.name.split(".", 2)
        found.setdefault((design, form), {}).update(json.loads(path.read_text()))
    for (_, form), data in sorted(found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        named = FORMS[form][0] if form in FORMS else form
        cells = (
            data.get(key) for key in ("narrow", "ff", "latency_cycles", "depth", "fmax_mhz", "latency_ns")
        )
        page.add(data["what"], named, data["lut4"], *("null" if cell is None else cell for cell in cells))
    for text in _remarks({key: data for key, data in found.items() if "lut4" in data}):
        page.remark(text)


def _remarks(found: dict[tuple[str, str], dict[str, object]]) -> list[str]:
    texts = []
    for first, second, what in (
        (
            "shared",
            "mst2",
            "A tree of 2 levels and shared subexpressions against shared subexpressions alone",
        ),
        ("independent", "mst2_plain", "A tree of 2 levels against independent channels, nothing shared"),
        ("da4ml8", "mst2", "Our tree of 2 levels against da4ml's own decomposition"),
        ("adders", "tables", "Tables against adders"),
    ):
        parts = [
            f"{design} {_change(found[design, first], found[design, second])}"
            for design, form in sorted(found)
            if form == first and (design, second) in found
        ]
        if parts:
            texts.append(f"{what}, LUT4 (without wide LUTs in brackets): {'; '.join(parts)}.")
    return texts


def _change(before: dict[str, object], after: dict[str, object]) -> str:
    def percent(key: str) -> str:
        ends = [data.get(key) for data in (before, after)]
        return "null" if None in ends else f"{100 * (float(str(ends[1])) / float(str(ends[0])) - 1):+.0f} %"

    return f"{percent('lut4')} ({percent('narrow')})"
