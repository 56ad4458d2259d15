"""Whole models: engine `native` beside onnxruntime, OpenVINO and LiteRT in the same interleaved run.

PARED_DATA=… python -m pared.bench.cpu.models [int8|float] [--seconds 4]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ... import compile as compile_model
from ...backends.cpu.native import engine
from ...compiler.artifact.read import Artifact, open_artifact
from ...compiler.backend import Array
from ...compiler.errors import ParedError
from ...compiler.openvino_import import no_openvino_telemetry
from ..data import data_folder
from ..light_models import light_model
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from .c_call import c_call_ms
from .kernels import this_isa
from .nets import mobilenet_v2, resnet18
from .tflite_mlp import mlp_tflite

Run = Callable[[], object]
ROUNDS = 9
LIGHT = ("squeezenet", "resnet50", "densenet121")
FLOAT_LIGHT = (
    *LIGHT, "shufflenet", "inception_v1", "inception_v2", "bvlc_alexnet", "zfnet512", "vgg19",
)  # fmt: skip
FLOAT_AIMS = dict.fromkeys((*LIGHT, "resnet18"), 1.3)
OWN: Mapping[str, Callable[[], onnx.ModelProto]] = {"mobilenet_v2": mobilenet_v2, "resnet18": resnet18}
MLP = (784, 512, 512, 10)
AIMS = {"mobilenet_v2": 1.3, "resnet18": 1.0, "resnet50": 1.0, "squeezenet": 1.0, "densenet121": 1.0}
TINY = {
    "kws01": "kws01_dscnn",
    "ad01": "ad01_fc_autoencoder",
    "ic01": "ic01_resnet8",
    "vww01": "vww01_mobilenetv1",
}
HEADINGS = (
    "model", "native ms", "in C ms", "ORT ms", "OpenVINO ms", "LiteRT ms", "ORT / native",
    "OpenVINO / native", "LiteRT / native", "library KiB", "arena KiB", "compile s",
)  # fmt: skip
ABOUT = """`python -m pared.bench.cpu.models {kind}`. Batch 1, one pinned core, one thread, {rounds} rounds in
turn, medians of wall time; ratios are medians of the ratios of each round, above 1 means that native is
faster. Inputs and outputs are bound once everywhere: nothing is copied by Python, its call is included (0.3
to 0.6 us for native and LiteRT, 10 us for onnxruntime and OpenVINO); "in C" is a loop in C around
`pared_run`, without Python. Every native library passed pared's verification against the reference semantics
when it was compiled: `force` keeps the page's precision where float is faster, never one that fails.
"""
INT8 = """
kws01, ad01, ic01, vww01: MLPerf-Tiny; onnxruntime and OpenVINO run the QDQ form, LiteRT the `.tflite` file.
The others have random weights and are quantized by pared; onnxruntime and OpenVINO run the same graph. Of the
MLP LiteRT runs a file that `bench/cpu/tflite_mlp.py` writes: the same weights, its own ranges.

Aims against every peer: 1.5 on the tiny models and the MLP, 1.3 on MobileNetV2, 1.0 on the others; misses
are named below. ad01 and the MLP read every weight once per run, 266 and 663 KB, from the second-level cache,
which gives about 117 GB/s: 2.3 and 5.7 us, so no kernel that reads bytes can be more than about 1.5 and 1.35
times as fast as LiteRT here. Tried: prefetching 1 and 4 KiB ahead and reading two streams at once (within
3 %), non-temporal prefetching (slower on the MLP), and storing ad01's weights in 6 bits
(of the blocks of 512 that a step reads, 6 % of the first layer and none of the last fit).
Compilation was timed beside other work."""
FLOAT = """
All but the MLPerf-Tiny models have random weights. OpenVINO computes in float32. Aims: 1.3 against the better
peer on ResNet-18, ResNet-50, SqueezeNet and DenseNet-121, 1.0 on all others.

