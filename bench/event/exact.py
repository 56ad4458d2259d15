"""Counts of every layer against the reference, in every exact mode, on the digits models.

    python -m pared.bench.event.exact

Run it in a checkout: the models and data are those of examples/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...backends.event.graph import EventGraph
from ...backends.event.modes import run
from ...backends.event.read import read
from ...backends.event.simulate import Counts, graded
from ...backends.reference import evaluate
from ...compiler.backend import Array
from ...compiler.data import open_samples
from ...compiler.errors import UnsupportedOp
from ...compiler.ir.export import signature_of
from ...compiler.ir.importer import import_model
from ...compiler.manager import Manager
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ..results import Page

EXAMPLES = Path("examples")
OPTIONS = {8: "", 4: "{bits=4 act_bits=4}", 2: "{bits=2 act_bits=2}"}
HEADINGS = ("model", "bits", "samples", "graded", "layer-sync", "signed-if", "unary", "open thresholds")
ABOUT = """`python -m pared.bench.event.exact`. Integers (counts of all layers, accumulators of the
logits) that differ from the reference's, among all; 0 is exact. The 540 test images for
`graded`, the first 60 (8 bits) or 120 of them for the simulated modes. Open thresholds:
those at which float rounding of the model as written could decide otherwise for some input."""


def quantized(name: str, bits: int) -> ir.Model:
    """Return an example model, quantized as `--precision` does it."""
    model = import_model(EXAMPLES / "models" / f"{name}.onnx").model
    data = np.load(EXAMPLES / "data" / "digits_calibration.npz")["image"]
    samples = open_samples({"image": data}, signature_of(model), purpose="calibration")
    text = f"canonicalize,balance,quantize{OPTIONS[bits]},relu-into-quantizer,dead-code"
    return Manager().run(model, parse_pipeline(text, PASSES, MACROS), Context(calibration=samples)).model


def unequal(model: ir.Model, graph: EventGraph, x: Array, counts: Counts) -> str:
    """Return how many integers differ from the reference's, among how many."""
    want = evaluate(model, {"image": x}, outputs=[layer.name for layer in graph.layers])
    wrong = every = 0
    for layer in graph.layers:
        value = np.asarray(want[layer.name]).reshape(-1, *layer.shape)
        spread = [-1, *[1] * (len(layer.shape) - 1)]
        scale, offset = layer.scale.reshape(spread), layer.offset.reshape(spread)
        real = value.dtype.kind == "f"
        whole = (
            np.rint((value.astype(np.float64) - offset) / scale)
            if real
            else value.astype(np.int64) - layer.zero
        )
        wrong += int(np.count_nonzero(whole != counts[layer.name]))
        every += value.size
    return f"{wrong} of {every}"


def main() -> None:
    """Write the page."""
    images = np.load(EXAMPLES / "data" / "digits_test.npz")["image"].astype(np.float32)
    page = Page(Path("docs/results/event_exact.md"), "Event layers against the reference", ABOUT, HEADINGS)
    for name in ("digits_mlp", "digits_cnn"):
        for bits in (8, 4, 2):
            model = quantized(name, bits)
            graph = read(model)
            cells = [unequal(model, graph, images, graded(graph, {"image": images}))]
            few = images[:60] if bits == 8 else images[:120]
            for mode in ("layer-sync", "signed-if", "unary"):
                try:
                    trace = run(graph, {"image": few}, mode)
                    cells.append(unequal(model, graph, few, trace.counts))
                except UnsupportedOp:
                    cells.append("refused: counts below 0")
            ties = sum(layer.ladder.ties for layer in graph.layers if layer.ladder is not None)
            page.add(name, bits, f"{len(images)}, {len(few)}", *cells, ties)


if __name__ == "__main__":
    main()
