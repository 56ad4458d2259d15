"""How the account of a compilation looks to a person."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from . import render
from .regions_view import candidate_sections
from .units import bytes_text, count_text, name_text, number_text, plural, seconds_text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from ..driver.report import CandidateRecord, CompileReport, PassSummary
    from ..pass_api import Refusal
    from ..records import Metric

_REASONS_SHOWN = 6


def show(report: CompileReport, output: Path | None) -> RenderableType:
    """Return the view of a report; `output` is where the artifact is, None for a dry run."""
    return render.page(
        render.section("Passes", _passes(report)) if report.passes else None,
        render.section("Left alone", _refused(report.passes)),
        render.section("Candidates", _candidates(report)) if report.candidates else None,
        *(section for candidate in report.candidates for section in candidate_sections(candidate)),
        render.section("Notes", render.bullets(report.notes)),
        _result(report, output),
    )


def _passes(report: CompileReport) -> RenderableType:
    rows = [_pass(report, p) for p in report.passes if p.changed]
    idle = len(report.passes) - len(rows)
    table = render.table(
        ["pass", "effect", "edits", "nodes", "weights", "SQNR", "time"],
        rows,
        right=("edits", "nodes", "weights", "SQNR", "time"),
        flexible="pass",
    )
    rest = f"{plural(idle, 'pass', 'passes')} had nothing to do" if idle else None
    return render.page(table if rows else None, rest)


def _pass(report: CompileReport, p: PassSummary) -> tuple[str, ...]:
    name = p.text.partition("{")[0]
    seconds = report.seconds.get(f"pass-{p.position}-{name}")
    return (
        p.text.replace("{", " {"),
        p.effect,
        str(p.changed),
        str(p.nodes),
        bytes_text(p.weight_bytes),
        "-" if p.sqnr_db is None else f"{p.sqnr_db:.1f} dB",
        seconds_text(seconds.value if seconds is not None else None),
    )


def _refused(passes: tuple[PassSummary, ...]) -> RenderableType | None:
    """Group refusals by pass and reason, the most frequent first, with example nodes."""
    groups: dict[tuple[str, str], list[str]] = {}
    for p in passes:
        for refusal in p.refused:
            groups.setdefault((p.text.partition("{")[0], _general(refusal)), []).append(refusal.node)
    if not groups:
        return None
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [
        (str(len(nodes)), name, reason, name_text(nodes[0], 20))
        for (name, reason), nodes in ordered[:_REASONS_SHOWN]
    ]
    if len(ordered) > len(rows):
        rows.append(("", "", f"and {len(ordered) - len(rows)} more reasons, see --json", ""))
    return render.table(["places", "pass", "reason", "such as"], rows, right=("places",), flexible="reason")


def _general(refusal: Refusal) -> str:
    """Return the reason without the node's own name, so that equal reasons group."""
    return (
        refusal.reason.replace(f"{refusal.node!r} ", "").replace(refusal.node, "…")
        if refusal.node
        else (refusal.reason)
    )


def _candidates(report: CompileReport) -> RenderableType:
    rows = [_candidate(c, report.notes) for c in report.candidates]
    return render.table(
        ["candidate", "median", "x float", "verified", "size", "verdict"],
        rows,
        right=("median", "x float", "size"),
        flexible="verdict",
    )


def _candidate(found: CandidateRecord, notes: tuple[str, ...]) -> tuple[RenderableType, ...]:
    checked = {True: "yes", False: "no", None: "-"}[found.verified]
    return (
        render.styled(found.name, "good" if found.chosen else "plain"),
        _metric(found.latency),
        number_text(_rounded(found.ratio_to_float)),
        checked,
        bytes_text(found.payload_bytes),
        "kept, see the notes" if found.verdict in notes else found.verdict,
    )


def _metric(metric: Metric | None) -> str:
    return "-" if metric is None else number_text(metric.value, metric.unit)


def _rounded(metric: Metric | None) -> float | None:
    return None if metric is None or metric.value is None else round(metric.value, 3)


def _result(report: CompileReport, output: Path | None) -> RenderableType:
    ratio = report.payload_bytes / report.source_bytes if report.source_bytes else 1.0
    ops = Counter(report.compiled.ops).total()
    pairs: list[tuple[str, RenderableType]] = [
        ("kept", render.styled(f"{report.chosen} for {report.target}", "good")),
        ("pipeline", report.pipeline.replace(",", ", ") or "none"),
        (
            "size",
            f"{bytes_text(report.payload_bytes)}, {ratio:.3g} of {bytes_text(report.source_bytes)} before",
        ),
        ("graph", f"{plural(ops, 'node')} from {Counter(report.original.ops).total()}, "
                  f"{count_text(report.compiled.macs)} MACs from {count_text(report.original.macs)}"),
        ("time", ", ".join(_stages(report))),
        ("artifact", str(output) if output is not None else "not written (dry run)"),
    ]  # fmt: skip
    return render.facts(pairs)


def _stages(report: CompileReport) -> list[str]:
    stages = ((name, m) for name, m in report.seconds.items() if not name.startswith("pass-"))
    return [f"{name} {seconds_text(metric.value)}" for name, metric in stages]
