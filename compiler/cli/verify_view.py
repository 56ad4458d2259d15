"""How the result of a verification looks to a person."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import render
from .units import name_text, number_text, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..verify.records import (
        BisectReport,
        LayerRecord,
        LayerReport,
        MetricResult,
        OutputCheck,
        VerifyReport,
    )


def show(report: VerifyReport, layers: int) -> RenderableType:
    """Return the view of a report with the `layers` most hurt layers."""
    return render.page(
        render.section("Outputs", _outputs(report.outputs)),
        render.section("Accuracy", _metrics(report.metrics)),
        _layers(report.layers, layers),
        render.section("Bisect", _bisect(report.bisect)),
        render.section("Notes", render.bullets(report.notes)),
        _verdict(report),
    )


def _outputs(checks: tuple[OutputCheck, ...]) -> RenderableType:
    rows = [
        (
            check.output,
            check.against,
            render.styled("yes", "good") if check.passed else render.styled("no", "bad"),
            number_text(check.max_difference),
            "exact" if check.allowed == 0 else number_text(check.allowed),
        )
        for check in checks
    ]
    return render.table(
        ["output", "against", "within", "max difference", "allowed"],
        rows,
        right=("max difference", "allowed"),
        flexible="output",
    )


def _metrics(metrics: tuple[MetricResult, ...]) -> RenderableType | None:
    if not metrics:
        return None
    rows = [
        (m.metric, number_text(m.reference), number_text(m.artifact), _drop(m), str(m.samples))
        for m in metrics
    ]
    table = render.table(
        ["metric", "float", "artifact", "drop", "samples"],
        rows,
        right=("float", "artifact", "drop", "samples"),
        flexible="metric",
    )
    return render.page(table, render.bullets([m.note for m in metrics if m.note]))


def _drop(metric: MetricResult) -> str:
    if metric.drop is None:
        return "-"
    error = f" ± {metric.standard_error:.2g}" if metric.standard_error is not None else ""
    return f"{metric.drop:.4g}{error} {metric.unit}".rstrip()


def _layers(report: LayerReport | None, count: int) -> RenderableType | None:
    if report is None or count == 0:
        return None
    hurt = [layer for layer in report.most_hurt(count) if layer.sqnr_db < math.inf]
    title = f"Layers, {plural(len(report.layers), 'value')} compared with the float original"
    if not hurt:
        return render.section(title, "all equal, bit for bit")
    table = render.table(
        ["layer", "op", "SQNR", "noise", "max diff"],
        [_layer(layer) for layer in hurt],
        right=("SQNR", "noise", "max diff"),
        flexible="layer",
    )
    first = report.first_hurt
    limit = f"{report.limit_db:g} dB"
    verdict = f"first below {limit}: {name_text(first, 50)}" if first is not None else f"none below {limit}"
    return render.page(render.section(title, table), verdict)


def _layer(layer: LayerRecord) -> tuple[RenderableType, ...]:
    return (
        render.Name(layer.node or layer.value),
        layer.op_type,
        f"{layer.sqnr_db:.1f} dB",
        f"{layer.added_noise:.1e}" if layer.added_noise else "0",
        f"{layer.max_difference:.3g}",
    )


def _bisect(report: BisectReport | None) -> RenderableType | None:
    if report is None:
        return None
    pairs: list[tuple[str, RenderableType]] = [
        ("measure", report.measure),
        ("loss", f"{number_text(report.loss_before)} before, {number_text(report.loss)} with them in float"),
        ("limit", number_text(report.limit)),
        ("guilty", render.shortened(report.excluded) or "none"),
    ]
    if report.note:
        pairs.append(("note", report.note))
    line = render.verbatim(report.exclude_line) if report.exclude_line else None
    return render.page(render.facts(pairs), line)


def _verdict(report: VerifyReport) -> RenderableType:
    where = f"{plural(report.samples, 'sample')} of {report.data}"
    if report.passed:
        return render.styled(f"verified on {where}", "good")
    return render.styled(f"not verified: an output is outside its bound on {where}", "bad")