What a ResNet-50 is bound by, step by step in the running model on a core with a peak of 58 to 60 GMAC/s:
plain products 54-58 GMAC/s, direct convolutions 57-61 (padding counted), so nothing but fewer multiplications
helps. Winograd's F(4x4, 3x3) does 163-200 GMAC/s of the convolution as defined, one step of Strassen's scheme
60-64 of the product as defined (54-55 done). Tried: prefetching into the first-level cache (4 % slower than
into the second), Winograd at 7x7 with 512 channels (38 MB of weights from memory: 1.53 ms alone against 1.75;
the compiler times both), polyphase Winograd for stride 2 (predicted: 0.5 ms of 54, not built)."""


@dataclass(frozen=True)
class Case:
    """A model in one precision.

    Attributes:
        source: file or model that pared compiles.
        precision: `float` keeps the file as it is (quantized already, or float).
        tflite: the LiteRT original, None without one.
        aim: how many times as fast as every peer native is to be; 0 for no aim.
    """

    name: str
    source: Path | onnx.ModelProto
    precision: str
    tflite: Path | None = None
    aim: float = 0.0


def cases(kind: str, data: Path, folder: Path) -> Iterator[Case]:
    """Yield the models of a page; `folder` takes files that are written for it."""
    models = data / "models"
    for name, file in TINY.items():
        if kind == "int8":
            tflite = models / "tflite_int8" / f"{name}_int8.tflite"
            yield Case(name, models / f"{file}_int8_qdq.onnx", "float", tflite, 1.5)
        else:
            yield Case(name, models / f"{file}.onnx", "float", aim=1.0)
    whole = kind == "int8"
    own_file = _mlp_file(folder) if whole else None
    yield Case("MLP " + "-".join(map(str, MLP)), mlp(MLP), kind, own_file, 1.5 if whole else 1.0)
    aims = AIMS if whole else FLOAT_AIMS
    for name, make in OWN.items():
        yield Case(name, make(), kind, aim=aims.get(name, 1.0))
    for name in LIGHT if whole else FLOAT_LIGHT:
        yield Case(name, light_model(name), kind, aim=aims.get(name, 1.0))


def _mlp_file(folder: Path) -> Path:
    path = folder / "mlp.tflite"
    path.write_bytes(mlp_tflite(mlp(MLP), np.random.default_rng(1).standard_normal((64, MLP[0]), np.float32)))
    return path


def mlp(sizes: Sequence[int]) -> onnx.ModelProto:
    """Return a perceptron with Relu between its layers and random weights."""
    rng = np.random.default_rng(0)
    nodes, constants, value = [], [], "x"
    for i, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        weight = (rng.standard_normal((outer, inner)) * np.sqrt(2 / inner)).astype(np.float32)
        bias = rng.standard_normal(outer).astype(np.float32)
        constants += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"y{i}"], transB=1))
        value = f"y{i}"
        if i < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", sizes[0]), (value, sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def compiled(case: Case, engine_name: str, folder: Path) -> Artifact:
    """Compile a case for one engine, in its precision even where float is faster.

    Raises:
        ParedError: the engine does not take the model.
    """
    calibration = None
    if case.precision == "int8":
        assert not isinstance(case.source, Path), "models on file are quantized already"
        calibration = _samples(case.source)
    artifact = compile_model(
        case.source,
        precision=case.precision,
        calibration=calibration,
        engine=engine_name,
        force=True,
        threads=1,
        output=folder / engine_name,
    )
    assert artifact.manifest.choice.precision == case.precision, f"{case.name} does not verify"
    return artifact


def _samples(model: onnx.ModelProto) -> dict[str, Array]:
    port = model.graph.input[0]
    shape = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
    return {port.name: np.random.default_rng(1).standard_normal((4, *shape[1:]), np.float32)}


class Native:
    """The library of an artifact with fixed buffers."""

    def __init__(self, artifact: Artifact) -> None:
        executable = engine.load(artifact.path, artifact.manifest.engine.options, 1)
        self.arena_bytes, self.constant_bytes = executable.arena_bytes, executable.constant_bytes
        self._held: list[object] = [executable]
        self._library = ctypes.CDLL(str(artifact.path / engine.LIBRARY))
        ports = executable.signature
        arrays = [_values(port.dtype, _fixed(port.shape)) for port in (*ports.inputs, *ports.outputs)]
        count = len(ports.inputs)
        arena = np.zeros(executable.arena_bytes + 64, np.uint8)
        start = arena.ctypes.data + (-arena.ctypes.data % 64)
        self._held += [arrays, arena]
        self._arguments = (_pointers(arrays[:count]), _pointers(arrays[count:]), ctypes.c_void_p(start))
        self.run: Run = functools.partial(self._library.pared_run, *self._arguments)

    def in_c_ms(self) -> float:
        """Return the time of a run without Python."""
        return c_call_ms(self._library, self._arguments, this_isa())


def _fixed(shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in shape)


def _values(dtype: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(2)
    if dtype == "INT8":
        return rng.integers(-128, 128, shape).astype(np.int8)
    return rng.standard_normal(shape, np.float32)


def _pointers(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


def in_onnxruntime(path: Path) -> Run:
    """Return a run of a model file in onnxruntime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for port in session.get_inputs():
        dtype = {"tensor(float)": "FLOAT", "tensor(int8)": "INT8"}[port.type]
        value = ort.OrtValue.ortvalue_from_numpy(_values(dtype, _fixed(port.shape)))
        binding.bind_ortvalue_input(port.name, value)
    for port in session.get_outputs():
        binding.bind_output(port.name)
    return lambda: session.run_with_iobinding(binding)


