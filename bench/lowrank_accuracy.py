"""Accuracy and time against the share of multiply-accumulates that low rank leaves, without training.

    PARED_DATA=… python -m pared.bench.lowrank_accuracy [--fashion DIR] [--page docs/results/….md]

Statistics come from calibration samples that are not scored; scores are those of bench/prune_accuracy.py.
`data`: truncated by the outputs on calibration data; `weights`: by the weights alone, as a plain SVD does
(numpy.linalg.svd; scikit-learn's TruncatedSVD finds the same singular values). `left` are the MACs that were
really left, `time` the latency over that of the dense net at the lowest share that was reached, both in
onnxruntime, one thread, interleaved. A share that no choice of ranks reaches is `-`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from ..compiler.errors import PipelineError
from ..compiler.ir.stats import count
from ..compiler.ort import make_session, run_session
from .data import data_folder
from .meter import compare_latency, pinned
from .prune_accuracy import UNITS, Net, nets, run, score_text
from .results import Page

SHARES = (0.8, 0.6, 0.5, 0.4, 0.3)
METHODS: Mapping[str, str] = {
    "auto, data": "lowrank{macs=SHARE round_to=8}",
    "auto, weights": "lowrank{macs=SHARE round_to=8 whiten=false}",
    "auto, data +fit": "lowrank{macs=SHARE round_to=8},reconstruct",
    "spatial, data": "lowrank{macs=SHARE round_to=8 method=spatial}",
    "tucker2, data": "lowrank{macs=SHARE round_to=8 method=tucker2}",
    "channel, data": "lowrank{macs=SHARE round_to=8 method=channel}",
}
HEADINGS = ("model", "score", "dense", "method", *(f"{share:g} MACs" for share in SHARES), "left", "time")


def measure(name: str, net: Net, methods: Sequence[str], page: Page) -> None:
    """Add a row per method."""
    reference = net.outputs(net.model)
    dense, samples = net.score(net.model, reference), net.samples
    for method in methods:
        cells, last = [], None
        for share in SHARES:
            try:
                last = run(net.model, METHODS[method].replace("SHARE", f"{share:g}"), samples)
            except PipelineError:
                cells.append("-")
                continue
            cells.append(score_text(net.score(last, reference)))
        left = "" if last is None else f"{count(last).macs / count(net.model).macs:.2f}"
        took = "" if last is None else f"{_time_ratio(net, last):.2f}"
        page.add(name, UNITS[net.kind], score_text(dense), method, *cells, left, took)


def _time_ratio(net: Net, model: ir.Model) -> float:
    with pinned(1):
        runs = {"dense": _runner(net, net.model), "low rank": _runner(net, model)}
        return compare_latency(runs, rounds=7, iterations=300, limit=3.0).ratio("low rank", "dense").median


def _runner(net: Net, model: ir.Model) -> Callable[[], object]:
    session, inputs = make_session(model), {str(model.graph.inputs[0].name): net.inputs[:1]}
    return lambda: run_session(session, inputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--fashion", type=Path, help="folder with fashion_cnn.onnx and fashion_mlp.onnx")
    parser.add_argument("--page", type=Path, default=Path("lowrank_accuracy.md"))
    options = parser.parse_args(arguments)
    folder = data_folder()
    found = nets(folder, options.fashion)
    page = Page(options.page, "Accuracy and time against low rank", __doc__ or "", HEADINGS)
    for name in options.models or found:
        measure(name, found[name](), options.methods, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
