"""Raised thresholds: operations saved, and what that costs on other samples.

    PARED_DATA=... python -m pared.bench.event.thresholds [FOLDER WITH fashion_cnn.onnx]

Run it in a checkout; writes docs/results/event_thresholds.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ...backends.event.graph import EventGraph
from ...backends.event.ledger import operations
from ...backends.event.read import read
from ...backends.event.simulate import graded, reals
from ...backends.event.thresholds import raise_thresholds
from ..data import data_folder
from ..results import Page
from .models import Source, digits, fashion_cnn, kws01, mnist, quantized

_SAMPLES, _CALIBRATION, _COUNTED = 400, 16, 32
_ERRORS = (0.003, 0.01, 0.03)
ABOUT = """`PARED_DATA=... python -m pared.bench.event.thresholds FASHION`. Models at 8 bits. Counts up to a
level per layer become silent, chosen on 16 calibration samples so that the squared error of the outputs keeps
to the stated share of their energy (`backends/event/thresholds.py`). Top-1 on 400 other samples, effective
operations per sample on the first 32 of them; counted, not measured."""
HEADINGS = ("model", "error allowed", "levels", "operations", "saved", "top-1 % before", "top-1 % after")


def judge(graph: EventGraph, source: Source) -> tuple[float, float]:
    """Return top-1 in per cent, and effective operations per sample."""
    counts = graded(graph, {source.input: source.samples})
    output = reals(graph, counts)[graph.outputs[0].name].reshape(len(source.samples), -1)
    few = {name: found[:_COUNTED] for name, found in counts.items()}
    done = [operations(graph, layer, few) for layer in graph.layers]
    right = output.argmax(axis=1) == source.labels[: len(output)]
    return 100 * float(np.mean(right)), sum(one.macs + one.acs for one in done) / _COUNTED


def main() -> None:
    """Write the page."""
    data = data_folder()
    sources = [digits("digits_cnn", _SAMPLES), mnist(data, _SAMPLES), kws01(data, _SAMPLES)]
    if len(sys.argv) > 1:
        sources.append(fashion_cnn(data, Path(sys.argv[1]), _SAMPLES))
    page = Page(Path("docs/results/event_thresholds.md"), "Raised thresholds", ABOUT, HEADINGS)
    for source in sources:
        graph = read(quantized(source, 8))
        before, work = judge(graph, source)
        for error in _ERRORS:
            found = raise_thresholds(graph, {source.input: source.calibration[:_CALIBRATION]}, error)
            after, left = judge(found.graph, source)
            levels = ", ".join(map(str, sorted(found.levels.values()))) or "none"
            page.add(
                source.name, f"{error:g}", levels, f"{work:,.0f} to {left:,.0f}", f"{1 - left / work:.0%}",
                f"{before:.2f}", f"{after:.2f}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
