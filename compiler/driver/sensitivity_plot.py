"""Draws SQNR by layer, one line per method."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from ..errors import DataError, MissingTool
from .sensitivity import SensitivityReport, by_layer

_FORMATS = (".svg", ".png", ".pdf")
# Equal outputs have no finite SQNR; drawn at the top.
_EQUAL_DB = 120.0


def check_plot(path: Path) -> None:
    """Refuse before any work what could not be drawn at the end.

    Raises:
        MissingTool: matplotlib is not installed.
        DataError: another file name, or a folder that does not exist.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingTool("matplotlib-missing", "--plot needs matplotlib", "pip install 'pared[report]'")
    if path.suffix.lower() not in _FORMATS or not path.absolute().parent.is_dir():
        raise DataError(
            "plot-path",
            f"--plot {str(path)!r} must end in {', '.join(_FORMATS)} and lie in a folder that exists",
        )


def draw(report: SensitivityReport, path: Path) -> None:
    """Write the figure; nothing is shown on a screen."""
    from matplotlib.figure import Figure

    layers = list(by_layer(report))
    figure = Figure(figsize=(max(6.4, 0.35 * len(layers)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, method in enumerate(report.methods):
        heights = [_height(effects[index].sqnr_db) for _, effects in layers]
        axes.plot(range(len(layers)), heights, marker="o", label=method)
    axes.set_xticks(range(len(layers)), [name[-24:] for name, _ in layers], rotation=90, fontsize="small")
    axes.set_ylabel(f"SQNR of the outputs in dB, {report.samples} samples")
    axes.set_title(f"{report.model}: one layer changed at a time")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


def _height(sqnr_db: float | None) -> float:
    if sqnr_db is None:
        return math.nan
    return min(sqnr_db, _EQUAL_DB)
