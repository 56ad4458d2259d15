"""The arena of whole models: bound, plan and naive sum of the native engine's programs, float32, batch 1.

    python -m pared.bench.cpu.memory_plan [NAMES...]

Nothing is compiled, TVM is not needed. Writes docs/results/memory_plan.md.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...backends.cpu.native.isa import host_isa
from ...backends.cpu.native.lower import sketch
from ...backends.cpu.native.planner import plan
from ...compiler.backend import Verdict
from ...compiler.driver.job import Inputs, prepare
from ...compiler.driver.variants import FLOAT, build_variants
from ...compiler.errors import UnsupportedOp
from ...compiler.manager import Manager
from ...compiler.recipe import Recipe
from ..light_models import NAMES as LIGHT
from ..light_models import light_model
from ..results import Page

# t (expansion), c (channels), n (repeats), s (stride): table 2 of arXiv 1801.04381.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
KIB = 1024


class _Net:
    """An ONNX graph under construction; weights are random."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        array = self.rng.standard_normal(shape, dtype=np.float32) * np.sqrt(2 / np.prod(shape[1:])).astype(
            np.float32
        )
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, **attributes: int | list[int]) -> str:
        name = f"v{len(self.nodes)}"
        made = helper.make_node(op, inputs, [name], name)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(made)
        return name

    def conv(
        self, x: str, shape: tuple[int, int, int], stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        inputs, outputs, kernel = shape
        weight = self.weight(outputs, inputs // group, kernel, kernel)
        pads = [kernel // 2] * 4
        y = self.node("Conv", x, weight, strides=[stride, stride], pads=pads, group=group)
        return self.node("Clip", y, "zero", "six") if relu else y


def mobilenet_v2() -> onnx.ModelProto:
    """Return MobileNetV2 for 224 x 224 with random weights, normalization folded."""
    net = _Net()
    x, channels = net.conv("x", (3, 32, 3), 2), 32
    for expansion, outputs, repeats, stride in _STAGES:
        for i in range(repeats):
            y, wide, step = x, channels * expansion, stride if i == 0 else 1
            y = net.conv(y, (channels, wide, 1)) if expansion > 1 else y
            y = net.conv(y, (wide, wide, 3), step, wide)
            y = net.conv(y, (wide, outputs, 1), relu=False)
            x = net.node("Add", x, y) if step == 1 and channels == outputs else y
            channels = outputs
    x = net.node("Flatten", net.node("GlobalAveragePool", net.conv(x, (320, 1280, 1))))
    net.nodes.append(helper.make_node("Gemm", [x, net.weight(1000, 1280)], ["y"], name="fc", transB=1))
    limits = [numpy_helper.from_array(np.array(v, np.float32), n) for v, n in ((0, "zero"), (6, "six"))]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 224, 224)), ("y", (1, 1000)))
    ]
    graph = helper.make_graph(net.nodes, "mobilenet_v2", ports[:1], ports[1:], [*net.weights, *limits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def main(names: list[str]) -> None:
    """Plan every model and write the page."""
    isa = host_isa()
    if isinstance(isa, Verdict):
        raise SystemExit(isa.reason)
    page = Page(
        Path("docs/results/memory_plan.md"),
        "Memory plans",
        "KiB of the native engine's arena: float32, batch 1, all activations and scratch of the program as "
        "it is compiled; inputs and outputs stay in the caller's memory. Bound: the most bytes live at one "
        "step. Written by `python -m pared.bench.cpu.memory_plan`.",
        ("Model", "Steps", "Naive sum", "Bound", "Plan", "Plan / bound", "Planned in"),
    )
    for name in names or ["mobilenet_v2", *LIGHT]:
        source = mobilenet_v2() if name == "mobilenet_v2" else light_model(name)
        variants = build_variants(prepare(Recipe(target="cpu"), Inputs(model=source)), Manager())
        try:
            program = sketch(variants.models[FLOAT], isa)
        except UnsupportedOp as error:
            page.remark(f"{name}: {error.message}.")
            continue
        start = time.perf_counter()
        made = plan(program)
        taken = f"{time.perf_counter() - start:.2f} s"
        sizes = [f"{size / KIB:.0f}" for size in (made.naive_bytes, made.bound_bytes, made.arena_bytes)]
        page.add(name, len(program.steps), *sizes, f"{made.arena_bytes / made.bound_bytes:.3f}", taken)


if __name__ == "__main__":
    main(sys.argv[1:])
