"""Recurrent models: engine `native` beside onnxruntime and OpenVINO in the same interleaved run.

PARED_DATA=… python -m pared.bench.cpu.recurrent [--seconds 3]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...compiler.errors import ParedError
from ..data import data_folder
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from .models import ROUNDS, Case, Native, Run, in_onnxruntime, in_openvino, prepare

FILES = ("kws_gru_s", "kws_lstm_s", "kws_crnn_s", "dtln_1", "dtln_2", "sww_streaming_wakeword_int8_qdq")
PRECISIONS = ("float", "w8")
HEADINGS = (
    "model", "precision", "native us", "ORT us", "OpenVINO us", "ORT / native", "OpenVINO / native",
    "library KiB", "arena KiB", "compile s",
)  # fmt: skip
ABOUT = f"""`python -m pared.bench.cpu.recurrent`. Models of others with their trained weights, random inputs.
Batch 1, one pinned core, one thread, {ROUNDS} rounds in turn, medians of wall time; ratios are medians of the
ratios of each round, above 1 means that native is faster. Inputs and outputs are bound once everywhere.
`w8` stores weights in bytes: recurrent ones stay bytes in native's library, the arithmetic is float. Every
native library passed pared's verification when it was compiled.

kws_gru_s, kws_lstm_s, kws_crnn_s: cells in the body of a Scan, 25, 25 and 20 steps; the LSTM has peepholes
and a projection. dtln_1, dtln_2: two LSTMs of 128 units, one step. sww: a streaming wake word of convolutions
in int8."""


def cases(models: Path) -> Iterator[Case]:
    """Yield every model in every precision; what is quantized already only as it is."""
    for name in FILES:
        for precision in PRECISIONS[: 1 if "int8" in name else 2]:
            yield Case(name, models / f"{name}.onnx", precision)


def measure(case: Case, page: Page, seconds: float, folder: Path) -> None:
    """Time a case beside its peers and add its row; a model that is not supported gets a remark."""
    try:
        made = prepare(case, folder)
    except ParedError as err:
        page.remark(f"{case.name}, {case.precision}: native does not take it: {err.message}")
        return
    native = Native(made.own)
    runs: dict[str, Run] = {"native": native.run, "ORT": in_onnxruntime(made.plain)}
    try:
        peer = in_openvino(made.plain)
        peer()
        runs["OpenVINO"] = peer
    except RuntimeError as err:
        reason = next((line for line in str(err).splitlines() if "can't" in line), "an error of its own")
        page.remark(f"{case.name}, {case.precision}: OpenVINO does not take it ({reason.strip()}).")
    found = compare_latency(runs, rounds=ROUNDS, iterations=3000, limit=seconds)
    times = [_us(found, name) for name in ("native", "ORT", "OpenVINO")]
    ratios = [_ratio(found, name) for name in ("ORT", "OpenVINO")]
    size = (made.own.path / "model.so").stat().st_size
    memory = [f"{size / 1024:.0f}", f"{native.arena_bytes / 1024:.1f}", f"{made.seconds:.1f}"]
    page.add(case.name, case.precision, *times, *ratios, *memory)


def _us(found: Comparison, name: str) -> str:
    return f"{1e3 * found.latencies[name].median_ms:.1f}" if name in found.latencies else ""


def _ratio(found: Comparison, name: str) -> str:
    return f"{found.ratio(name, 'native').median:.2f}" if name in found.latencies else ""


def main() -> None:
    """Measure and write docs/results/cpu_recurrent.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="longest time per model")
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_recurrent.md"))
    parser.add_argument("--folder", type=Path, help="where compiled models are kept between runs")
    arguments = parser.parse_args()
    data = data_folder()
    page = Page(arguments.output, "Recurrent models", ABOUT, HEADINGS)
    with tempfile.TemporaryDirectory() as temporary, pinned(1):
        for case in cases(data / "models"):
            folder = (arguments.folder or Path(temporary)) / f"{case.name}_{case.precision}"
            folder.mkdir(parents=True, exist_ok=True)
            measure(case, page, arguments.seconds, folder)


if __name__ == "__main__":
    main()