def in_openvino(path: Path) -> Run:
    """Return a run of a model file in OpenVINO, in float32 where it is float."""
    with no_openvino_telemetry():
        import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape(
        {
            port: _fixed([d.get_length() if d.is_static else "" for d in port.partial_shape])
            for port in model.inputs
        }
    )
    config = {
        "INFERENCE_NUM_THREADS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled_model = core.compile_model(model, "CPU", config)
    request = compiled_model.create_infer_request()
    for index, port in enumerate(compiled_model.inputs):
        dtype = "INT8" if port.element_type == ov.Type.i8 else "FLOAT"
        request.set_input_tensor(index, ov.Tensor(_values(dtype, tuple(port.shape))))
    run: Run = request.infer
    return run


def in_litert(path: Path) -> Run:
    """Return a run of a `.tflite` file in LiteRT with its XNNPACK kernels."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    for port in interpreter.get_input_details():
        dtype = "INT8" if port["dtype"] is np.int8 else "FLOAT"
        interpreter.set_tensor(port["index"], _values(dtype, tuple(port["shape"])))
    run: Run = interpreter.invoke
    return run


@dataclass(frozen=True)
class Prepared:
    """A case compiled for both engines.

    Attributes:
        own: native's artifact.
        plain: onnxruntime's payload, the same graph with short names.
        seconds: that native's compilation took.
    """

    own: Artifact
    plain: Path
    seconds: float


def prepare(case: Case, folder: Path) -> Prepared:
    """Compile a case into `folder`, or take what an earlier run left there.

    Raises:
        ParedError: native does not take the model.
    """
    note = folder / "seconds.json"
    if note.is_file():
        own = open_artifact(folder / "native")
        return Prepared(own, folder / "ort" / "model.onnx", json.loads(note.read_text()))
    start = time.perf_counter()
    own = compiled(case, "native", folder)
    took = time.perf_counter() - start
    plain = compiled(case, "ort", folder).path / "model.onnx"
    note.write_text(json.dumps(took))
    return Prepared(own, plain, took)


def measure(case: Case, page: Page, seconds: float, folder: Path) -> None:
    """Time a case beside its peers, add its row; a model that is not supported gets a remark."""
    try:
        made = prepare(case, folder)
    except ParedError as err:
        page.remark(f"{case.name}: native does not take it: {err.message}")
        return
    native = Native(made.own)
    runs: dict[str, Run] = {
        "native": native.run,
        "ort": in_onnxruntime(made.plain),
        "openvino": in_openvino(made.plain),
    }
    if case.tflite is not None:
        runs["litert"] = in_litert(case.tflite)
    compared = compare_latency(runs, rounds=ROUNDS, iterations=3000, limit=seconds)
    in_c = native.in_c_ms()
    size = (made.own.path / engine.LIBRARY).stat().st_size
    times = _times(compared)
    memory = [f"{size / 1024:.0f}", f"{native.arena_bytes / 1024:.1f}", f"{made.seconds:.1f}"]
    page.add(case.name, times[0], f"{in_c:.4g}", *times[1:], *_ratios(compared), *memory)
    _judge(case, page, compared, native.constant_bytes / in_c / 1e6)


def _judge(case: Case, page: Page, compared: Comparison, rate: float) -> None:
    """Say of a model that misses its aim by how much, and at which rate its constants are read."""
    known = compared.round_medians_ms
    ratios = {name: compared.ratio(name, "native").median for name in known if name != "native"}
    worst = min(ratios, key=lambda name: ratios[name])
    if case.aim and ratios[worst] < case.aim:
        text = f"{case.name}: aim {case.aim} missed, {ratios[worst]:.2f} against {worst}"
        page.remark(f"{text}; its constants are read at {rate:.0f} GB/s.")


def _times(compared: Comparison) -> list[str]:
    medians = {name: float(np.median(found)) for name, found in compared.round_medians_ms.items()}
    return [f"{medians[n]:.4g}" if n in medians else "" for n in ("native", "ort", "openvino", "litert")]


def _ratios(compared: Comparison) -> list[str]:
    known = compared.round_medians_ms
    return [
        f"{compared.ratio(name, 'native').median:.2f}" if name in known else ""
        for name in ("ort", "openvino", "litert")
    ]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description="whole models: native beside its peers")
    parser.add_argument("kind", choices=["int8", "float"], nargs="?", default="int8")
    parser.add_argument("--seconds", type=float, default=4.0, help="per model")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--compiled", type=Path, help="keep artifacts in this folder, and use those there")
    parser.add_argument("--prepare", action="store_true", help="compile into that folder, measure nothing")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    data = data_folder()
    about = ABOUT.format(kind=given.kind, rounds=ROUNDS) + (INT8 if given.kind == "int8" else FLOAT)
    title = f"Whole models in {given.kind}: native beside onnxruntime, OpenVINO and LiteRT"
    page = Page(given.output / f"native_{given.kind}.md", title, about, HEADINGS)
    with pinned(1), tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        folder, left = given.compiled or Path(name), list[str]()
        for case in cases(given.kind, data, Path(name)):
            if given.only and case.name not in given.only:
                left.append(case.name)
                continue
            place = folder / f"{case.name} {given.kind}".replace(" ", "_")
            place.mkdir(parents=True, exist_ok=True)
            if given.prepare:
                prepare(case, place)
            else:
                measure(case, page, given.seconds, place)
        if left and not given.prepare:
            page.remark(f"Not in this run: {', '.join(left)}.")


if __name__ == "__main__":
    main()
