"""Counts of every layer against the reference, in every exact mode, on real models of 8, 4 and 2 bits.

    PARED_DATA=… python -m pared.bench.event.exact [--fashion DIR] [--samples 1000]

Run it in a checkout. DIR holds fashion_cnn.onnx of bench/train_fashion.py; without PARED_DATA only the
digits models run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...backends.event.build import build, features_of
from ...backends.event.graph import EventGraph, Integers, Layer
from ...backends.event.modes import run
from ...backends.event.native import NativeGraph
from ...backends.event.read import read
from ...backends.event.simulate import Counts, encode, graded
from ...backends.reference import evaluate
from ...compiler.backend import Array
from ...compiler.errors import UnsupportedOp
from ...targets import load_target
from ..results import Page
from .models import Source, quantized, sources

MODES = ("layer-sync", "signed-if", "unary")
HEADINGS = ("model", "bits", "samples", "integers", "graded", "kernels", *MODES, "open thresholds")
ABOUT = """`python -m pared.bench.event.exact --fashion DIR`. Integers that differ from the reference's:
counts of all layers, and accumulators of the logits; 0 is exact. "integers" says among how many. "graded" is
NumPy, "kernels" the C kernels of event-cpu, the others are simulated spike by spike. Open thresholds: those
at which float rounding of the model as written could decide otherwise for some input. Inputs: digits, the
540 test images, the 128 for calibration, and test images moved by one pixel; MNIST and Fashion-MNIST, test
images; kws01, MFCC frames of Google Speech Commands v2, its 600 recordings and the same a frame later; ad01,
log-mel frames of such recordings, as the machine sounds that it was trained on cannot be had here. Quantized
as `--precision int8`, `w4a4`, `w2a2` do it, with integer inputs (`quantize{inputs=int8}`) and, for 4 and 2
bits, `short-scales`: without it, 1 of the 26,730,000 integers of fashion_cnn at 4 bits differed, at one of
the 10 thresholds that float rounding left open; the same models have none open now."""
_BATCH = 50


def wanted(model: ir.Model, graph: EventGraph, inputs: Mapping[str, Array]) -> Counts:
    """Return the reference's integers of every layer."""
    found = evaluate(model, dict(inputs), outputs=[layer.name for layer in graph.layers])
    return {layer.name: _whole(layer, np.asarray(found[layer.name])) for layer in graph.layers}


def _whole(layer: Layer, value: Array) -> Integers:
    shaped = value.reshape(-1, *layer.shape)
    if shaped.dtype.kind != "f":
        return shaped.astype(np.int64) - layer.zero
    spread = [-1, *[1] * (len(layer.shape) - 1)]
    scale, offset = layer.scale.reshape(spread), layer.offset.reshape(spread)
    return np.rint((shaped.astype(np.float64) - offset) / scale).astype(np.int64)


def by_kernels(graph: EventGraph, native: NativeGraph, inputs: Mapping[str, Array]) -> Counts:
    """Return the counts of all layers as the C kernels have them."""
    entry = graph.inputs[0]
    found: dict[str, list[Integers]] = {layer.name: [] for layer in graph.layers}
    for sample in encode(entry, inputs[entry.name]):
        native.run({entry.population: sample[None]})
        for name, parts in found.items():
            parts.append(native.counts(name))
    return {name: np.stack(parts) for name, parts in found.items()}


def unequal(want: Counts, found: Counts) -> int:
    """Return how many integers differ."""
    return sum(int(np.count_nonzero(array != found[name])) for name, array in want.items())


def compare(model: ir.Model, library: Path, source: Source) -> tuple[list[str], int]:
    """Return differing integers per way of execution, or why it is refused; and how many were compared."""
    graph = read(model)
    native = NativeGraph(graph, library)
    wrong: dict[str, int | str] = dict.fromkeys(("graded", "kernels", *MODES), 0)
    every = 0
    for first in range(0, len(source.samples), _BATCH):
        inputs = {source.input: source.samples[first : first + _BATCH]}
        want = wanted(model, graph, inputs)
        every += sum(array.size for array in want.values())
        for way, so_far in wrong.items():
            if isinstance(so_far, int):
                found = _differing(graph, native, inputs, want, way)
                wrong[way] = so_far + found if isinstance(found, int) else found
    return [str(count) for count in wrong.values()], every


def _differing(
    graph: EventGraph, native: NativeGraph, inputs: Mapping[str, Array], want: Counts, way: str
) -> int | str:
    if way == "graded":
        return unequal(want, graded(graph, inputs))
    if way == "kernels":
        return unequal(want, by_kernels(graph, native, inputs))
    try:
        return unequal(want, run(graph, inputs, way).counts)
    except UnsupportedOp:
        return "refused: counts below 0"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--models", nargs="*", help="of these names only")
    parser.add_argument("--bits", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--skip", type=int, default=0, help="so many samples, which another run takes")
    parser.add_argument("--out", type=Path, default=Path("docs/results/event_exact.md"))
    given = parser.parse_args()
    page = Page(given.out, "Event layers against the reference", ABOUT, HEADINGS)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "events.so"
        library.write_bytes(build(features_of(load_target("event-cpu"))) or b"")
        for every in sources(given.fashion, given.samples):
            if given.models and every.name not in given.models:
                continue
            source = replace(every, samples=every.samples[given.skip :])
            for bits in given.bits:
                model = quantized(source, bits)
                ladders = [layer.ladder for layer in read(model).layers]
                cells, compared = compare(model, library, source)
                ties = sum(ladder.ties for ladder in ladders if ladder is not None)
                page.add(source.name, bits, len(source.samples), compared, *cells, ties)


if __name__ == "__main__":
    main()
