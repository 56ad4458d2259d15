import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import parse

from pared.backends.cpu import openvino_engine
from pared.backends.cpu.backend import ENGINES, CpuBackend
from pared.compiler import onnx_payload, ort
from pared.compiler.backend import Executable, Payload
from pared.compiler.errors import ArtifactError, Cancelled, DataError, MissingTool, ParedError, TargetError
from pared.compiler.pass_api import Context
from pared.compiler.target import Target
from pared.targets import load_target, target_names

CPU = load_target("cpu")
FLOATS = """
    c = Conv(x, w, b)
    r = Relu(c)
    y = GlobalAveragePool(r)
"""


def conv() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(3, 2, 3, 3)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float32),
    }
    return parse(FLOATS, "(float[N, 2, 6, 6] x) => (float[N, 3, 1, 1] y)", weights)


def opened(payload: Payload, folder: Path, threads: int | None = 1) -> Executable:
    payload.move_to(folder)
    return CpuBackend().load(folder, payload.engine, payload.options, threads)


def lower(found: ir.Model, engine: str = "ort", target: Target = CPU) -> Payload:
    return CpuBackend().lower(found, target, engine, Context())


X = np.random.default_rng(1).normal(size=(4, 2, 6, 6)).astype(np.float32)


def test_ort_gives_what_the_model_gives(tmp_path):
    want = ort.run_session(ort.make_session(conv(), optimize="none"), {"x": X})["y"]
    got = opened(lower(conv()), tmp_path).run({"x": X})["y"]
    # 18 products and a bias, 16 positions: 35 roundings of numbers below 16.
    assert np.abs(got - want).max() <= 35 * 2**-24 * 16


def test_lowering_leaves_the_model_alone():
    found = conv()
    before = ir.to_proto(found).SerializeToString()
    lower(found)
    assert ir.to_proto(found).SerializeToString() == before


def test_the_payload_is_plain_onnx_of_any_onnxruntime():
    proto = onnx.load_from_string(lower(conv()).files["model.onnx"])
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version == 10
    assert {entry.domain for entry in proto.opset_import} == {""}


def test_equal_models_give_equal_bytes():
    assert lower(conv()).files == lower(conv()).files


def test_names_lead_back_to_the_original():
    payload = lower(conv())
    names = json.loads(payload.attachments["names.json"])
    proto = onnx.load_from_string(payload.files["model.onnx"])
    inner = {name for node in proto.graph.node for name in node.output} - {"y"}
    assert {names[name] for name in inner} == {"c", "r"}


def test_own_operators_run_expanded(tmp_path):
    found = parse(
        'y = qonnx.custom_op.general.Quant<signed = 1, narrow = 0, rounding_mode = "ROUND">(x, s, z, n)',
        "(float[N] x) => (float[N] y)",
        {"s": np.float32(0.5), "z": np.float32(0), "n": np.float32(3)},
    )
    got = opened(lower(found), tmp_path).run({"x": np.array([-9, -0.75, 0.2, 0.3, 9], np.float32)})["y"]
    assert got.tolist() == [-2.0, -1.0, 0.0, 0.5, 1.5]


def test_quantized_weights_do_not_bring_their_floats_along():
    weights = {
        "w": np.arange(4096, dtype=np.float32).reshape(64, 64),
        "s": np.float32(32),
        "z": np.float32(0),
    }
    body = "q = qonnx.custom_op.general.Quant<signed = 1, narrow = 0>(w, s, z, n)\n y = MatMul(x, q)"
    found = parse(body, "(float[N, 64] x) => (float[N, 64] y)", weights | {"n": np.float32(8)})
    assert len(lower(found).files["model.onnx"]) < 2 * 4096


def test_big_weights_lie_in_a_file_of_their_own(tmp_path, monkeypatch):
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    found = parse("y = MatMul(x, w)", "(float[N, 64] x) => (float[N, 64] y)", {"w": weight})
    monkeypatch.setattr(onnx_payload, "EXTERNAL_BYTES", 1000)
    payload = lower(found)
    assert sorted(payload.files) == ["model.onnx", "model.onnx.data"]
    assert all(isinstance(content, Path) for content in payload.files.values())
    x = np.eye(64, dtype=np.float32)[:3]
    assert np.array_equal(opened(payload, tmp_path).run({"x": x})["y"], weight[:3])


def test_what_a_payload_leaves_on_disk_goes_with_it(monkeypatch):
    found = parse("y = Add(x, w)", "(float[512] x) => (float[512] y)", {"w": np.ones(512, np.float32)})
    monkeypatch.setattr(onnx_payload, "EXTERNAL_BYTES", 1000)
    payload = lower(found)
    path = payload.files["model.onnx"]
    assert isinstance(path, Path)
    assert path.exists()
    del payload
    assert not path.parent.exists()


def test_wrong_inputs_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"'x' needs shape \[N, 2, 6, 6\].*NHWC"):
        opened(lower(conv()), tmp_path).run({"x": X.transpose(0, 2, 3, 1)})


def test_a_cancelled_compilation_stops():
    ctx = Context()
    ctx.cancel.set()
    with pytest.raises(Cancelled):
        CpuBackend().lower(conv(), CPU, "ort", ctx)


