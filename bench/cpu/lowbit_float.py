"""Weights-only products with float activations beside onnxruntime's MatMulNBits: layers, and a whole model.

    python -m pared.bench.cpu.lowbit_float [--rounds 9]

Random weights. Layers read cold weights: each call takes the next of enough copies to exceed every cache.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ... import compile as compile_model
from ...backends.cpu.native.isa import Isa
from ...backends.cpu.native.kernels import lowbit_f32
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from . import layer_peers as peers
from .kernels import aligned, bind, memory_read, rotate, this_isa
from .models import Native, in_onnxruntime

Run = Callable[[], object]
SIZE, COPIES = 4096, 6
FORMS: tuple[tuple[lowbit_f32.Bits, int, int], ...] = (
    (4, 32, 1),
    (4, 128, 1),
    (4, 32, 8),
    (2, 32, 1),
    (1, 32, 1),
    (8, 128, 1),
)
HIDDEN, INNER, BLOCKS = 2048, 5632, 2
HEADINGS = (
    "what", "bits", "block", "rows", "MB", "us", "GB/s", "of the memory", "ORT level 0 us", "ORT level 4 us",
    "x level 0", "x level 4",
)  # fmt: skip
ABOUT = f"""`python -m pared.bench.cpu.lowbit_float`. Weights are integers with a float32 scale per block,
activations stay float32 (kernels/lowbit_f32.py); one pinned core, candidates interleaved, CPU time per run,
cold weights. Peer: onnxruntime's MatMulNBits at accuracy_level 0, which computes in float as well, and at
level 4, which rounds activations to 8 bits and is not the same function; what pared does there
(`--precision w4a8-dynamic`) is on [a page of its own](cpu_lowbit_dynamic.md).

