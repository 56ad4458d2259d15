"""Compile time and peak memory against graph size and weight size.

    python -m pared.bench.compile_scaling [docs/results/compile_scaling.md]

Every row is one `pared compile --engine ort` (-O2) in a process of its own, on one core. Graphs: chains of
Conv, Relu and a residual Add with 8 channels. Weights: chains of square MatMuls in external data; int8 has 4
calibration samples, w8 quantizes weights only, and both time float beside them. Memory is the peak resident
set as the operating system counts it, mapped pages of the model file included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .results import Page

NODES = (100, 1_000, 10_000)
MEGABYTES = (10, 100, 1_000)
WIDTH = 1024
_DENSE = "MB of weights"


def chain(nodes: int) -> onnx.ModelProto:
    """Return a residual network of about `nodes` nodes on [1, 8, 8, 8]."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph([], "chain", [_value("x", [1, 8, 8, 8])], [])
    last = "x"
    for index in range(nodes // 3):
        # Small enough that values stay finite through all layers.
        weight = (rng.standard_normal((8, 8, 3, 3)) / (30 + nodes)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"w{index}"))
        graph.node.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        graph.node.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        graph.node.append(helper.make_node("Add", [last, f"r{index}"], [f"a{index}"]))
        last = f"a{index}"
    graph.output.append(_value(last, [1, 8, 8, 8]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dense(megabytes: int) -> onnx.ModelProto:
    """Return a chain of MatMul and Relu with about `megabytes` MB of float weights on [1, 1024]."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph([], "dense", [_value("x", [1, WIDTH])], [])
    last = "x"
    for index in range(max(1, megabytes * 1_000_000 // (4 * WIDTH * WIDTH))):
        weight = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(np.sqrt(WIDTH / 2))
        graph.initializer.append(numpy_helper.from_array(weight, f"w{index}"))
        graph.node.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        graph.node.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"]))
        last = f"r{index}"
    graph.output.append(_value(last, [1, WIDTH]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def measure(model: Path, extra: list[str]) -> tuple[float, float, float]:
    """Compile in a fresh process; return CPU seconds, wall seconds and peak MB."""
    command = [sys.executable, "-m", "pared.compiler.cli.app", "compile", "-m", str(model), *extra]
    command += ["-o", str(model.parent / "out"), "--engine", "ort", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=_one_core, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024


def _one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Measure every size and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", default="docs/results/compile_scaling.md", type=Path)
    arguments = parser.parse_args()
    headings = ("what", "size", "precision", "CPU s", "wall s", "peak MB", "per unit", "peak / weights")
    page = Page(arguments.page, "Compile time and memory", __doc__ or "", headings)
    for nodes in NODES:
        _rows(page, "nodes", nodes, ("float",))
    for megabytes in MEGABYTES:
        _rows(page, _DENSE, megabytes, ("float", "int8", "w8"))


def _rows(page: Page, what: str, size: int, precisions: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, samples = Path(folder) / "model.onnx", Path(folder) / "samples.npz"
        # Elsewhere, because a process starts with the peak memory of the one that it was forked from.
        maker = multiprocessing.get_context("spawn").Process(target=_make, args=(what, size, path))
        maker.start()
        maker.join()
        np.savez(samples, x=np.random.default_rng(1).standard_normal((4, WIDTH), dtype=np.float32))
        weights = sum(f.stat().st_size for f in path.parent.glob("model.onnx*")) / 1e6
        for precision in precisions:
            extra = [] if precision == "float" else ["--precision", precision]
            extra += ["--calib-data", str(samples)] if precision == "int8" else []
            seconds, wall, peak = measure(path, extra)
            unit = f"{1000 * seconds / size:.2f} ms"
            share = f"{peak * 1.048576 / weights:.2f}" if what == _DENSE else ""
            page.add(what, size, precision, f"{seconds:.2f}", f"{wall:.2f}", f"{peak:.0f}", unit, share)


def _make(what: str, size: int, path: Path) -> None:
    if what == _DENSE:
        onnx.save(dense(size), path, save_as_external_data=True, location="model.onnx.data")
    else:
        onnx.save(chain(size), path)


if __name__ == "__main__":
    main()
