"""What rate coding loses beside the exact modes, and what time steps cost, on a convolutional net.

    python -m pared.bench.event.rate [--samples 200]

Run it in a checkout: model and data are those of examples/. Predicted: with T steps a count is known to
1 / T of its range, so that disagreement falls about as 1 / T; spikes grow with T up to the counts themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ...backends.event.graph import EventGraph
from ...backends.event.ledger import operations
from ...backends.event.modes import rate, run
from ...backends.event.read import read
from ...backends.event.simulate import Counts, encode, graded
from ...compiler.backend import Array
from ...compiler.target import EnergyConstant
from ...targets import load_target
from ..results import Page
from .models import digits, quantized

STEPS = (1, 2, 4, 8, 16, 32, 64)
HEADINGS = (
    "mode", "steps", "top-1", "same class as exact", "unequal counts", "spikes/image", "operations/image",
    "energy nJ",
)  # fmt: skip
ABOUT = """`python -m pared.bench.event.rate`. digits_cnn at 4 bits (`w4a4`), {samples} test images. `rate`:
integrate-and-fire with reset by subtraction, T steps, one spike per neuron and step at most; the input is a
constant current, maxima follow the neuron that has sent most. "steps" is the latency in time steps: of graded
events one per layer, of layer-sync and signed-if until the last sample is quiet; operations of signed-if
leave out spikes that were taken back. "unequal counts": share of all neurons whose count is not the exact
one. Accuracy, counts and spikes are simulated. Energy is modelled, not measured: operations times
{energy}; no memory and no leak is included."""


def unequal(graph: EventGraph, found: Counts, want: Counts) -> float:
    """Return the share of counts, of all layers with thresholds, that differ."""
    names = [layer.name for layer in graph.layers if layer.ladder is not None]
    wrong = sum(int(np.count_nonzero(found[name] != want[name])) for name in names)
    return wrong / sum(want[name].size for name in names)


class Costs:
    """Operations and modelled energy from numbers of spikes."""

    def __init__(self, graph: EventGraph, images: Array) -> None:
        target = load_target("event-cpu")
        self.graph, self.samples = graph, len(images)
        self._mac, self._ac = target.energy["mac_int8"], target.energy["ac_int8"]
        self.text = f"{_text(self._mac)} for a product, {_text(self._ac)} for an accumulation"

    def graded(self, counts: Counts) -> tuple[float, float]:
        """Return operations per image and nJ: a product per active count and synapse."""
        macs = sum(operations(self.graph, layer, counts).macs for layer in self.graph.layers)
        return macs / self.samples, macs / self.samples * self._mac.picojoules * 1e-3

    def spikes(self, counts: Counts, steps: int = 1) -> tuple[float, float]:
        """Return the same where layers send spikes; the input's products are done in every step."""
        nano = every = 0.0
        for layer in self.graph.layers:
            first = layer.connections[0].source == self.graph.inputs[0].population
            done = operations(self.graph, layer, counts)
            number = done.macs * steps if first else done.spikes
            every += number
            nano += number * (self._mac if first else self._ac).picojoules * 1e-3
        return every / self.samples, nano / self.samples


def _text(constant: EnergyConstant) -> str:
    return f"{constant.picojoules} pJ ({constant.node_nm} nm; {constant.source})"


def main() -> None:
    """Write the page and its plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/results/event_rate.md"))
    given = parser.parse_args()
    source = digits("digits_cnn", given.samples)
    graph, inputs = read(quantized(source, 4)), {source.input: source.samples}
    costs = Costs(graph, source.samples)
    about = ABOUT.format(samples=given.samples, energy=costs.text)
    page = Page(given.out, "Rate coding beside exact modes", about, HEADINGS)
    want = graded(graph, inputs)
    out = graph.outputs[0].layer
    exact = want[out].argmax(1)

    def add(mode: str, steps: int, counts: Counts, sent: float, cost: tuple[float, float]) -> list[float]:
        classes = counts[out].argmax(1)
        top1, same = (float(np.mean(classes == right)) for right in (source.labels, exact))
        wrong = unequal(graph, counts, want)
        row = [top1 * 100, same * 100, wrong * 100]
        shown = (f"{value:.1f} %" for value in row)
        page.add(mode, steps, *shown, f"{sent:.0f}", f"{cost[0]:,.0f}", f"{cost[1]:.1f}")
        return [*row, cost[1]]

    hidden = [layer.name for layer in graph.layers if layer.ladder is not None]
    active = sum(int(np.count_nonzero(want[name])) for name in hidden) / costs.samples
    best = add("graded", len(graph.layers), want, active, costs.graded(want))
    for mode in ("layer-sync", "signed-if"):
        trace = run(graph, inputs, mode)
        sent = sum(trace.spikes[name] for name in hidden) / costs.samples
        # Of signed-if this leaves out spikes that were taken back, which "spikes/image" has.
        add(mode, trace.steps, trace.counts, sent, costs.spikes(want))
    rows = []
    for steps in STEPS:
        counts, spikes = rated(graph, inputs, steps)
        sent = sum(int(spikes[name].sum()) for name in hidden) / costs.samples
        rows.append(add("rate", steps, counts, sent, costs.spikes(spikes, steps)))
    draw(given.out.with_suffix(".svg"), best, rows, costs.text)
    page.remark(f"![Accuracy, unequal counts and modelled energy against time steps]({given.out.stem}.svg)")


def rated(graph: EventGraph, inputs: dict[str, Array], steps: int) -> tuple[Counts, Counts]:
    """Return the counts that rates end at, and the spikes that were sent."""
    entry = graph.inputs[0]
    counts = {**rate(graph, inputs, steps), entry.population: encode(entry, inputs[entry.name])}
    spikes = dict(counts)
    for layer in graph.layers:
        if layer.ladder is not None:
            spikes[layer.name] = np.rint(counts[layer.name] * steps / layer.ladder.high).astype(np.int64)
    return counts, spikes


def draw(path: Path, best: list[float], rows: list[list[float]], constants: str) -> None:
    """Draw the figures of the table against time steps; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "pared"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8))
    names = ("top-1, %", "same class as exact, %", "unequal counts, %")
    for index, name in enumerate(names):
        left.plot(STEPS, [row[index] for row in rows], marker="o", label=f"rate: {name}")
    left.axhline(best[0], linestyle="--", color="black", label="exact modes: top-1, %")
    right.plot(STEPS, [row[3] for row in rows], marker="o", label="rate")
    right.axhline(best[3], linestyle="--", color="black", label="graded")
    left.set_ylabel("simulated")
    right.set_ylabel("nJ per image, modelled")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("time steps (latency)")
        axes.legend(fontsize=7)
    figure.suptitle(f"digits_cnn, 4 bits. Energy: {constants}", fontsize=5)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
