"""Event kernels beside dense int8 ones, layer by layer and activity by activity.

    python -m pared.bench.event.layers [--rounds 9]

Predicted for graded events with VNNI: four weight rows of 64 bytes cost 8 shuffles on one port, so 32
synaptic operations per cycle, at 3.6 GHz 115 GSOP/s; the direct dense form does one dot of 64 products per
cycle, by Winograd (c/winograd.h) 1.7 times as many as the layer has. Break-even where events / 32 = all / 64:
50 %, by Winograd 29 %.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ...backends.cpu.backend import CpuBackend
from ...backends.cpu.native.engine import NativeExecutable
from ...backends.event.build import build, features_of
from ...backends.event.native import NativeGraph
from ...backends.event.read import read
from ...compiler.backend import Array
from ...compiler.ir.importer import import_model
from ...compiler.pass_api import Context
from ...targets import load_target
from ..meter import Comparison, compare_latency, pinned
from ..results import Page

Run = Callable[[], object]
LAYERS: Mapping[str, tuple[int, ...]] = {
    "conv 64->64 3x3 32x32": (64, 64, 32),
    "conv 128->128 3x3 16x16": (128, 128, 16),
    "dense 1024x1024": (1024, 1024),
    "dense 4096x4096": (4096, 4096),
}
ACTIVITIES = (0.01, 0.05, 0.10, 0.15, 0.20, 0.30, 0.50, 1.0)
HEADINGS = (
    "layer", "active", "ORT us", "native us", "event-cpu us", "runs", "events us", "dense us",
    "ORT / event-cpu", "native / event-cpu", "GSOP/s",
)  # fmt: skip
ABOUT = """`python -m pared.bench.event.layers`. 
One quantized layer (uint8 counts of 1 to 255 at random places, int8 weights per channel, int32 bias,
requantized to uint8), batch 1, one pinned core, one thread, {rounds} interleaved rounds, medians of wall
time; ratios are medians of the ratios of each round, above 1 means that event-cpu is faster. "event-cpu"
chooses per run from the activity that it counts ("runs" says what); "events" and "dense" are its two
forms, forced. Inputs and outputs are bound once everywhere: onnxruntime by its IO binding (its call is
about 10 us), native and event-cpu by a ctypes call; event-cpu finds its input channels-last, as a layer
inside a network does, while the others transpose a model's input and output. The integers of all were
equal on every input. GSOP/s: active inputs times their synapses, borders included, by the time of
"events"."""

REMARK = """Aims: at 5 % activity 2 times as fast as onnxruntime's dense convolution 64->64 on 32x32, 7
times on 1024x1024: met. Never more than 5 % slower than dense at any activity: met against onnxruntime and
against engine native. Until its dense form of 3x3 convolutions was Winograd's, too, event-cpu took 1.3 to 1.5
times as long as native from 20 % on: 4 pixels by 64 outputs took 214 us on 64->64, 6 by 64 181 us, which is
90 % of what direct dot products can do. The events form does up to 87 GSOP/s of the predicted 115 where lists
are long; below 5 % the lists, the scan of the input and the requantization of all outputs bound it. So it
breaks even at 17 % beside Winograd, not at the predicted 29 %, and the engine switches there."""


def layer_model(sizes: tuple[int, ...]) -> onnx.ModelProto:
    """Return one quantized layer, integers in and out."""
    rng = np.random.default_rng(0)
    image = len(sizes) == 3
    shape = (sizes[0], sizes[1], 3, 3) if image else sizes
    terms = sizes[1] * 9 if image else sizes[1]
    x_shape = (1, sizes[1], sizes[2], sizes[2]) if image else (1, sizes[1])
    y_shape = (1, sizes[0], sizes[2], sizes[2]) if image else (1, sizes[0])
    w = rng.integers(-127, 128, shape).astype(np.int8)
    ws = rng.uniform(0.5e-3, 1e-3, sizes[0]).astype(np.float32)
    arrays: dict[str, Array] = {
        "xs": np.array(0.02, np.float32), "xz": np.array(0, np.uint8),
        "w": w, "ws": ws, "wz": np.zeros(sizes[0], np.int8),
        "b": rng.integers(-1000, 1000, sizes[0]).astype(np.int32), "bs": np.float32(0.02) * ws,
        "ys": np.array(0.02 * 7.5e-4 * 73 * 147 * terms**0.5 / 80, np.float32),
        "yz": np.array(0, np.uint8),
    }  # fmt: skip
    layer = (
        helper.make_node("Conv", ["xf", "wf", "bf"], ["y"], pads=[1] * 4, kernel_shape=[3, 3], name="layer")
        if image
        else helper.make_node("Gemm", ["xf", "wf", "bf"], ["y"], transB=1, name="layer")
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        layer,
        helper.make_node("QuantizeLinear", ["y", "ys", "yz"], ["q"]),
    ]
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x_shape)],
        [helper.make_tensor_value_info("q", TensorProto.UINT8, y_shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def counts(shape: tuple[int, ...], activity: float) -> Array:
    """Return uint8 counts with exactly this share of them active."""
    rng = np.random.default_rng(1)
    size = int(np.prod(shape))
    flat = np.zeros(size, np.uint8)
    places = rng.permutation(size)[: round(size * activity)]
    flat[places] = rng.integers(1, 256, places.size)
    return flat.reshape(shape)


class Contenders:
    """All who compute one layer."""

    def __init__(self, sizes: tuple[int, ...], folder: Path) -> None:
        proto = layer_model(sizes)
        self.model = import_model(proto).model
        self.shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        target = load_target("cpu")
        payload = CpuBackend().lower(self.model, target, "native", Context(target=target, engine_named=True))
        payload.move_to(folder)
        loaded = CpuBackend().load(folder, "native", payload.options, 1)
        assert isinstance(loaded, NativeExecutable), "engine native gives one"
        self._native = loaded
        library = folder / "events.so"
        library.write_bytes(build(features_of(load_target("event-cpu"))) or b"")
        graph = read(self.model)
        self._population = graph.inputs[0].population
        self._output = graph.layers[0].name
        self.graphs = {mode: NativeGraph(graph, library, mode) for mode in ("auto", "events", "dense")}

    def runs(self, x: Array) -> dict[str, Run]:
        """Return one call per contender on the same input, after checking that all agree."""
        binding, made = self._session.io_binding(), np.empty_like(self._session.run(None, {"x": x})[0])
        binding.bind_cpu_input("x", x)
        binding.bind_output("q", "cpu", 0, np.uint8, made.shape, made.ctypes.data)
        want = self._session.run(None, {"x": x})[0]
        assert np.array_equal(self._native.run({"x": x})["q"], want), "native differs"
        for mode, graph in self.graphs.items():
            graph.place(self._population).write(x[0].astype(np.int64))
            graph.step()
            assert np.array_equal(graph.counts(self._output), want[0].astype(np.int64)), mode
        outputs = {"q": made.copy()}
        self._bound = binding, made, x  # the binding holds addresses only
        return {
            "ort": lambda: self._session.run_with_iobinding(binding),
            "native": lambda: self._native.run({"x": x}, outputs),
            **{mode: graph.step for mode, graph in self.graphs.items()},
        }


def measure(page: Page, name: str, sizes: tuple[int, ...], rounds: int) -> None:
    """Add the rows of one layer."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = Contenders(sizes, Path(folder))
        for activity in ACTIVITIES:
            x = counts(contenders.shape, activity)
            runs = contenders.runs(x)
            found = compare_latency(runs, rounds=rounds, iterations=40 * rounds, limit=4.0)
            ran = next(iter(contenders.graphs["auto"].choices().values()))[1]
            synapses = int(np.count_nonzero(x)) * sizes[0] * (9 if len(sizes) == 3 else 1)
            _row(page, name, activity, found, ran, synapses)


def _row(page: Page, name: str, activity: float, found: Comparison, events: bool, synapses: int) -> None:
    us = {key: float(np.median(found.round_medians_ms[key])) * 1e3 for key in found.round_medians_ms}
    ratios = [f"{found.ratio(rival, 'auto').median:.2f}" for rival in ("ort", "native")]
    page.add(
        name, f"{activity:.0%}", f"{us['ort']:.1f}", f"{us['native']:.1f}", f"{us['auto']:.1f}",
        "events" if events else "dense", f"{us['events']:.1f}", f"{us['dense']:.1f}", *ratios,
        f"{synapses / us['events'] / 1e3:.1f}",
    )  # fmt: skip


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("docs/results/event_layers.md"))
    given = parser.parse_args()
    title = "Event kernels beside dense int8 kernels"
    page = Page(given.out, title, ABOUT.format(rounds=given.rounds), HEADINGS)
    with pinned(1):
        for name, sizes in LAYERS.items():
            measure(page, name, sizes, given.rounds)
    page.remark(REMARK)


if __name__ == "__main__":
    main()
