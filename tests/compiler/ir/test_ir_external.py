"""External data: mapped, never read whole; refused when it points elsewhere or lies about its size."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ir_models import body, floats, node, proto, run, value
from onnx import ModelProto, TensorProto

from pared.compiler.errors import ModelError
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import Imported, import_model

WEIGHT = np.arange(4, dtype=np.float32)


def external_model(**entries: str) -> ModelProto:
    """Return y = x + w with w in another file."""
    model = proto([node("Add", "x w", "y")])
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, content in ({"location": "w.bin"} | entries).items():
        weight.external_data.add(key=key, value=content)
    return model


def load(folder: Path, **entries: str) -> Imported:
    path = folder / "m.onnx"
    path.write_bytes(external_model(**entries).SerializeToString())
    if not (folder / "w.bin").exists():
        (folder / "w.bin").write_bytes(bytes(8) + WEIGHT.tobytes())
    return import_model(path)


def reason(folder: Path, **entries: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, **entries)
    return caught.value.reason


def big_model(folder: Path) -> Imported:
    """A model whose weight is too big to be read at import, after 64 other bytes in its file."""
    model = proto([node("MatMul", "x w", "y")], [value("x", (1, 64))], [value("y", (1, 64))])
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    weight.data_location = TensorProto.EXTERNAL
    for key, content in {"location": "w.bin", "offset": "64", "length": str(64 * 64 * 4)}.items():
        weight.external_data.add(key=key, value=content)
    (folder / "w.bin").write_bytes(bytes(64) + floats(64, 64).tobytes())
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return import_model(folder / "m.onnx")


def test_external_weights_are_mapped_from_their_offset(tmp_path: Path) -> None:
    tensor = big_model(tmp_path).model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), floats(64, 64))


def test_import_does_not_map_big_weights(tmp_path: Path) -> None:
    tensor = big_model(tmp_path).model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None


def test_small_external_constants_are_read(tmp_path: Path) -> None:
    tensor = load(tmp_path, offset="8", length="16").model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


def test_the_digest_of_each_data_file_is_reported(tmp_path: Path) -> None:
    imported = load(tmp_path, offset="8")
    assert imported.external == {"w.bin": hashlib.sha256((tmp_path / "w.bin").read_bytes()).hexdigest()}


def test_an_imported_external_model_runs(tmp_path: Path) -> None:
    x = floats(1, 4)
    np.testing.assert_array_equal(run(to_bytes(load(tmp_path, offset="8").model), {"x": x})[0], x + WEIGHT)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.bin", "a/../../w.bin", "C:\\w.bin", "..\\w.bin", "a\\b"]
)
def test_a_location_outside_the_folder(tmp_path: Path, location: str) -> None:
    assert reason(tmp_path, location=location) == "external-data-escape"


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(WEIGHT.tobytes())
    (tmp_path / "models").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "models" / "w.bin")
    assert reason(tmp_path / "models") == "external-data-escape"


def test_a_linked_folder_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w.bin").write_bytes(WEIGHT.tobytes())
    os.symlink(tmp_path / "other", tmp_path / "models" / "sub")
    assert reason(tmp_path / "models", location="sub/w.bin") == "external-data-escape"


def test_a_link_inside_the_folder_passes(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(WEIGHT.tobytes())
    os.symlink("real.bin", tmp_path / "w.bin")
    load(tmp_path)


def test_a_folder_below_passes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w").write_bytes(WEIGHT.tobytes())
    load(tmp_path, location="data/w")


def test_a_second_hard_link(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    os.link(tmp_path / "w.bin", tmp_path / "again")
    assert reason(tmp_path) == "external-data-hardlink"


def test_a_missing_file(tmp_path: Path) -> None:
    assert reason(tmp_path, location="none.bin") == "external-data-missing"


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    assert reason(tmp_path) == "external-data-not-a-file"


def test_a_folder_as_data(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert reason(tmp_path, location="d") == "external-data-not-a-file"


@pytest.mark.parametrize(
    "entries", [{"offset": "9"}, {"length": "15"}, {"length": "17"}, {"offset": "8", "length": "1000000"}]
)
def test_ranges_that_lie_about_the_file(tmp_path: Path, entries: dict[str, str]) -> None:
    assert reason(tmp_path, **entries) == "external-data-size"


@pytest.mark.parametrize(
    "entries", [{"offset": "-8"}, {"offset": "x"}, {"length": "1e3"}, {"offset": "9" * 30}]
)
def test_numbers_that_are_none(tmp_path: Path, entries: dict[str, str]) -> None:
    assert reason(tmp_path, **entries) == "external-data-entry"


def test_no_location(tmp_path: Path) -> None:
    assert reason(tmp_path, location="") == "external-data-entry"


def test_a_wrong_checksum(tmp_path: Path) -> None:
    assert reason(tmp_path, checksum="0" * 40) == "external-data-checksum"


def test_the_right_checksum_passes(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    load(tmp_path, checksum=hashlib.sha1(WEIGHT.tobytes(), usedforsecurity=False).hexdigest())


def test_bytes_cannot_have_external_data() -> None:
    with pytest.raises(ModelError) as caught:
        import_model(external_model().SerializeToString())
    assert caught.value.reason == "external-data-without-path"


def test_external_data_in_an_attribute(tmp_path: Path) -> None:
    inner = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    model = proto([node("Constant", "", "c", value=inner), node("Add", "x c", "y")])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        import_model(tmp_path / "m.onnx")
    assert caught.value.reason == "external-attribute"


def test_an_escape_in_a_body_is_found(tmp_path: Path) -> None:
    then = body("t", [node("Add", "x w", "yt")], [], [value("yt")])
    then.initializer.extend(external_model(location="../w.bin").graph.initializer)
    other = body("e", [node("Neg", "x", "ye")], [], [value("ye")])
    model = proto(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("x"), value("c", (), TensorProto.BOOL)],
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        import_model(tmp_path / "m.onnx")
    assert caught.value.reason == "external-data-escape"


def test_a_model_saved_by_onnx_with_external_data_is_read(tmp_path: Path) -> None:
    model = proto([node("MatMul", "x w", "y")], constants={"w": floats(4, 4)})
    before = run(model, {"x": floats(1, 4)})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="data", size_threshold=0)
    after = run(to_bytes(import_model(tmp_path / "m.onnx").model), {"x": floats(1, 4)})
    np.testing.assert_array_equal(after[0], before[0])
