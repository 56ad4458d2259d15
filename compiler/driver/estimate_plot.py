"""Draws what each layer would need as bars, one panel per resource."""

from __future__ import annotations

from pathlib import Path

from ..estimates import RESOURCES
from .estimating import EstimateReport


def draw(report: EstimateReport, path: Path) -> None:
    """Write the figure; nothing is shown on a screen."""
    from matplotlib.figure import Figure

    layers = report.estimate.layers
    used = [name for name in RESOURCES if any(getattr(layer, name) for layer in layers)] or ["lut"]
    height = 1.2 + 0.28 * max(len(layers), 4)
    figure = Figure(figsize=(3.6 * len(used) + 1.6, height), layout="constrained")
    panels = figure.subplots(1, len(used), sharey=True, squeeze=False)[0]
    names = [f"{layer.name[-24:]} ({layer.kind})" for layer in layers]
    for panel, name in zip(panels, used, strict=True):
        panel.barh(range(len(layers)), [getattr(layer, name) for layer in layers])
        panel.set_xlabel(_label(report, name), fontsize="small")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(layers)), names, fontsize="small")
    panels[0].invert_yaxis()
    figure.suptitle(f"{report.model} on {report.target}, engine {report.estimate.engine}: estimated")
    figure.savefig(path)


def _label(report: EstimateReport, name: str) -> str:
    have = report.available[name]
    whole = f"{name.upper()}, all layers {report.estimate.needs()[name]}"
    return whole if have is None else f"{whole} of {have}"