def test_more_weights_than_the_target_holds_are_refused():
    memory = CPU.memory.model_copy(update={"weights_bytes": 200})
    with pytest.raises(TargetError, match="the weights take 228 bytes, target cpu has 200"):
        lower(conv(), target=CPU.model_copy(update={"memory": memory}))


def test_an_unknown_engine_gets_the_nearest():
    with pytest.raises(TargetError, match="did you mean ort"):
        lower(conv(), "ortt")


def test_a_missing_payload_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"no model\.onnx"):
        CpuBackend().load(tmp_path, "ort", {}, 1)


@pytest.mark.parametrize("name", [n for n in target_names() if load_target(n).backend == "cpu"])
def test_targets_name_engines_that_exist(name):
    assert set(load_target(name).engines) <= set(ENGINES)


def test_ort_is_always_there():
    assert CpuBackend().engines(CPU)[0] == "ort"


def test_openvino_without_openvino_names_the_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(CpuBackend().engines(CPU)) == ["ort"]
    with pytest.raises(MissingTool, match=r"pip install 'pared\[openvino\]'"):
        lower(conv(), "openvino")
    with pytest.raises(MissingTool):
        CpuBackend().load(tmp_path, "openvino", {}, 1)


needs_openvino = pytest.mark.skipif(not openvino_engine.installed(), reason="openvino is not installed")


@needs_openvino
@pytest.mark.filterwarnings("ignore")
def test_openvino_gives_what_ort_gives(tmp_path):
    want = opened(lower(conv()), tmp_path).run({"x": X})["y"]
    engine = opened(lower(conv(), "openvino"), tmp_path)
    got = engine.run({"x": X})["y"]
    assert engine.signature.inputs[0].shape == ("N", 2, 6, 6)
    assert np.abs(got - want).max() <= 35 * 2**-24 * 16


@needs_openvino
@pytest.mark.filterwarnings("ignore")
def test_openvino_keeps_its_results_apart(tmp_path):
    engine = opened(lower(conv(), "openvino"), tmp_path)
    first = engine.run({"x": X})["y"]
    kept = first.copy()
    engine.run({"x": X * 2})
    assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    ("body", "io"),
    [
        ("y = Relu(x)", "(float[4] x) => (float[4] y)"),
        ("y = Relu(x)", "(int8[4] x) => (int8[4] y)"),
        ("y = Relu(x)", "(float16[4] x) => (float16[4] y)"),
        ("y = Celu(x)", "(float[4] x) => (float[4] y)"),
        ("y = HardSwish(x)", "(float[4] x) => (float[4] y)"),
        ("y = com.microsoft.Gelu(x)", "(float[4] x) => (float[4] y)"),
        ("y = Constant<value_floats = [1.0]>()", "(float[4] x) => (float[4] y)"),
        ("y = Concat<axis = 0>(x, x, x)", "(int64[4] x) => (int64[12] y)"),
        ("y = Cast<to = 16>(x)", "(float[4] x) => (bfloat16[4] y)"),
    ],
)
def test_supported_nodes_load(body, io):
    found = parse(body, io)
    assert CpuBackend().supports(found.graph.node(-1), CPU).ok
    ort.make_session(found)


@pytest.mark.parametrize(
    ("body", "io", "reason"),
    [
        (
            "y = Abs(x)",
            "(bfloat16[4] x) => (bfloat16[4] y)",
            "no CPU kernel for Abs-13 with T = bfloat16; it has T: double",
        ),
        ("y = foo.Bar(x)", "(float[4] x) => (float[4] y)", "does not know foo:Bar"),
        ("y = Blurb(x)", "(float[4] x) => (float[4] y)", "does not know Blurb"),
        ("y = MatMul(x, x)", "(int8[4,4] x) => (int8[4,4] y)", "MatMul-13 with T = int8"),
    ],
)
def test_refused_nodes_do_not_load(body, io, reason):
    found = parse(body, io)
    found.graph.outputs[0].dtype = found.graph.inputs[0].dtype
    refusal = CpuBackend().supports(found.graph.node(-1), CPU)
    assert not refusal.ok
    assert reason in refusal.reason
    with pytest.raises(ParedError):
        ort.make_session(found)


def test_own_operators_are_supported():
    node = parse("y = qonnx.custom_op.general.BipolarQuant(x, x)", "(float[4] x) => (float[4] y)").graph.node(
        0
    )
    assert CpuBackend().supports(node, CPU).ok


def test_the_targets_limits_come_first(tmp_path):
    (tmp_path / "small.toml").write_text(
        'name = "small"\ndescription = "d"\nbackend = "cpu"\nengines = ["ort"]\n[[ops]]\nop = "Tanh"\n'
    )
    node = parse("y = Relu(x)", "(float[4] x) => (float[4] y)").graph.node(0)
    assert (
        CpuBackend().supports(node, load_target(tmp_path / "small.toml")).reason
        == "target small has no Relu; it has Tanh"
    )


def test_nodes_of_a_body_are_judged():
    body = ir.Graph([], [], nodes=[ir.Node("", "Blurb", []), ir.Node("", "Abs", [])])
    assert [CpuBackend().supports(node, CPU).ok for node in body] == [False, True]


def test_closed_engines_do_not_run(tmp_path):
    engine = opened(lower(conv()), tmp_path)
    engine.close()
    with pytest.raises(AttributeError):
        engine.run({"x": X})


def test_payload_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        lower(conv()).engine = "other"  # type: ignore[misc]
