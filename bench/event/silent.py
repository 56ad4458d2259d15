"""Channels that never change, removed by `prune-silent`: what goes, and what outputs lose.

    PARED_DATA=... python -m pared.bench.event.silent [FOLDER WITH fashion_cnn.onnx AND fashion_mlp.onnx]

Run it in a checkout; writes docs/results/event_silent.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...backends.event.mapping.place import place
from ...backends.event.read import read
from ...compiler.errors import UnsupportedOp
from ...compiler.ir.importer import import_model
from ...compiler.ir.stats import count
from ...compiler.manager import Manager
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ...targets import load_target
from ..data import data_folder
from ..prune_accuracy import UNITS, Net, nets, run, score_text
from ..results import Page
from .mapping import photographs, vww01
from .models import kws01

_QUANTIZED = "balance,quantize{bits=4 act_bits=4 inputs=int8},relu-into-quantizer,dead-code"
_TOLERANCES = (0.0, 0.01)
_NAMES = (
    "kws_cnn_s", "kws_dnn_s", "mnist_conv8", "fashion_cnn", "fashion_mlp", "ic01_resnet8", "resnet20_cifar10",
    "ad01_fc_autoencoder",
)  # fmt: skip
ABOUT = """`PARED_DATA=... python -m pared.bench.event.silent FASHION`. `prune-silent{tolerance=...}` takes
the channels out that move by no more than this share of their layer's range on calibration samples, all of
them and no others. Scores and largest difference of outputs (of the largest output) are on other samples;
scores as in prune_accuracy.md. vww01 is calibrated and tried on different crops of two photographs. Loihi 1:
cores at 4 bits, of 128 a chip, placed as in event_mapping.md."""
HEADINGS = (
    "model", "tolerance", "channels", "gone", "MACs", "parameters", "score", "before", "after",
    "largest difference", "Loihi 1 cores",
)  # fmt: skip


def models(data: Path, made: Path | None, folder: Path) -> Iterator[tuple[str, Net]]:
    """Yield the models with samples."""
    found = nets(data, made)
    yield from ((name, found[name]()) for name in _NAMES if name in found)
    source = kws01(data, 600)
    model = run(import_model(source.path).model, "canonicalize", None)
    yield source.name, Net(model, source.samples, source.labels, "labels")
    source = vww01(data, folder)
    model = run(import_model(source.path).model, "canonicalize", None)
    yield source.name, Net(model, photographs(200), None, "agreement")


def loihi_cores(model: ir.Model, net: Net) -> str:
    """Return how many cores of Loihi 1 the model takes at 4 bits."""
    try:
        graph = read(run(model, _QUANTIZED, net.samples))
    except UnsupportedOp:
        return "-"
    return str(place(graph, load_target("event-loihi1")).cores_needed)


def add(page: Page, name: str, net: Net, tolerance: float) -> None:
    """Prune, compare and add the row."""
    text = f"prune-silent{{tolerance={tolerance}}}"
    done = Manager().run(net.model, parse_pipeline(text, PASSES, MACROS), Context(calibration=net.samples))
    before, after = count(net.model), count(done.model)
    want, got = net.outputs(net.model), net.outputs(done.model)
    reach = max(float(np.abs(array).max()) for array in want)
    off = max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
        for a, b in zip(want, got, strict=True)
    )
    channels, gone = (int(done.records[-1].stats.details[key]) for key in ("channels", "channels_cut"))
    page.add(
        name, f"{tolerance:g}", channels, gone, f"{before.macs:,} to {after.macs:,}",
        f"{before.parameters:,} to {after.parameters:,}", UNITS[net.kind],
        score_text(net.score(net.model, want)), score_text(net.score(done.model, want)),
        f"{off:.2g} of {reach:.3g}", f"{loihi_cores(net.model, net)} to {loihi_cores(done.model, net)}",
    )  # fmt: skip


def main() -> None:
    """Write the page."""
    data = data_folder()
    page = Page(Path("docs/results/event_silent.md"), "Silent channels", ABOUT, HEADINGS)
    made = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        for name, net in models(data, made, Path(folder)):
            for tolerance in _TOLERANCES:
                add(page, name, net, tolerance)


if __name__ == "__main__":
    main()
