"""Real perceptrons of one and two bits: the native engine beside onnxruntime on the same graph in float.

PARED_DATA=/path/to/data python -m pared.bench.cpu.binary_models [--rounds 11]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...backends.cpu.native import codegen
from ...backends.cpu.native.engine import NativeExecutable, load
from ...backends.cpu.native.isa import Isa
from ...backends.cpu.native.lower import lower
from ...backends.cpu.native.planner import plan
from ...backends.reference import evaluate
from ...compiler.backend import Arrays
from ...compiler.ir.importer import import_model
from ...compiler.manager import Manager
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context
from ...compiler.pipeline import parse_pipeline
from ...compiler.registry import MACROS, PASSES
from ..data import data_folder
from ..meter import compare_latency, pinned
from ..results import Page
from .kernels import this_isa

Run = Callable[[], object]
MODELS = ("tfc_1w1a_qonnx", "tfc_2w2a_qonnx")
SAMPLES = 100
ABOUT = """`python -m pared.bench.cpu.binary_models`. 784-64-64-64-10, batch 1, one pinned core, candidates
interleaved, medians of rounds; both are called from Python with a dictionary of arrays. onnxruntime runs the
graph with its quantizers written in standard float operators, all optimisations on. Native's outputs are
compared with the reference on 100 inputs, a third of the pixels on the tie of the first quantizer, before
it is timed."""


def compile_native(model: ir.Model, isa: Isa, folder: Path) -> NativeExecutable:
    """Compile `model` into a library in `folder` and load it."""
    program = lower(model, isa)
    for name, content in codegen.build(program, plan(program), isa).items():
        (folder / name).write_bytes(content)
    return load(folder, {"isa": " ".join([isa.arch, *isa.features]), "batched": False}, 1)


def inputs_of(model: ir.Model) -> list[Arrays]:
    """Return random images; a third of the pixels lie exactly on the tie."""
    x = np.random.default_rng(0).random((SAMPLES, 1, 1, 28, 28), np.float32)
    x[x < 1 / 3] = 0.5
    return [{str(model.graph.inputs[0].name): sample} for sample in x]


def differing(native: NativeExecutable, model: ir.Model, samples: list[Arrays]) -> int:
    """Return how many samples have an output that is not the reference's to the last bit."""
    found = 0
    for sample in samples:
        got, want = native.run(sample), evaluate(model, sample)
        found += any(not np.array_equal(got[name], value) for name, value in want.items())
    return found


def main() -> None:
    """Measure and write docs/results/cpu_binary_models.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_binary_models.md"))
    arguments = parser.parse_args()
    data = data_folder()
    headings = ["model", "differs from the reference", "native us", "ORT float us", "x ORT", "library KiB"]
    page = Page(arguments.output, "Perceptrons of one and two bits", ABOUT, headings)
    canonicalize = parse_pipeline("canonicalize", PASSES, MACROS)
    for name in MODELS:
        original = import_model(data / "models" / f"{name}.onnx").model
        model = Manager().run(original, canonicalize, Context()).model
        samples = inputs_of(model)
        with pinned(1), tempfile.TemporaryDirectory(prefix="pared-bench-") as folder:
            native = compile_native(model, this_isa(), Path(folder))
            wrong = differing(native, original, samples)
            session, sample = make_session(model, threads=1), samples[0]
            candidates: dict[str, Run] = {
                "native": functools.partial(native.run, sample),
                "ORT": functools.partial(run_session, session, sample),
            }
            found = compare_latency(candidates, rounds=arguments.rounds, iterations=200 * arguments.rounds)
            medians = [1e3 * float(np.median(found.round_medians_ms[key])) for key in candidates]
            size = sum(path.stat().st_size for path in Path(folder).glob("*.so")) / 1024
            ratio = found.ratio("ORT", "native").median
            times = [f"{us:.1f}" for us in medians]
            page.add(name, f"{wrong} of {SAMPLES}", *times, f"{ratio:.1f}", f"{size:.0f}")
            native.close()


if __name__ == "__main__":
    main()
