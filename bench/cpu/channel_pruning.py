"""What cut channels buy: time of ResNet-18, and accuracy of real models against the share that goes.

    python -m pared.bench.cpu.channel_pruning time --page docs/results/prune_channels_time.md
    PARED_DATA=… python -m pared.bench.cpu.channel_pruning accuracy --fashion DIR --page …

`time`: ResNet-18 and MobileNetV2 for 224 x 224 (random weights) with half of the channels of every layer,
those of residual streams included, beside the whole model, batch 1, one pinned core, one thread, float32, all
interleaved. Predicted for ResNet-18: 3.75 times fewer multiply-accumulates; 1.9 times as fast was asked for.

`accuracy`: top-1 in % with labels, agreement with the whole model in % without, SQNR in dB for ad01, as in
prune_accuracy.md; calibration samples are not scored. Columns are the share of channels that go from every
layer, in multiples of 2. `+fit`: the layers left are fitted to the calibration data by least squares.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ... import compile as compile_model
from ...compiler.ir.export import save
from ...compiler.ir.importer import import_model
from ...compiler.ir.stats import count
from ..data import data_folder
from ..meter import compare_latency, pinned
from ..prune_accuracy import UNITS, Net, nets, run, score_text
from ..results import Page
from .models import Native, in_onnxruntime
from .nets import mobilenet_v2, resnet18

LEVELS = ("0.25", "0.375", "0.5")
METHODS = (
    ("magnitude", "false"), ("fpgm", "false"), ("datafree", "false"), ("activation", "false"),
    ("magnitude", "true"), ("datafree", "true"), ("activation", "true"), ("taylor", "true"),
    ("refit", "true"),
)  # fmt: skip
MODELS = (
    "mnist_conv8", "fashion_mlp", "kws_cnn_s", "fashion_cnn", "kws_dnn_s", "ic01_resnet8",
    "resnet20_cifar10", "ad01_fc_autoencoder",
)  # fmt: skip
_TIME_HEADINGS = (
    "model", "engine", "MACs left", "whole ms", "half ms", "times as fast", "range of rounds",
)  # fmt: skip


def cases() -> Mapping[str, Callable[[], ir.Model]]:
    """Models to time."""
    return {
        "resnet18": lambda: import_model(resnet18()).model,
        "mobilenet_v2": lambda: import_model(mobilenet_v2()).model,
    }


def measure_time(page: Page, rounds: int, seconds: float) -> None:
    """Time whole and half models on both engines, interleaved."""
    for name, make in cases().items():
        with tempfile.TemporaryDirectory() as folder, pinned(1):
            whole = run(make(), "canonicalize", None)
            half = run(whole, "prune-channels{sparsity=0.5}", None)
            share = count(half).macs / count(whole).macs
            runs, _held = _runs({"whole": whole, "half": half}, Path(folder))
            compared = compare_latency(runs, rounds=rounds, iterations=rounds, warmup=2, duration=seconds)
            for kind in ("onnxruntime", "native"):
                ratio = compared.ratio(f"{kind} whole", f"{kind} half")
                medians = [
                    statistics.median(compared.round_medians_ms[f"{kind} {k}"]) for k in ("whole", "half")
                ]
                page.add(
                    name, kind, f"{share:.3f}", *(f"{m:.2f}" for m in medians), f"{ratio.median:.2f}",
                    f"{ratio.low:.2f} to {ratio.high:.2f}",
                )  # fmt: skip


def _runs(
    models: Mapping[str, ir.Model], folder: Path
) -> tuple[dict[str, Callable[[], object]], list[Native]]:
    """Return the runs, and what has to live as long as they do."""
    found: dict[str, Callable[[], object]] = {}
    held: list[Native] = []
    for kind, model in models.items():
        path = folder / f"{kind}.onnx"
        save(model, path)
        found[f"onnxruntime {kind}"] = in_onnxruntime(path)
        artifact = compile_model(path, engine="native", threads=1, output=folder / kind)
        held.append(Native(artifact))
        found[f"native {kind}"] = held[-1].run
    return found, held


def measure_accuracy(name: str, net: Net, page: Page) -> None:
    """Add a row per criterion, without and with the fit."""
    reference = net.outputs(net.model)
    dense = net.score(net.model, reference)
    left = [_macs_left(net, level) for level in LEVELS]
    page.add(name, UNITS[net.kind], score_text(dense), "*MACs left*", *(f"*{share:.2f}*" for share in left))
    for criterion, fit in METHODS:
        scores = [net.score(_cut(net, level, criterion, fit), reference) for level in LEVELS]
        label = criterion + (" +fit" if fit == "true" else "")
        page.add(name, UNITS[net.kind], score_text(dense), label, *map(score_text, scores))


def _cut(net: Net, level: str, criterion: str, fit: str) -> ir.Model:
    text = f"prune-channels{{sparsity={level} criterion={criterion} fit={fit} round_to=2}}"
    return run(net.model, text, net.samples)


def _macs_left(net: Net, level: str) -> float:
    narrow = run(net.model, f"prune-channels{{sparsity={level} criterion=magnitude round_to=2}}", None)
    return count(narrow).macs / count(net.model).macs


def summarize(page: Page) -> None:
    """Say how often one criterion beats another."""
    table = {(str(row[0]), str(row[3])): [_number(cell) for cell in row[4:]] for row in page.rows}
    models = sorted({model for model, _ in table})
    for better, worse in (
        ("magnitude +fit", "magnitude"), ("activation", "magnitude"), ("activation +fit", "magnitude +fit"),
        ("datafree +fit", "magnitude +fit"), ("taylor +fit", "activation +fit"),
        ("refit +fit", "activation +fit"), ("refit +fit", "magnitude +fit"),
    ):  # fmt: skip
        pairs = [
            (m, level, a, b)
            for m in models
            for level, a, b in zip(LEVELS, table[m, better], table[m, worse], strict=True)
        ]
        wins, ties = sum(a > b for *_, a, b in pairs), sum(a == b for *_, a, b in pairs)
        losses = [f"{m} {level} ({a - b:+.2f})" for m, level, a, b in pairs if a < b]
        page.remark(
            f"{better} against {worse}: better in {wins}, equal in {ties}, worse in {len(losses)} of "
            f"{len(pairs)} cases" + (f": {', '.join(losses)}." if losses else ".")
        )


def _number(cell: object) -> float:
    text = str(cell).strip("*")
    return np.inf if text == "exact" else float(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["time", "accuracy"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--fashion", type=Path, help="folder with fashion_cnn.onnx and fashion_mlp.onnx")
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.what == "time":
        page = Page(options.page, "Time of half the channels", __doc__ or "", _TIME_HEADINGS)
        measure_time(page, options.rounds, options.seconds)
        return 0
    folder = data_folder()
    headings = ("model", "score", "whole", "criterion", *(f"{float(x):.1%} go" for x in LEVELS))
    page = Page(options.page, "Accuracy against channels cut", __doc__ or "", headings)
    found = nets(folder, options.fashion)
    for name in options.models:
        if name in found:
            measure_accuracy(name, found[name](), page)
    summarize(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
