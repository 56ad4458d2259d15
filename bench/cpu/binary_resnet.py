"""A binarized ResNet-18 in engine `native` beside the float and int8 ResNet-18 in onnxruntime and OpenVINO.

    python -m pared.bench.cpu.binary_resnet [--seconds 40]

Compiles with `pared.compile`, its verification included, then times all in one interleaved run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from ... import compile as compile_model
from ...compiler.artifact.read import Artifact
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from .binary_nets import binary_resnet18
from .models import Native, Run, in_onnxruntime, in_openvino
from .nets import resnet18

HEADINGS = ("model", "engine", "ms", "x ORT f32", "x best int8", "library KiB", "arena KiB", "compile s")
INT8 = ("ORT int8", "OpenVINO int8")
ABOUT = """`python -m pared.bench.cpu.binary_resnet`. 224x224, batch 1, one pinned core, one thread, rounds in
turn, medians of wall time; ratios are medians of the ratios of each round. Random weights
everywhere. Inputs and outputs are bound once.

Binary: `bench/cpu/binary_nets.py`, QONNX, compiled by `pared.compile(engine="native")` and verified by it
against the reference. The 16 convolutions of 3x3 are binary; the first convolution, those of 1x1 in the
shortcuts and the last layer are int8. `shortcuts`: a real-valued stream with a shortcut around every binary
layer (Bi-Real Net), `plain`: bits from layer to layer. Float and int8: ResNet-18 of the same sizes; int8 is
QDQ, quantized by pared, one scale per output channel."""


def _compiled(model: onnx.ModelProto, folder: Path, precision: str, engine: str) -> tuple[Artifact, float]:
    calibration = None
    if precision == "int8":
        calibration = {"x": np.random.default_rng(1).standard_normal((4, 3, 224, 224), np.float32)}
    start = time.perf_counter()
    made = compile_model(
        model,
        precision=precision,
        calibration=calibration,
        engine=engine,
        force=True,
        threads=1,
        output=folder,
    )
    return made, time.perf_counter() - start


def main() -> None:
    """Measure and write docs/results/cpu_binary_resnet.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_binary_resnet.md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as name, pinned(1):
        folder = Path(name)
        own: dict[str, tuple[Native, tuple[str, ...]]] = {}
        for kind in ("shortcuts", "plain"):
            made, seconds = _compiled(binary_resnet18(kind == "shortcuts"), folder / kind, "float", "native")
            native = Native(made)
            size = (made.path / "model.so").stat().st_size
            cells = f"{size / 1024:.0f}", f"{native.arena_bytes / 1024:.0f}", f"{seconds:.1f}"
            own[f"binary, {kind}"] = native, cells
        runs: dict[str, Run] = {key: native.run for key, (native, _) in own.items()}
        for precision in ("float", "int8"):
            made, _ = _compiled(resnet18(), folder / precision, precision, "ort")
            label = "f32" if precision == "float" else "int8"
            runs[f"ORT {label}"] = in_onnxruntime(made.path / "model.onnx")
            runs[f"OpenVINO {label}"] = in_openvino(made.path / "model.onnx")
        rounds = arguments.rounds
        found = compare_latency(runs, rounds=rounds, iterations=100 * rounds, limit=arguments.seconds)
        _write(Page(arguments.output, "Binarized ResNet-18", ABOUT, HEADINGS), found, own)


def _write(page: Page, found: Comparison, own: dict[str, tuple[Native, tuple[str, ...]]]) -> None:
    times = {key: float(np.median(values)) for key, values in found.round_medians_ms.items()}
    best = min(INT8, key=lambda key: times[key])
    for key, ms in times.items():
        ratios = [f"{found.ratio(base, key).median:.2f}" for base in ("ORT f32", best)]
        cells = own[key][1] if key in own else ("", "", "")
        label = (key, "native") if key in own else ("ResNet-18", key)
        page.add(*label, f"{ms:.2f}", *ratios, *cells)
    page.remark(
        "`x`: how many times as long the peer takes. Goals: 8 against ORT f32, 2 against the best int8."
    )


if __name__ == "__main__":
    main()
