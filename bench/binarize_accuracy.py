"""Accuracy, size and time of weights as sums of bases, beside uniform quantization, without training.

    PARED_DATA=… python -m pared.bench.binarize_accuracy --fashion DIR [--work DIR] [--page docs/results/….md]

Scores, samples and nets are those of bench/prune_accuracy.py: statistics come from samples that are not
scored. First and last layers have 8 bits in every row but `float`; `bits` is what a weight of the other
layers takes, its scales aside. `uniform`: `quantize{act=none}` of that width per channel, to nearest, or with
GPTQ, ranges of least error and corrected biases. `bases`: `binarize`, by residual (one: BWN), by alternating
least squares, or by the outputs on data. `a8`: activations in int8, too; `in 1`, `in 2`: inputs of the
binarized layers in one or two bits, all of them (act_sqnr=0). `file` is model.onnx, `library` the engine
native's model.so; `time` is its latency over that of the float model in it, one pinned core, interleaved in
one process. Artifacts are kept in the folder `--work`, so a second run measures times alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from .. import compile as compile_model
from .. import load
from ..compiler.data import Samples
from ..compiler.manager import Manager
from ..compiler.pass_api import Context
from ..compiler.pipeline import parse_pipeline
from ..compiler.registry import MACROS, PASSES
from ..passes.binarize.ends import end_layers
from ..passes.prune.weights import find_weights
from .data import data_folder
from .meter import compare_latency, pinned
from .prune_accuracy import Net, nets, score_text
from .results import Page

MODELS = ("kws_cnn_s", "kws_dnn_s", "fashion_cnn", "fashion_mlp")
HEADINGS = ("model", "method", "bits", "top-1 %", "file bytes", "library KiB", "time")

_REST = "quantize{act=none}"
_BEST = "rounding=gptq weight_range=mse bias_correct=true"


@dataclass(frozen=True)
class Method:
    """A pipeline text; with `middle` it runs without the first and last layers, and `text` after it."""

    name: str
    bits: str
    text: str
    middle: str = ""


def methods() -> list[Method]:
    """Return the rows of the table, equal sizes together."""
    found = [Method("float", "32", ""), Method("int8", "8", "quantize,relu-into-quantizer")]
    for k in (1, 2, 3):
        near, best = f"quantize{{act=none bits={k}}}", f"quantize{{act=none bits={k} {_BEST}}}"
        found += [
            Method("uniform, nearest", str(k), _REST, near),
            Method("uniform, GPTQ", str(k), _REST, best),
            Method("bases, residual", str(k), f"binarize{{bases={k} fit=residual ends=keep}},{_REST}"),
            Method("bases, als", str(k), f"binarize{{bases={k} fit=als ends=keep}},{_REST}"),
            Method("bases, data", str(k), f"binarize{{bases={k} ends=keep}},{_REST}"),
        ]
    ternary = "binarize{ternary=true ends=keep"
    found += [
        Method("ternary, als", "2", f"{ternary} fit=als}},{_REST}"),
        Method("ternary, data", "2", f"{ternary}}},{_REST}"),
    ]
    for k in (1, 2, 3):
        text = f"binarize{{bases={k} ends=keep format=int8}},quantize,relu-into-quantizer"
        found.append(Method("bases, data, a8", str(k), text))
    narrow = ((1, "binary", "in 1"), (2, "binary", "in 1"), (2, "2bit", "in 2"), (3, "2bit", "in 2"))
    for k, inputs, label in narrow:
        text = f"binarize{{bases={k} activations={inputs} act_sqnr=0 ends=keep}},{_REST}"
        found.append(Method(f"bases, data, {label}", str(k), text))
    return found


def changed(net: Net, method: Method) -> ir.Model:
    """Return the model that a method makes."""
    samples, model = net.samples, net.model
    if method.middle:
        ends = end_layers(model, find_weights(model, []))
        names = tuple(str(use.node.name) for weight in ends for use in weight.uses)
        model = _run(model, method.middle, samples, names)
    return _run(model, method.text, samples, ()) if method.text else model


def _run(model: ir.Model, text: str, samples: Samples, exclude: tuple[str, ...]) -> ir.Model:
    ctx = Context(calibration=samples, exclude=exclude)
    return Manager().run(model, parse_pipeline(text, PASSES, MACROS), ctx).model


def build(net: Net, method: Method, folder: Path) -> float:
    """Compile for the engine native unless it is there already; returns the score."""
    record = folder.with_suffix(".json")
    if not record.exists():
        model = changed(net, method)
        score = net.score(model, net.outputs(net.model))
        pipeline = "compact-constants,dead-code"
        compile_model(model, output=folder, engine="native", pipeline=pipeline)
        record.write_text(json.dumps(score))
    return float(json.loads(record.read_text()))


def measure(name: str, net: Net, work: Path, page: Page) -> None:
    """Add the rows of a model."""
    rows = methods()
    folders = [work / f"{name}_{number}" for number in range(len(rows))]
    scores = [build(net, method, folder) for method, folder in zip(rows, folders, strict=True)]
    times = _times(net, folders)
    for method, folder, score, took in zip(rows, folders, scores, times, strict=True):
        file, library = ((folder / part).stat().st_size for part in ("model.onnx", "model.so"))
        sizes = file, f"{library / 1024:.0f}"
        page.add(name, method.name, method.bits, score_text(score), *sizes, f"{took:.2f}")


def _times(net: Net, folders: Sequence[Path]) -> list[float]:
    """Return latencies over that of the first artifact."""
    inputs = {str(net.model.graph.inputs[0].name): net.inputs[:1]}
    with pinned(1):
        executables = {str(folder): load(folder, threads=1) for folder in folders}

        def runner(name: str) -> Callable[[], object]:
            return lambda: executables[name].run(inputs)

        runs: Mapping[str, Callable[[], object]] = {name: runner(name) for name in executables}
        found = compare_latency(runs, rounds=9, iterations=2000, limit=20.0)
    first = str(folders[0])
    return [1.0 if str(f) == first else found.ratio(str(f), first).median for f in folders]


def summarize(page: Page) -> None:
    """Say where bases beat the best uniform grid of the same size, and what they lose."""
    scores = {(str(row[0]), str(row[1]), str(row[2])): float(str(row[3])) for row in page.rows}
    for k in ("1", "2", "3"):
        parts = []
        for model in dict.fromkeys(str(row[0]) for row in page.rows):
            uniform = max(scores[model, f"uniform, {how}", k] for how in ("nearest", "GPTQ"))
            own, dense = scores[model, "bases, data", k], scores[model, "float", "32"]
            parts.append(f"{model} {own - uniform:+.2f} (float {own - dense:+.2f})")
        page.remark(f"{k} bit(s): bases fitted to data against the better uniform grid: {', '.join(parts)}.")
    page.remark(LIMITS)


LIMITS = """How far it gets without training: three bases lose at most 0.3 points, two 0.3 to 2.5, one 0.5 to
17, depending on the net; inputs of one bit 5 to 61 points, of two bits 1 to 34: such nets have to be trained.
Scored are 400 (kws) or 1000 samples, so a score has a standard
error of 1 to 2 points.
One bit of `quantize` is not reconstructed: its two rows are the same.

Sizes are those of the file. The engine native unpacks weights that meet float or int8 inputs, so its library
holds them in full, and bases alone gain no time over float, or over int8 with `a8`. Popcounts need inputs of
few bits; with one basis they beat int8 on the keyword spotters, with two bits of input nowhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--fashion", type=Path, help="folder with fashion_cnn.onnx and fashion_mlp.onnx")
    parser.add_argument("--work", type=Path, help="folder for artifacts; a temporary one by default")
    parser.add_argument("--page", type=Path, default=Path("binarize_accuracy.md"))
    options = parser.parse_args(arguments)
    folder = data_folder()
    found = nets(folder, options.fashion)
    page = Page(options.page, "Weights as sums of bases, without training", __doc__ or "", HEADINGS)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.models:
            measure(name, found[name](), work, page)
    summarize(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
