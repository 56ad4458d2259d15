"""Cost of quantizing ResNet-50 (random weights) beside `onnxruntime.quantization.quantize_static`.

    python -m pared.bench.quantizer_cost [docs/results/quantizer_cost.md]

Each run is a process of its own: CPU time of the process and its children, and peak resident memory, both
from the operating system, imports and reading the model included. The two tools take turns. Threads: 1. Both
get the same samples, quantize per channel to QDQ and write the model.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .light_models import light_model
from .results import Page

SHAPE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Cost:
    """CPU seconds and peak resident MB of one process."""

    seconds: float
    megabytes: float


def samples(count: int, name: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield random images one by one."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {name: rng.standard_normal(SHAPE, dtype=np.float32)}


def ours(source: Path, out: Path, count: int, method: str) -> None:
    """Import, clean up, quantize and write: what `pared compile` does before it looks for an engine."""
    from ..compiler.data import open_samples
    from ..compiler.ir.export import signature_of
    from ..compiler.ir.importer import import_model
    from ..compiler.manager import Manager
    from ..compiler.pass_api import Context
    from ..compiler.pipeline import parse_pipeline
    from ..compiler.registry import BACKENDS, MACROS, PASSES
    from ..targets import load_target

    imported = import_model(source)
    signature = signature_of(imported.model)
    data = open_samples(samples(count, signature.inputs[0].name), signature, purpose="calibration")
    text = f"canonicalize,quantize{{range={method}}},relu-into-quantizer,dead-code"
    passes = parse_pipeline(text, PASSES, MACROS)
    result = Manager().run(imported.model, passes, Context(calibration=data))
    backend = BACKENDS["cpu"]()
    out.write_bytes(backend.lower(result.model, load_target("cpu"), "ort", Context()).read("model.onnx"))


def theirs(source: Path, out: Path, count: int, method: str) -> None:
    """Quantize with onnxruntime's own tool."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            name = onnx.load(source, load_external_data=False).graph.input[0].name
            self._samples = samples(count, name)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._samples, None)

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    quantize_static(
        source, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        calibrate_method=methods[method],
    )  # fmt: skip


TOOLS = {"pared": ours, "onnxruntime": theirs}


def measure(tool: str, source: Path, out: Path, count: int, method: str) -> Cost:
    """Run one tool in a fresh process on one core."""
    command = [
        sys.executable,
        "-m",
        "pared.bench.quantizer_cost",
        "--run",
        tool,
        str(source),
        str(out),
        str(count),
        method,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # Installed programs have their byte code cached; compiling it anew is no cost of quantizing.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=_one_core)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{tool} failed with exit code {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Compare, or with --run be one of the two."""
    if sys.argv[1:2] == ["--run"]:
        tool, source, out, count, method = sys.argv[2:]
        TOOLS[tool](Path(source), Path(out), int(count), method)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", default="docs/results/quantizer_cost.md", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    headings = (
        "samples",
        "ranges",
        "tool",
        "CPU s, median",
        "peak MB",
        "ratio of CPU time",
        "ratio of memory",
    )
    page = Page(arguments.page, "Cost of quantizing ResNet-50", __doc__ or "", headings)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet50.onnx"
        onnx.save(light_model("resnet50"), model)
        compare(page, model, arguments.rounds)
        flat(page, model)


def compare(page: Page, source: Path, rounds: int) -> None:
    """32 samples, both tools in turn."""
    found: dict[str, list[Cost]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool, costs in found.items():
            costs.append(measure(tool, source, source.with_name(f"{tool}.onnx"), 32, "minmax"))
    base = found["onnxruntime"]
    for tool, costs in found.items():
        cpu = statistics.median(a.seconds / b.seconds for a, b in zip(costs, base, strict=True))
        memory = statistics.median(a.megabytes / b.megabytes for a, b in zip(costs, base, strict=True))
        seconds = statistics.median(c.seconds for c in costs)
        peak = statistics.median(c.megabytes for c in costs)
        page.add(32, "min-max", tool, f"{seconds:.2f}", f"{peak:.0f}", f"{cpu:.2f}", f"{memory:.2f}")


def flat(page: Page, source: Path) -> None:
    """Percentile ranges over more and more samples: memory must stay flat."""
    for count in (32, 200, 1000):
        cost = measure("pared", source, source.with_name("pared.onnx"), count, "percentile")
        page.add(count, "percentile", "pared", f"{cost.seconds:.2f}", f"{cost.megabytes:.0f}", "", "")


if __name__ == "__main__":
    main()
