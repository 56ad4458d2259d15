"""Writing: deterministic bytes, an IR version that onnxruntime reads, external data, signatures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ir_models import body, floats, node, proto, run, value
from onnx import TensorProto

from pared.compiler.backend import Port
from pared.compiler.errors import ModelError
from pared.compiler.ir import export
from pared.compiler.ir.export import capped_ir_version, save, signature_of, to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.text import fingerprint


def model(size: int = 64) -> ir.Model:
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "y")]
    constants = {"w": floats(size, size), "b": floats(size)}
    return import_model(proto(nodes, [value("x", (1, size))], [value("y", (1, size))], constants)).model


def test_the_bytes_are_the_same_every_time() -> None:
    assert to_bytes(model()) == to_bytes(model())


def test_a_written_model_reads_back_the_same() -> None:
    assert fingerprint(import_model(to_bytes(model())).model) == fingerprint(model())


@pytest.mark.parametrize(("version", "want"), [(3, 10), (10, 10), (14, 13), (99, 13)])
def test_the_ir_version_is_capped(version: int, want: int) -> None:
    one = model()
    one.ir_version = version
    assert capped_ir_version(one) == want


def test_writing_does_not_change_the_model() -> None:
    one = model()
    one.ir_version = 14
    to_bytes(one)
    assert one.ir_version == 14


def test_weights_above_the_limit_of_protobuf_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(ModelError) as caught:
        to_bytes(model())
    assert caught.value.reason == "model-too-large"


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    assert save(model(), tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_big_weights_go_beside_the_model(tmp_path: Path) -> None:
    files = save(model(), tmp_path / "m.onnx", external_threshold=1000)
    assert [path.name for path in files] == ["m.onnx", "m.onnx.data"]
    assert files[0].stat().st_size < 2000
    x = floats(1, 64)
    np.testing.assert_array_equal(
        run(to_bytes(import_model(files[0]).model), {"x": x})[0], run(to_bytes(model()), {"x": x})[0]
    )


def test_above_the_limit_weights_go_beside_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    assert len(save(model(), tmp_path / "m.onnx")) == 2


def test_no_data_file_without_big_weights(tmp_path: Path) -> None:
    save(model(), tmp_path / "m.onnx", external_threshold=10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_external_files_are_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = save(model(), tmp_path / name / "m.onnx", external_threshold=1000)
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_saving_over_the_data_that_is_mapped_keeps_it_readable(tmp_path: Path) -> None:
    save(model(), tmp_path / "m.onnx", external_threshold=1000)
    one = import_model(tmp_path / "m.onnx").model
    weight = one.graph.initializers["w"].const_value.numpy()
    save(one, tmp_path / "m.onnx", external_threshold=1000)
    np.testing.assert_array_equal(weight, floats(64, 64))
    again = import_model(tmp_path / "m.onnx").model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(again, floats(64, 64))


def test_weights_of_bodies_go_beside_too(tmp_path: Path) -> None:
    then = body("t", [node("Add", "x w", "yt")], [], [value("yt", (1, 512))])
    then.initializer.append(onnx.numpy_helper.from_array(floats(512), "w"))
    other = body("e", [node("Neg", "x", "ye")], [], [value("ye", (1, 512))])
    one = proto(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("x", (1, 512)), value("c", (), TensorProto.BOOL)],
        [value("y", (1, 512))],
    )
    files = save(import_model(one).model, tmp_path / "m.onnx", external_threshold=1000)
    assert files[1].stat().st_size == 2048
    body_weight = next(iter(import_model(files[0]).model.graph.subgraphs())).initializers
    assert not body_weight or next(iter(body_weight.values())).const_value is not None


def test_sub_byte_weights_survive(tmp_path: Path) -> None:
    packed = onnx.TensorProto(
        name="w", data_type=TensorProto.INT4, dims=[4096], raw_data=bytes(range(256)) * 8
    )
    one = proto([node("DequantizeLinear", "w s", "d"), node("Add", "x d", "y")], [value("x", (1, 4096))],
                [value("y", (1, 4096))], {"s": np.float32(0.5)}, opset=21, ir_version=10)  # fmt: skip
    one.graph.initializer.append(packed)
    files = save(import_model(one).model, tmp_path / "m.onnx", external_threshold=100)
    assert files[1].read_bytes() == packed.raw_data
    got = onnx.ModelProto.FromString(to_bytes(import_model(files[0]).model))
    assert next(t for t in got.graph.initializer if t.name == "w").raw_data == packed.raw_data


# --- signature --------------------------------------------------------------------------------------


def test_the_signature_names_ports_in_order() -> None:
    nodes = [node("Cast", "n", "y", to=TensorProto.UINT8), node("Relu", "x", "z")]
    one = import_model(
        proto(nodes, [value("x", ("batch", 4)), value("n", (2,), TensorProto.INT64)],
              [value("z", None), value("y", None, TensorProto.UINT8)])
    ).model  # fmt: skip
    signature = signature_of(one)
    assert signature.inputs == (Port("x", "FLOAT", ("batch", 4)), Port("n", "INT64", (2,)))
    assert signature.outputs == (Port("z", "FLOAT", ("batch", 4)), Port("y", "UINT8", (2,)))


def test_sizes_without_name_get_one() -> None:
    one = import_model(proto([node("Relu", "x", "y")], [value("x", (None, 4))], [value("y", None)])).model
    assert signature_of(one).inputs[0].shape == ("x_dim0", 4)


@pytest.mark.parametrize(
    ("nodes", "shape", "layout"),
    [
        ([node("Conv", "x w", "y")], (1, 3, 8, 8), "NCHW"),
        ([node("Mul", "x c", "h"), node("Conv", "h w", "y")], (1, 3, 8, 8), "NCHW"),
        ([node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "y")], (1, 8, 8, 3), "NHWC"),
        ([node("Transpose", "x", "y", perm=[0, 2, 1, 3])], (1, 8, 8, 3), ""),
        ([node("Flatten", "x", "y")], (1, 3, 8, 8), ""),
    ],
)
def test_the_layout_is_told_by_what_is_done_first(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], layout: str
) -> None:
    constants = {"w": floats(4, 3, 1, 1), "c": np.float32(2)}
    used = {name: array for name, array in constants.items() if any(name in one.input for one in nodes)}
    one = import_model(proto(nodes, [value("x", shape)], [value("y", None)], used)).model
    assert signature_of(one).inputs[0].layout == layout
