"""float16 and bfloat16 against float32 on real models: what `--precision fp16` and `bf16` cost in accuracy.

    PARED_DATA=… python -m pared.bench.half_accuracy [--page docs/results/gpu_half.md]

Computed by the reference (docs/semantics.md: every operator rounds once), sample by sample; no device and no
time is in it. GPU kernels are held to the reference within the derived bound. Where labels are at hand, the
score is top-1 in percent or, for stories260k, nats per token; elsewhere inputs are normal random numbers and
only the signal-to-noise ratio (SQNR) of the outputs and changed decisions (argmax) count. Ranges were checked
on the first 32 samples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..backends.reference.evaluator import Evaluator
from ..compiler.data import open_samples
from ..compiler.differences import Sqnr
from ..compiler.driver.precision import default_pipeline, parse_precision
from ..compiler.ir.export import signature_of
from ..compiler.ir.importer import import_model
from ..compiler.manager import Manager, PipelineResult
from ..compiler.pass_api import Context
from ..compiler.pipeline import parse_pipeline
from ..compiler.registry import MACROS, PASSES
from .data import data_folder
from .quantize_accuracy import TASKS
from .results import Page

Array = npt.NDArray[np.generic]

_LABELLED = (
    "kws01_dscnn", "kws_ds_cnn_s", "kws_gru_s", "mnist_conv8", "digits_mlp", "digits_cnn", "digits_resnet",
    "stories260k",
)  # fmt: skip
_UNLABELLED = (
    "vww01_mobilenetv1", "ic01_resnet8", "ad01_fc_autoencoder", "resnet20_cifar10", "ultraface_rfb_320",
)  # fmt: skip
# Their outputs are no scores of classes.
_UNDECIDED = ("ad01_fc_autoencoder",)
_FEW = {"stories260k": 8, "ultraface_rfb_320": 10}
_CHECKED = 32
_EXAMPLES = Path("examples/models")  # scripts run from the root of the repository
HEADINGS = (
    "model", "samples", "score", "float32", "fp16", "bf16", "decisions changed fp16, bf16",
    "SQNR fp16, bf16 (dB)", "nodes half, float32",
)  # fmt: skip


@dataclass(frozen=True)
class _Scored:
    """A model's results.

    Attributes:
        outputs: the first output, per sample.
        score: in percent or nats; None without labels.
    """

    outputs: list[Array]
    score: float | None


def _converted(model: ir.Model, precision: str, calibration: dict[str, Array]) -> PipelineResult:
    passes = parse_pipeline(default_pipeline(parse_precision(precision), 2), PASSES, MACROS)
    samples = open_samples(calibration, signature_of(model), purpose="calibration")
    return Manager().run(model, passes, Context(calibration=samples))


def _run(model: ir.Model, name: str, inputs: Array, labels: Array | None, unit: str) -> _Scored:
    evaluator = Evaluator(model)
    first = evaluator.outputs[0]
    outputs = [evaluator.run({name: inputs[i : i + 1]})[first] for i in range(len(inputs))]
    if labels is None:
        return _Scored(outputs, None)
    if unit == "nats":
        losses = [_nats(out, tokens) for out, tokens in zip(outputs, labels, strict=True)]
        return _Scored(outputs, float(np.mean(losses)))
    hits = [int(out.argmax()) == int(label) for out, label in zip(outputs, labels, strict=True)]
    return _Scored(outputs, 100 * float(np.mean(hits)))


def _nats(logits: Array, tokens: Array) -> float:
    """Return the mean of -log p(next token); logits `[1, tokens, vocabulary]`."""
    x = np.asarray(logits, np.float64)[0, :-1]
    x = x - x.max(axis=-1, keepdims=True)
    chances = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return float(-chances[np.arange(len(x)), np.asarray(tokens, np.int64)[1:]].mean())


def _data(name: str, port: ir.Value, folder: Path, count: int) -> tuple[Array, Array | None]:
    count = _FEW.get(name, count)
    assert port.dtype is not None, f"{name}: the importer infers types"
    if name in TASKS:
        inputs, labels = TASKS[name].read(folder)
        return inputs[:count].astype(port.dtype.numpy()), labels[:count]
    assert port.shape is not None, f"{name}: the importer infers shapes"
    sizes = [count, *(size for size in list(port.shape)[1:] if isinstance(size, int))]
    return np.random.default_rng(0).normal(size=sizes).astype(np.float32), None


def measure(name: str, folder: Path, count: int) -> tuple[str, ...]:
    """Convert and score one model; returns the row."""
    task = TASKS.get(name)
    own = name.startswith("digits")
    model = import_model((_EXAMPLES if own else folder / "models") / f"{name}.onnx").model
    port = model.graph.inputs[0]
    inputs, labels = _data(name, port, folder, count)
    unit = "" if task is None else "nats" if task.unit == "nats" else "top-1 %"
    plain = _run(model, str(port.name), inputs, labels, unit)
    scores, changed, noise, nodes = [plain.score], [], [], ""
    for precision in ("fp16", "bf16"):
        result = _converted(model, precision, {str(port.name): inputs[:_CHECKED]})
        found = _run(result.model, str(port.name), inputs, labels, unit)
        scores.append(found.score)
        changed.append(_changed(plain.outputs, found.outputs))
        noise.append(_sqnr(plain.outputs, found.outputs))
        details = next(r.stats.details for r in result.records if r.name == "half")
        nodes = f"{details['nodes_half']}, {details['nodes_float32']}"
    cells = ["-" if score is None else f"{score:.4g}" for score in scores]
    return (
        name,
        str(len(inputs)),
        unit or "-",
        *cells,
        ", ".join(map(str, changed)),
        ", ".join(noise),
        nodes,
    )


def _changed(before: Sequence[Array], after: Sequence[Array]) -> int:
    decisions = [(a.argmax(-1), b.argmax(-1)) for a, b in zip(before, after, strict=True)]
    return sum(int((a != b).sum()) for a, b in decisions)


def _sqnr(before: Sequence[Array], after: Sequence[Array]) -> str:
    total = Sqnr()
    for want, got in zip(before, after, strict=True):
        total.add(want, got)
    return f"{total.sqnr_db:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[*_LABELLED, *_UNLABELLED])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--page", type=Path, help="write a result page there")
    options = parser.parse_args(arguments)
    page = Page(options.page or Path("/dev/null"), "Half floats: accuracy", __doc__ or "", HEADINGS)
    for name in options.models:
        page.add(*measure(name, data_folder(), options.samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
