import gc
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pared.compiler import ort
from pared.compiler.errors import DataError, InvalidGraph, ModelError, UnsupportedOp


def model(
    body: str, io: str = "(float[2] x) => (float[2] y)", version: int = 10, opset: int = 21
) -> ir.Model:
    text = f'<ir_version: {version}, opset_import: ["" : {opset}, "foo" : 1]> g {io} {{ {body} }}'
    return ir.from_proto(onnx.parser.parse_model(text))


def wire(graph: ir.Model) -> bytes:
    return ir.to_proto(graph).SerializeToString()


X = {"x": np.array([-1.0, 2.0], np.float32)}


@pytest.mark.parametrize("optimize", ["none", "basic", "all"])
def test_runs_an_ir_model_at_every_level(optimize):
    session = ort.make_session(model("y = Relu(x)"), optimize=optimize)
    assert ort.run_session(session, X)["y"].tolist() == [0.0, 2.0]


def test_inner_values_come_out_when_asked_for():
    session = ort.make_session(model("z = Neg(x)\n y = Relu(z)"), extra_outputs=["z", "y"])
    assert {name: array.tolist() for name, array in ort.run_session(session, X).items()} == {
        "y": [1.0, 0.0],
        "z": [1.0, -2.0],
    }


def test_extra_outputs_leave_the_model_alone():
    graph = model("z = Neg(x)\n y = Relu(z)")
    before = wire(graph)
    ort.make_session(graph, extra_outputs=["z"])
    assert wire(graph) == before


def test_outputs_can_be_restricted():
    session = ort.make_session(model("z = Neg(x)\n y = Relu(z)"), extra_outputs=["z"])
    assert list(ort.run_session(session, X, ["z"])) == ["z"]


@pytest.mark.parametrize("form", ["bytes", "path", "ir"])
def test_a_newer_ir_version_is_lowered(tmp_path, form):
    graph = model("y = Relu(x)", version=14)
    (tmp_path / "m.onnx").write_bytes(wire(graph))
    source = {"bytes": wire(graph), "path": tmp_path / "m.onnx", "ir": graph}[form]
    assert ort.run_session(ort.make_session(source), X)["y"].tolist() == [0.0, 2.0]


def external(tmp_path, count: int = 4096) -> ir.Model:
    graph = model("y = Add(x, w)", "(float[2] x, float[2] w) => (float[2] y)")
    weight = ir.Value(name="w", const_value=ir.tensor(np.arange(count, dtype=np.float32), name="w"))
    graph.graph.node(0).replace_input_with(1, weight)
    graph.graph.inputs.pop()
    graph.graph.register_initializer(weight)
    for value in (graph.graph.inputs[0], graph.graph.outputs[0]):
        value.shape = ir.Shape([count])
    ir.save(graph, tmp_path / "m.onnx", external_data="m.bin", size_threshold_bytes=16)
    return ir.load(tmp_path / "m.onnx")


def test_external_data_is_read_where_it_lies(tmp_path):
    loaded = external(tmp_path)
    out = ort.run_session(ort.make_session(loaded), {"x": np.ones(4096, np.float32)})
    assert np.array_equal(out["y"], np.arange(4096, dtype=np.float32) + 1)


def test_external_data_beside_a_path_with_a_newer_ir_version(tmp_path):
    external(tmp_path)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    proto.ir_version = 14
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    out = ort.run_session(ort.make_session(tmp_path / "m.onnx"), {"x": np.ones(4096, np.float32)})
    assert out["y"][-1] == 4096


def test_weights_beyond_the_protobuf_limit_go_through_files(tmp_path, monkeypatch):
    monkeypatch.setattr(ort, "_PROTO_LIMIT", 1000)
    loaded = external(tmp_path)
    weight = loaded.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy().copy(), name="w")
    session = ort.make_session(loaded, extra_outputs=["y"])
    assert isinstance(weight.const_value, ir.Tensor)
    gc.collect()
    assert ort.run_session(session, {"x": np.ones(4096, np.float32)})["y"][-1] == 4096


def test_low_memory_gives_the_same_numbers(tmp_path):
    loaded = external(tmp_path)
    feeds = {"x": np.linspace(-1, 1, 4096, dtype=np.float32)}
    fast = ort.run_session(ort.make_session(loaded), feeds)["y"]
    assert np.array_equal(ort.run_session(ort.make_session(loaded, low_memory=True), feeds)["y"], fast)


def test_unknown_operator_is_named():
    with pytest.raises(UnsupportedOp, match="'foo:Bar'") as caught:
        ort.make_session(model("y = foo.Bar(x)"))
    assert caught.value.reason == "op-unknown"


def test_unknown_standard_operator_is_named():
    with pytest.raises(UnsupportedOp, match="'Blurb'"):
        ort.make_session(model("y = Blurb(x)"))


def test_missing_kernel_is_named_with_its_node():
    with pytest.raises(UnsupportedOp, match=r"Abs-13 .*'n1'") as caught:
        ort.make_session(model("[n1] y = Abs(x)", "(bfloat16[2] x) => (bfloat16[2] y)"))
    assert caught.value.reason == "op-no-kernel"


def test_dangling_input_is_an_invalid_graph():
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["":21]> g (float[2] x) => (float[2] y) {y=Neg(q)}'
    )
    with pytest.raises(InvalidGraph, match="'q'"):
        ort.make_session(proto.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\x0a", b"\x08\x0a\xff\xff"])
def test_what_is_no_model_is_refused(data):
    with pytest.raises(ModelError):
        ort.make_session(data)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        ort.make_session(tmp_path / "none.onnx")


def test_wrong_input_is_refused_by_name():
    session = ort.make_session(model("y = Relu(x)"))
    with pytest.raises(DataError, match=r"'x' needs shape \[2\], got \[3\]"):
        ort.run_session(session, {"x": np.zeros(3, np.float32)})


def test_failure_inside_the_graph_is_a_data_error():
    session = ort.make_session(model("y = Reshape(x, s)", "(float[N] x, int64[2] s) => (float[A, B] y)"))
    with pytest.raises(DataError, match="could not run") as caught:
        ort.run_session(session, {"x": np.zeros(4, np.float32), "s": np.array([3, 3])})
    assert caught.value.reason == "run-failed"


def test_errors_print_nothing_on_stderr(capfd):
    with pytest.raises(UnsupportedOp):
        ort.make_session(model("y = foo.Bar(x)"))
    assert capfd.readouterr() == ("", "")


def test_optimized_model_shows_fusion():
    fused = ort.optimized_model(
        model("c = Conv(x, w)\n y = Relu(c)", "(float[1,1,4,4] x, float[1,1,3,3] w) => (float[1,1,2,2] y)")
    )
    assert [node.op_type for node in fused.graph.node] == ["FusedConv"]


def test_kernels_list_versions_and_dtypes():
    found = [kernel for kernel in ort.kernels() if kernel.op_type == "Abs" and kernel.takes_version(13)]
    assert {"tensor(float)"} in [kernel.types["T"] for kernel in found]


def test_a_kernel_without_an_end_takes_its_own_version_only():
    open_end = ort.Kernel("", "Abs", 13, 2**31 - 1, {})
    assert [open_end.takes_version(since) for since in (12, 13, 14)] == [False, True, False]
    assert ort.Kernel("", "Abs", 6, 12, {}).takes_version(9)


def test_module_does_not_import_onnxruntime():
    code = "import sys, pared.compiler.ort; sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
