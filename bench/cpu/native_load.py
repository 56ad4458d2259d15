"""Loading a compiled int8 MobileNetV2: a C host, `pared.load`, and the peers, each in processes of their own.

    python -m pared.bench.cpu.native_load

Writes docs/results/native_load.md. Needs the extras `tvm` and `bench`, and a C compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from ... import compile as compile_model
from ...backends.cpu.native.isa import host_isa
from ...backends.cpu.native.link import compiler_for
from ...compiler.backend import Verdict
from ...compiler.errors import ParedError
from ..results import Page
from .nets import mobilenet_v2

RUNS = 9
KIB = 1024
ABOUT = """`python -m pared.bench.cpu.native_load`. MobileNetV2-224 with random weights, int8 by pared, batch
1, one thread; medians of {runs} processes, files in the page cache. Open: the call that loads (`dlopen`, or
the session's constructor), imports not counted; first: from there to the first result; run: a run after
that. Memory is the process's peak (VmHWM), `more` what it exceeds the process before loading by. onnxruntime
and OpenVINO load the QDQ graph that lies in the same artifact; `pared.load` checks all its hashes. LiteRT is
missing: there is no `.tflite` of this model."""
HEADINGS = ("loader", "open ms", "first ms", "run ms", "peak MiB", "more MiB")

# Each prints open, first, run (ms), VmRSS before and VmHWM after (KiB).
_PYTHON = """
import sys, time, statistics, numpy as np
def status(key):
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))
{imports}
x = np.zeros((1, 3, 224, 224), np.float32)
before, start = status('VmRSS:'), time.perf_counter()
{load}
opened = time.perf_counter()
{run}
first, times = time.perf_counter(), []
for _ in range(20):
    begin = time.perf_counter()
    {run}
    times.append(time.perf_counter() - begin)
print((opened - start) * 1e3, (first - opened) * 1e3, statistics.median(times) * 1e3)
print(before, status('VmHWM:'))
"""
_LOADERS = {
    "pared.load": (
        "import pared, pared.compiler.runtime, pared.backends.cpu.backend",
        "m = pared.load(sys.argv[1], threads=1)",
        "m.run({'x': x})",
    ),
    "onnxruntime": (
        "import onnxruntime as ort\no = ort.SessionOptions()\no.intra_op_num_threads = 1",
        "m = ort.InferenceSession(sys.argv[1] + '/model.onnx', o, providers=['CPUExecutionProvider'])\n"
        "n = m.get_inputs()[0].name",
        "m.run(None, {n: x})",
    ),
    "OpenVINO": (
        "import openvino as ov",
        "m = ov.Core().compile_model(sys.argv[1] + '/model.onnx', 'CPU', {'INFERENCE_NUM_THREADS': 1})",
        "m([x])",
    ),
}


def main() -> None:
    """Compile, load and write the page."""
    page = Page(Path("docs/results/native_load.md"), "Loading", ABOUT.format(runs=RUNS), HEADINGS)
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        folder = Path(name)
        _compile(folder / "model")
        host = _host(folder)
        sizes = _add(page, "C host", [str(host), str(folder / "model" / "model.so")])
        for label, (imports, load, run) in _LOADERS.items():
            script = folder / "load.py"
            script.write_text(_PYTHON.format(imports=imports, load=load, run=run))
            _add(page, label, [sys.executable, str(script), str(folder / "model")])
    arena, constants = (int(size) / KIB**2 for size in sizes)
    page.remark(f"Weights {constants:.2f} MiB, arena {arena:.2f} MiB, input and output 0.58 MiB.")


def _compile(folder: Path) -> None:
    sample = np.random.default_rng(1).standard_normal((4, 3, 224, 224), np.float32)
    compile_model(
        mobilenet_v2(), precision="int8", calibration={"x": sample}, engine="native", force=True, threads=1,
        output=folder,
    )  # fmt: skip


def _host(folder: Path) -> Path:
    isa = host_isa()
    if isinstance(isa, Verdict):
        raise SystemExit(isa.reason)
    source, made = Path(__file__).with_name("host_load.c"), folder / "host"
    command = [*compiler_for(isa.arch), "-O2", f"-I{folder / 'model'}", str(source), "-o", str(made), "-ldl"]
    subprocess.run(command, check=True)
    return made


def _add(page: Page, label: str, command: list[str]) -> list[str]:
    """Add a row; return what the program printed behind the five figures of a row."""
    lines = []
    for _ in range(RUNS):
        ran = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        if ran.returncode:
            page.remark(f"{label}: {ran.stderr.strip().splitlines()[-1]}")
            return []
        lines.append(ran.stdout.split())
    opened, first, run, before, peak = (median(float(line[i]) for line in lines) for i in range(5))
    memory = [f"{peak / KIB:.1f}", f"{(peak - before) / KIB:.1f}"]
    page.add(label, f"{opened:.2f}", f"{first:.2f}", f"{run:.2f}", *memory)
    return lines[0][5:]


if __name__ == "__main__":
    try:
        main()
    except ParedError as error:
        sys.exit(str(error))
