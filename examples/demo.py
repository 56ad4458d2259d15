"""The main job on a bundled model: compile to int8, verify on labelled data, measure beside onnxruntime.

Run it by `make demo`, or `python examples/demo.py [folder for the artifact]`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import pared
from pared.bench.bench import BenchReport
from pared.compiler.verify import VerifyReport

HERE = Path(__file__).parent
MODEL = HERE / "models" / "digits_resnet.onnx"
CALIBRATION = HERE / "data" / "digits_calibration.npz"
TEST = HERE / "data" / "digits_test.npz"


def main() -> int:
    """Compile, verify, measure and print; the exit code says whether it verified."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/digits_resnet")
    artifact = pared.compile(MODEL, precision="int8", calibration=CALIBRATION, output=out)
    verified = pared.verify(out, TEST)
    benched = pared.bench(out)
    table = Table("", "float original", "artifact", title=f"examples/models/{MODEL.name} -> {out}")
    for row in rows(artifact, verified, benched):
        table.add_row(*row)
    Console().print(table)
    with pared.load(out) as model, np.load(TEST) as test:
        logits = model.run({"image": test["image"][:1]})["logits"]
        print(f"first test image: predicted {logits.argmax()}, label {test['labels'][0]}")
    command = Path(sys.executable).with_name("pared")
    print(f"next: {os.path.relpath(command)} verify {out} --data {os.path.relpath(TEST)}")
    return 0 if verified.passed else 1


def rows(
    artifact: pared.Artifact, verified: VerifyReport, benched: BenchReport
) -> Iterator[tuple[str, str, str]]:
    """Yield label, figure of the float original, figure of the artifact."""
    yield "precision", "float32", artifact.manifest.choice.precision
    for metric in verified.metrics:
        label = f"{metric.metric} on {metric.samples} test images"
        yield label, f"{metric.reference:.2f} %", f"{metric.artifact:.2f} %"
    yield "model file", f"{MODEL.stat().st_size / 1000:.1f} kB", f"{artifact.payload_bytes() / 1000:.1f} kB"
    ours, peer = (1000 * candidate.latency.percentiles["p50"] for candidate in benched.candidates[:2])
    yield "median latency, 1 thread (measured)", f"{peer:.1f} us in onnxruntime", f"{ours:.1f} us"
    for check in verified.outputs:
        state = "within" if check.passed else "OUTSIDE"
        yield f"{check.output} against {check.against}", "", f"{state} the stated bound"


if __name__ == "__main__":
    sys.exit(main())
