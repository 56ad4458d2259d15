"""`pared inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, render
from .outcome import Outcome
from .units import bytes_text, count_text, name_text, plural, shape_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..backend import Port
    from ..inspect import InspectReport, QuantFormat, QuantizedLayer, TargetCheck

_LAYERS_SHOWN = 12


def inspect(
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            metavar="M.onnx",
            help="The model: .onnx, .nir or .net.",
            rich_help_panel=options.MODEL,
        ),
    ],
    shape: options.Shapes = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Target to check the model against; repeatable; default: all that are shipped.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Show what a model holds and costs, the quantization found, and what blocks which target.

    [bold]Example:[/bold]  pared inspect -m M.onnx --shape x:1x3x224x224 --json
    """
    from ...targets import load_target, target_names
    from ..inspect import inspect_model
    from ..registry import BACKENDS

    targets = [load_target(name) for name in target or target_names()]
    backends = {name: BACKENDS[name]() for name in {t.backend for t in targets}}
    report = inspect_model(model, options.parse_shapes(shape), targets, backends)
    return Outcome(report, lambda: show(report), as_json, quiet)


def show(report: InspectReport) -> RenderableType:
    """Return the view of a report."""
    return render.page(
        _file(report),
        _ports(report),
        render.section("Operators", _operators(report)),
        render.section("Quantization", _quantization(report)),
        render.section("Targets", _targets(report)),
        render.section("Notes", render.bullets(report.notes)),
    )


def _file(report: InspectReport) -> RenderableType:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in report.opset.items())
    pairs: list[tuple[str, RenderableType]] = [
        ("file", f"{report.file.name}, {bytes_text(report.file_bytes)}"),
        ("sha256", report.sha256),
        ("format", f"IR {report.ir_version}, opset {opsets}"),
        ("producer", report.producer or "not stated"),
        ("parameters", f"{count_text(report.parameters)} ({bytes_text(report.weight_bytes)})"),
        ("MACs", f"{count_text(report.macs)} ({count_text(report.bops)} bit operations)"),
    ]
    if report.external:
        pairs.append(("external", render.shortened(sorted(report.external))))
    if report.dynamic:
        pairs.append(("dynamic", render.shortened(report.dynamic)))
    return render.facts(pairs)


def _ports(report: InspectReport) -> RenderableType:
    def row(kind: str, port: Port) -> tuple[str, ...]:
        return kind, port.name, port.dtype, shape_text(port.shape), port.layout

    rows = [row("input", p) for p in report.inputs] + [row("output", p) for p in report.outputs]
    return render.table(["", "name", "type", "shape", "layout"], rows, flexible="name")


def _operators(report: InspectReport) -> RenderableType:
    from rich.text import Text

    return Text(", ".join(f"{op}\N{NO-BREAK SPACE}{count}" for op, count in report.ops.items()) or "none")


def _quantization(report: InspectReport) -> RenderableType:
    found = report.quantization
    if not found.forms and not found.layers:
        return "none: a float model"
    rows = [_layer(layer) for layer in found.layers[:_LAYERS_SHOWN]]
    hidden = len(found.layers) - len(rows)
    return render.page(
        f"{', '.join(found.forms)}; {plural(len(found.layers), 'quantized layer')}, "
        f"{len(found.float_layers)} in float",
        render.table(["layer", "op", "weights", "activations"], rows, flexible="layer") if rows else None,
        f"and {hidden} more; --json lists them all" if hidden else None,
    )


def _layer(layer: QuantizedLayer) -> tuple[RenderableType, str, str, str]:
    weights = [_format(f) for f in layer.operands if f.constant]
    activations = [_format(f) for f in layer.operands if not f.constant]
    return render.Name(layer.node), layer.op, " ".join(weights) or "float", " ".join(activations) or "float"


def _format(found: QuantFormat) -> str:
    integer = f"{'int' if found.signed else 'uint'}{found.bits}"
    name = "bipolar" if found.scheme == "bipolar" else integer
    if found.block_size:
        return f"{name} blocks of {found.block_size}"
    return name if found.axis is None else f"{name} axis {found.axis}"


def _targets(report: InspectReport) -> RenderableType:
    rows = [
        (check.target, render.styled("yes", "good") if check.ok else render.styled("no", "bad"), _why(check))
        for check in report.targets
    ]
    return render.page(
        render.table(["target", "takes it", "what blocks it"], rows, flexible="what blocks it"),
        render.bullets(_beyond_nodes(report.targets)),
    )


def _beyond_nodes(checks: Sequence[TargetCheck]) -> list[str]:
    """Say what a yes leaves open, once for all targets of which that is so."""
    groups: dict[str, list[str]] = {}
    for check in checks:
        if check.ok and check.beyond_nodes:
            groups.setdefault(check.beyond_nodes, []).append(check.target)
    return [
        f"{render.shortened(names, 2)}: judged node by node; compile also checks {checked}"
        for checked, names in groups.items()
    ]


def _why(check: TargetCheck) -> str:
    """Group blockers by operator and reason, with one node as an example each."""
    groups = Counter((b.op, b.reason) for b in check.blockers)
    examples = {(b.op, b.reason): b.node for b in reversed(check.blockers)}
    lines = [
        f"{plural(count, 'node')} {op} (e.g. {name_text(examples[op, reason])}): {reason}"
        for (op, reason), count in groups.most_common(5)
    ]
    if len(groups) > len(lines):
        lines.append(f"and {len(groups) - len(lines)} more kinds; --json lists them all")
    return "\n".join(lines)
