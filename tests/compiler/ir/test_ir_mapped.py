"""Big single-file models: weights are mapped from the .onnx file, and nothing else changes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ir_models import floats, node, proto, run, value
from onnx import ModelProto, TensorProto

from pared.compiler.errors import ModelError
from pared.compiler.ir import mapped
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.text import fingerprint

SIZE = 160  # a weight of 160 * 160 floats is above the limit for tensors


@pytest.fixture(autouse=True)
def _small_files_are_big(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SMALLEST_FILE", 1000)


def model() -> ModelProto:
    constants = {"w": floats(SIZE, SIZE), "b": floats(SIZE)}
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "y")]
    return proto(nodes, [value("x", (1, SIZE))], [value("y", (1, SIZE))], constants)


def write(folder: Path, one: ModelProto | None = None) -> Path:
    path = folder / "m.onnx"
    path.write_bytes((one or model()).SerializeToString())
    return path


def weight(source: Path) -> ir.TensorProtocol:
    tensor = import_model(source).model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor


def test_big_weights_are_mapped_and_small_ones_read(tmp_path: Path) -> None:
    constants = import_model(write(tmp_path)).model.graph.initializers
    assert isinstance(constants["w"].const_value, ir.ExternalTensor)
    assert isinstance(constants["b"].const_value, ir.Tensor)
    np.testing.assert_array_equal(constants["w"].const_value.numpy(), floats(SIZE, SIZE))


def test_the_model_is_the_same_as_from_bytes(tmp_path: Path) -> None:
    from_file, from_bytes = import_model(write(tmp_path)), import_model(model().SerializeToString())
    assert fingerprint(from_file.model) == fingerprint(from_bytes.model)
    assert from_file.sha256 == from_bytes.sha256 == hashlib.sha256(model().SerializeToString()).hexdigest()
    assert not from_file.external


def test_it_runs(tmp_path: Path) -> None:
    feeds = {"x": floats(1, SIZE)}
    got = run(to_bytes(import_model(write(tmp_path)).model), feeds)
    np.testing.assert_array_equal(got[0], run(model(), feeds)[0])


def test_a_written_model_does_not_point_into_the_old_file(tmp_path: Path) -> None:
    written = ModelProto.FromString(to_bytes(import_model(write(tmp_path)).model))
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in written.graph.initializer)


def test_a_linked_model_is_mapped_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_bytes(model().SerializeToString())
    os.symlink(tmp_path / "store" / "blob", tmp_path / "m.onnx")
    np.testing.assert_array_equal(weight(tmp_path / "m.onnx").numpy(), floats(SIZE, SIZE))


def test_a_model_with_two_names_is_read_whole(tmp_path: Path) -> None:
    os.link(write(tmp_path), tmp_path / "again")
    assert isinstance(weight(tmp_path / "m.onnx"), ir.Tensor)


def test_typed_data_is_read(tmp_path: Path) -> None:
    one = model()
    tensor = one.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend(floats(SIZE, SIZE).reshape(-1).tolist())
    mapped_weight = weight(write(tmp_path, one))
    np.testing.assert_array_equal(mapped_weight.numpy(), floats(SIZE, SIZE))


def test_a_tensor_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    one = model()
    one.graph.initializer[0].dims[0] = SIZE + 1
    with pytest.raises(ModelError) as caught:
        import_model(write(tmp_path, one))
    assert caught.value.reason == "external-data-size"


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ModelError) as caught:
        import_model(path)
    assert caught.value.reason == "truncated-model"


def test_flipped_bytes_are_refused_or_still_a_model(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(60), *(len(data) - 1 - rng.integers(0, 400, 60))]:
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        try:
            import_model(path)
        except ModelError:
            continue