Layers are {SIZE} x {SIZE}. The model is {BLOCKS} gated feed-forward blocks {HIDDEN}-{INNER}-{HIDDEN} for one
token, a MatMulNBits file that pared imports and compiles with its verification. The share of the memory
bandwidth is that of NumPy adding up as many bytes of int64, cold as well, in the same rounds."""


SLOW_PEER = """At level 0 onnxruntime takes 50 times as long for 2 and 8 bits as for 4, so it seems to have no
fast kernel there (not looked into): those ratios say nothing about this one. Compare with level 4."""
BOUND = """One row is bound by unpacking, not by memory: a shift, a permutation and a multiply-add for 16
weights, and the first two share two pipes of Zen 4: 2 cycles, 570 us for the layers (estimated), whatever the
width. Tried instead: codes masked into the mantissa and a subtraction, without shifts: 690 us, for its
constants come from memory. Rounded activations (level 4) need a quarter of the instructions."""


def own_product(bits: lowbit_f32.Bits, block: int, rows: int, isa: Isa) -> tuple[Run, int]:
    """Return calls of the kernel that take turns over copies of the weights, and the bytes of one copy."""
    zero = 1 << (bits - 1) if bits > 1 else 0
    spec = lowbit_f32.LowbitF32Spec(rows, SIZE, SIZE, bits, block, zero, bits == 1)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (SIZE, SIZE)).astype(np.uint8)
    scale = rng.random((SIZE, spec.blocks), np.float32)
    stream, *more = lowbit_f32.pack(spec, codes, scale, table=lowbit_f32.uses_table(spec, isa))
    x = aligned(rng.standard_normal((rows, SIZE), np.float32))
    y = aligned(np.zeros((rows, SIZE), np.float32))
    module = lowbit_f32.build(spec, isa)
    runs = [bind(module, isa, [x, aligned(stream.copy()), *more, y], spec.tasks()) for _ in range(COPIES)]
    return rotate(runs), stream.nbytes


def blocks_model(level: int) -> onnx.ModelProto:
    """Return gated feed-forward blocks of MatMulNBits, 4 bits in blocks of 32."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def product(x: str, depth: int, outputs: int, name: str) -> str:
        codes = rng.integers(0, 256, (outputs, depth // 32, 16)).astype(np.uint8)
        # Weights of about unit gain: codes minus 8 have a deviation of 4.6.
        scale = np.full(outputs * depth // 32, 1 / (4.6 * np.sqrt(depth)), np.float32)
        constants.extend(numpy_helper.from_array(a, f"{name}_{k}") for k, a in (("q", codes), ("s", scale)))
        node = helper.make_node(
            "MatMulNBits", [x, f"{name}_q", f"{name}_s"], [name], name=name, domain="com.microsoft"
        )
        sizes = {"K": depth, "N": outputs, "bits": 4, "block_size": 32, "accuracy_level": level}
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
        nodes.append(node)
        return name

    x = "x"
    for i in range(BLOCKS):
        gate, up = product(x, HIDDEN, INNER, f"gate{i}"), product(x, HIDDEN, INNER, f"up{i}")
        nodes.append(helper.make_node("Sigmoid", [gate], [f"s{i}"]))
        nodes.append(helper.make_node("Mul", [gate, f"s{i}"], [f"silu{i}"]))
        nodes.append(helper.make_node("Mul", [f"silu{i}", up], [f"inner{i}"]))
        down = product(f"inner{i}", INNER, HIDDEN, f"down{i}")
        nodes.append(helper.make_node("Add", [x, down], [f"x{i + 1}"]))
        x = f"x{i + 1}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, HIDDEN]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "blocks", ports[:1], ports[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _row(page: Page, found: Comparison, what: tuple[object, ...], size: int) -> None:
    us = {name: 1e3 * latency.cpu_ms for name, latency in found.latencies.items()}
    share = f"{us['memory'] / us['own']:.0%}"
    peers_us = [f"{us[name]:.0f}" if name in us else "" for name in ("level 0", "level 4")]
    ratios = [f"{us[name] / us['own']:.2f}" if name in us else "" for name in ("level 0", "level 4")]
    rate = f"{size / us['own'] / 1e3:.1f}"
    page.add(*what, f"{size / 1e6:.1f}", f"{us['own']:.0f}", rate, share, *peers_us, *ratios)


def layers(page: Page, rounds: int, isa: Isa) -> None:
    """Measure single products."""
    for bits, block, rows in FORMS:
        own, size = own_product(bits, block, rows, isa)
        candidates = {"own": own, "memory": memory_read(size, COPIES)}
        if bits > 1:
            for level in (0, 4):
                made = [peers.block_product(bits, block, SIZE, seed, level, rows) for seed in range(4)]
                candidates[f"level {level}"] = rotate([peers.in_onnxruntime(model) for model in made])
        found = compare_latency(candidates, rounds=rounds, iterations=15 * rounds)
        _row(page, found, ("layer", bits, block, rows), size)


def whole(page: Page, rounds: int) -> None:
    """Measure the whole model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = compile_model(
            blocks_model(0), engine="native", threads=1, output=folder / "own", force=True
        )
        native = Native(artifact)
        size = native.constant_bytes
        candidates: dict[str, Run] = {"own": native.run, "memory": memory_read(size, 2)}
        for level in (0, 4):
            path = folder / f"{level}.onnx"
            onnx.save(blocks_model(level), path)
            candidates[f"level {level}"] = in_onnxruntime(path)
        found = compare_latency(candidates, rounds=rounds, iterations=10 * rounds)
    _row(page, found, ("model", 4, 32, 1), size)


def main() -> None:
    """Measure and write docs/results/cpu_lowbit_float.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_lowbit_float.md"))
    arguments = parser.parse_args()
    page = Page(arguments.output, "Low-bit weights with float activations", ABOUT, HEADINGS)
    with pinned(1):
        whole(page, arguments.rounds)
        layers(page, arguments.rounds, this_isa())
    page.remark("onnxruntime has no weights of one bit. `x level`: how many times as long onnxruntime takes.")
    page.remark(SLOW_PEER)
    page.remark(BOUND)


if __name__ == "__main__":
    main()
