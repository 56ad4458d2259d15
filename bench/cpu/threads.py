"""Engine `native` on one and on two threads, beside onnxruntime with as many.

    python -m pared.bench.cpu.threads [--models resnet50 …] [--page docs/results/native_threads.md]

The same artifact is loaded once per number of threads; one and two threads take turns in one process that
may use two cores. `gain` is the median over rounds of time on one thread over time on two. Small layers stay
on one thread (`PARALLEL_WORK` in backends/cpu/native/codegen.py): tiny models gain and lose nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from ... import compile as compile_model
from ... import load
from ...compiler.backend import Array
from ...compiler.errors import DataError
from ...compiler.ort import make_session, run_session
from ..light_models import light_model
from ..meter import compare_latency, pinned
from ..results import Page
from .models import mlp
from .nets import mobilenet_v2, resnet18

MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet50": lambda: light_model("resnet50"),
    "mobilenet_v2": mobilenet_v2,
    "MLP 784-512-512-10": lambda: mlp((784, 512, 512, 10)),
}
HEADINGS = ("model", "precision", "1 thread ms", "2 threads ms", "gain", "onnxruntime's gain")
THREADS = (1, 2)


def measure(name: str, precision: str | None, page: Page) -> None:
    """Compile once, load per number of threads, and add a row."""
    model = MODELS[name]()
    port = model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    data = {port.name: rng.standard_normal((8, *shape[1:])).astype(np.float32)}
    one: dict[str, Array] = {port.name: data[port.name][:1]}
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as folder:
        artifact = compile_model(
            model,
            precision=precision,
            calibration=data if precision else None,
            output=Path(folder) / "out",
            engine="native",
            force=True,
        )
        with pinned(max(THREADS)), load(artifact.path, threads=1) as first, load(artifact.path, 2) as second:
            runs: dict[str, Callable[[], object]] = {
                "native 1": lambda: first.run(one),
                "native 2": lambda: second.run(one),
            }
            sessions = {n: make_session(artifact.path / "model.onnx", threads=n) for n in THREADS}
            for threads, session in sessions.items():
                inputs = _as_model_takes(session.get_inputs()[0].name, one)
                runs[f"ort {threads}"] = lambda s=session, i=inputs: run_session(s, i)  # type: ignore[misc]
            found = compare_latency(runs, rounds=9, iterations=90, limit=20.0)
    medians = {key: float(np.median(times)) for key, times in found.round_medians_ms.items()}
    page.add(
        name,
        precision or "float",
        f"{medians['native 1']:.4g}",
        f"{medians['native 2']:.4g}",
        f"{found.ratio('native 1', 'native 2').median:.2f}",
        f"{found.ratio('ort 1', 'ort 2').median:.2f}",
    )


def _as_model_takes(name: str, inputs: dict[str, Array]) -> dict[str, Array]:
    (array,) = inputs.values()
    return {name: array}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--page", type=Path, default=Path("docs/results/native_threads.md"))
    options = parser.parse_args(arguments)
    if (os.cpu_count() or 1) < max(THREADS):
        raise DataError("bench-cores", f"{max(THREADS)} cores are needed, {os.cpu_count()} is here", "")
    page = Page(options.page, "Threads of engine native", __doc__ or "", HEADINGS)
    for name in options.models:
        for precision in (None, "int8"):
            measure(name, precision, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
