"""What `--precision w4a8-dynamic` and `w2a8-dynamic` give beside onnxruntime's MatMulNBits: whole models.

    python -m pared.bench.cpu.lowbit_dynamic [--rounds 15]

Random weights; together they exceed every cache, so that each layer reads its own from memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ... import compile as compile_model
from ...compiler.artifact.read import open_artifact
from ..meter import compare_latency, pinned
from ..results import Page
from .kernels import memory_read
from .models import Native, in_onnxruntime

SIZE, LAYERS, BLOCK = 4096, 5, 32
FORMS = ((4, 1), (4, 4), (2, 1))
HEADINGS = ("bits", "rows", "MB", "us per layer", "GB/s", "of the memory", "ORT us", "x ORT")
ABOUT = f"""`python -m pared.bench.cpu.lowbit_dynamic`. A float model of {LAYERS} layers MatMul + bias + Relu,
{SIZE} x {SIZE}, compiled with `--precision w4a8-dynamic` or `w2a8-dynamic` for engine `native`, verification
included: weights in blocks of {BLOCK} with float32 scales, activations rounded to int8 per block in
the run, the bias added in the kernel. Peer: onnxruntime's MatMulNBits with bias at accuracy_level 4, which
rounds activations too; {LAYERS} such layers with weights of its own in one session. One pinned core,
candidates interleaved, CPU time per run divided by {LAYERS}; weights are cold, for the others were read
since.

The share of the memory bandwidth is that of NumPy adding up as many bytes of int64, cold as well, in the
same rounds."""


def dense_model(rows: int) -> onnx.ModelProto:
    """Return layers in float32."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for i in range(LAYERS):
        weight = rng.standard_normal((SIZE, SIZE), np.float32) * np.float32((2 / SIZE) ** 0.5)
        bias = rng.standard_normal(SIZE, np.float32) / np.float32(10)
        constants += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"], name=f"layer{i}"))
        nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"x{i + 1}"]))
    return _model(nodes, constants, rows, [helper.make_opsetid("", 21)])


def peer_model(bits: int, rows: int) -> onnx.ModelProto:
    """Return layers of MatMulNBits."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    sizes = {"K": SIZE, "N": SIZE, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    for i in range(LAYERS):
        arrays = {
            "q": rng.integers(0, 256, (SIZE, SIZE // BLOCK, BLOCK * bits // 8)).astype(np.uint8),
            "s": rng.random(SIZE * SIZE // BLOCK, np.float32) / np.float32(300),
            "b": rng.standard_normal(SIZE, np.float32),
        }
        constants += [numpy_helper.from_array(array, f"{key}{i}") for key, array in arrays.items()]
        inputs = [f"x{i}", f"q{i}", f"s{i}", "", "", f"b{i}"]
        node = helper.make_node("MatMulNBits", inputs, [f"a{i}"], domain="com.microsoft")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
        nodes += [node, helper.make_node("Relu", [f"a{i}"], [f"x{i + 1}"])]
    return _model(
        nodes, constants, rows, [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    )


def _model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    rows: int,
    opsets: list[onnx.OperatorSetIdProto],
) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, SIZE]) for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "layers", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def prepare(folder: Path, bits: int, rows: int) -> None:
    """Write both models into `folder`, unless an earlier run did."""
    own, peer = folder / f"own{bits}_{rows}", folder / f"peer{bits}_{rows}.onnx"
    if not own.is_dir():
        precision = f"w{bits}a8-dynamic"
        compile_model(
            dense_model(rows), precision=precision, engine="native", threads=1, force=True, output=own
        )
    if not peer.is_file():
        onnx.save(peer_model(bits, rows), peer)


def measure(page: Page, folder: Path, bits: int, rows: int, rounds: int) -> None:
    """Time a model in `folder` and add a row."""
    prepare(folder, bits, rows)
    native = Native(open_artifact(folder / f"own{bits}_{rows}"))
    size = native.constant_bytes // LAYERS
    candidates = {
        "own": native.run,
        "ORT": in_onnxruntime(folder / f"peer{bits}_{rows}.onnx"),
        "memory": memory_read(size, LAYERS),
    }
    found = compare_latency(candidates, rounds=rounds, iterations=5 * rounds)
    us = {key: 1e3 * latency.cpu_ms for key, latency in found.latencies.items()}
    us = {key: time if key == "memory" else time / LAYERS for key, time in us.items()}
    page.add(
        bits, rows, f"{size / 1e6:.1f}", f"{us['own']:.0f}", f"{size / us['own'] / 1e3:.1f}",
        f"{us['memory'] / us['own']:.0%}", f"{us['ORT']:.0f}", f"{us['ORT'] / us['own']:.2f}",
    )  # fmt: skip


def main() -> None:
    """Measure and write docs/results/cpu_lowbit_dynamic.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_lowbit_dynamic.md"))
    parser.add_argument("--folder", type=Path, help="keep the models there for the next run")
    arguments = parser.parse_args()
    title = "Low-bit weights, activations in int8 blocks at run time"
    page = Page(arguments.output, title, ABOUT, HEADINGS)
    with pinned(1), tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        for bits, rows in FORMS:
            measure(page, arguments.folder or Path(name), bits, rows, arguments.rounds)
    page.remark("`x ORT`: how many times as long onnxruntime takes.")


if __name__ == "__main__":
    main()
