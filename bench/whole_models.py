"""Whole models from the command line to the measured artifact: smaller, faster, and how many points lost.

    PARED_DATA=… python -m pared.bench.whole_models [--fashion DIR] [--page docs/results/whole_models.md]

Every row is one `pared compile` with the flags shown (and `--calib-data`), then `pared verify` on labelled
samples that calibration did not see, then `pared bench`: latency over that of the float original in
onnxruntime, interleaved, one pinned thread. `size` is `model.onnx` over the float file (engine `native` adds
a library of machine code); `engine` is what the compiler kept after measuring. Compiled with --force: the
flags' model is kept though float may be faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ..compiler.errors import DataError
from ..compiler.records import Json
from .data import data_folder
from .prune_accuracy import nets
from .results import Page

HEADINGS = ("model", "flags", "float", "artifact", "points lost", "size", "latency", "engine")


@dataclass(frozen=True)
class Case:
    """A net of bench/prune_accuracy.py or of examples/, and what is asked for."""

    model: str
    flags: str


CASES = (
    Case("kws_gru_s", "--max-params 0.5"),
    Case("kws_lstm_s", "--max-params 0.6"),
    Case("kws_cnn_s", "--max-macs 0.75"),
    Case("kws_cnn_s", "--precision int8"),
    Case("kws_dnn_s", "--sparsity 0.5"),
    Case("mnist_conv8", "--max-macs 0.6"),
    Case("mnist_conv8", "--max-macs 0.6 --precision int8"),
    Case("fashion_mlp", "--max-params 0.3"),
    Case("fashion_mlp", "--sparsity 0.8 --precision int8"),
    Case("fashion_cnn", "--max-macs 0.7 --precision int8"),
    Case("digits_cnn", "--max-macs 0.7"),
    Case("digits_cnn", "--max-macs 0.7 --precision int8"),
)


def measure(case: Case, data: Path, fashion: Path | None, page: Page) -> None:
    """Compile, verify and time one case, and add its row."""
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        folder = Path(name)
        model = _prepare(case.model, data, fashion, folder)
        common = ["-m", str(model), "--calib-data", str(folder / "c.npz"), "--force"]
        done = _pared("compile", *common, *case.flags.split(), "-o", str(folder / "out"))
        checked = _pared(
            "verify", str(folder / "out"), "--data", str(folder / "t.npz"), "--reference", str(model)
        )
        size = _onnx_bytes(folder / "out", done) / model.stat().st_size
        timed = _pared("bench", str(folder / "out"), "--reference", str(model), "--peers", "onnxruntime")
    metric = cast("list[dict[str, float]]", checked["metrics"])[0]
    ratio = cast("list[dict[str, float]]", timed["ratios"])[0]["median"]
    report = cast("dict[str, Json]", done["report"])
    page.add(
        case.model,
        f"`{case.flags}`",
        f"{metric['reference']:.2f}",
        f"{metric['artifact']:.2f}",
        f"{metric['reference'] - metric['artifact']:+.2f}",
        f"{size:.2f}",
        f"{ratio:.2f}",
        str(report["chosen"]),
    )


def _onnx_bytes(out: Path, done: dict[str, Json]) -> int:
    """Return the size of the ONNX file; of all files where engine `mixed` has none for the whole model."""
    whole = out / "model.onnx"
    if whole.exists():
        return whole.stat().st_size
    return cast(int, cast("dict[str, Json]", done["report"])["payload_bytes"])


def _prepare(name: str, data: Path, fashion: Path | None, folder: Path) -> Path:
    """Write calibration samples c.npz and labelled samples t.npz; return the model's path."""
    examples = Path("examples")
    if name.startswith("digits"):
        for source, target in (("digits_calibration", "c"), ("digits_test", "t")):
            (folder / f"{target}.npz").write_bytes((examples / "data" / f"{source}.npz").read_bytes())
        return examples / "models" / f"{name}.onnx"
    net = nets(data, fashion)[name]()
    port, split = str(net.model.graph.inputs[0].name), net.split
    assert net.labels is not None, f"{name} has labels"
    rows = slice(split, split + 1000)
    np.savez(folder / "c.npz", **{port: net.inputs[:split]})  # type: ignore[arg-type]
    np.savez(folder / "t.npz", **{port: net.inputs[rows], "labels": net.labels[rows]})  # type: ignore[arg-type]
    if name.startswith("fashion"):
        assert fashion is not None, "nets() has them only with the folder"
        return fashion / f"{name}.onnx"
    return data / "models" / f"{name}.onnx"


def _pared(*args: str) -> dict[str, Json]:
    command = [sys.executable, "-m", "pared.compiler.cli.app", *args, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise DataError("bench-command", f"pared {' '.join(args)} failed: {done.stdout or done.stderr}")
    return cast("dict[str, Json]", json.loads(done.stdout))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--fashion", type=Path, help="folder with fashion_cnn.onnx and fashion_mlp.onnx")
    parser.add_argument("--page", type=Path, default=Path("whole_models.md"))
    options = parser.parse_args(arguments)
    folder = data_folder()
    page = Page(options.page, "Whole models, compressed from the command line", __doc__ or "", HEADINGS)
    for case in CASES:
        if not options.models or case.model in options.models:
            measure(case, folder, options.fashion, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
