"""Rebuilding gives the same bytes, tells the first difference, and refuses other sources."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pared
from pared.compiler.errors import ArtifactError, DataError
from pared.compiler.rebuild import rebuild_artifact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, calibration data and the int8 artifact `out` made of them."""
    folder = tmp_path_factory.mktemp("rebuild")
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((16, 8)).astype(np.float32), "w")
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("x", 16), ("y", 8))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "fc"),
        helper.make_node("Relu", ["h"], ["y"], "act"),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializer=[weight])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), folder / "m.onnx")
    np.savez(folder / "c.npz", x=rng.standard_normal((20, 16)).astype(np.float32))
    pared.compile(
        folder / "m.onnx",
        precision="int8",
        calibration=folder / "c.npz",
        output=folder / "out",
        force=True,
        engine="ort",
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the artifact whose sources stay where they were."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path


def test_the_same_bytes_come_again(folder: Path) -> None:
    report = rebuild_artifact(folder / "out")
    assert (report.same, report.differences) == (True, ())
    assert report.rebuilt_digest == report.digest


def test_a_kept_rebuild_is_the_same_on_disk(folder: Path) -> None:
    report = rebuild_artifact(folder / "out", output=folder / "again")
    names = sorted(str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*") if p.is_file())
    same, different, missing = filecmp.cmpfiles(folder / "out", folder / "again", names, shallow=False)
    assert (sorted(same), different, missing, report.files) == (names, [], [], len(names))


def test_sources_that_moved_give_the_same_bytes(made: Path, folder: Path) -> None:
    shutil.copy(made / "m.onnx", folder / "moved.onnx")
    shutil.copy(made / "c.npz", folder / "moved.npz")
    report = rebuild_artifact(folder / "out", model=folder / "moved.onnx", calibration=folder / "moved.npz")
    assert report.same


def test_another_file_in_the_artifact_is_told_first(folder: Path) -> None:
    """An artifact that is consistent in itself, but whose payload is not what its recipe gives."""
    import hashlib

    payload, manifest = folder / "out" / "model.onnx", folder / "out" / "manifest.json"
    model = onnx.load(payload)
    model.graph.doc_string = "changed"
    payload.write_bytes(model.SerializeToString())
    raw = json.loads(manifest.read_text())
    raw["files"]["model.onnx"] = {
        "sha256": hashlib.sha256(payload.read_bytes()).hexdigest(),
        "bytes": payload.stat().st_size,
    }
    manifest.write_text(json.dumps(raw, indent=1) + "\n")
    report = rebuild_artifact(folder / "out")
    assert not report.same
    assert report.differences[0].startswith("model.onnx: ")


def test_a_changed_model_is_refused(made: Path, folder: Path) -> None:
    model = onnx.load(made / "m.onnx")
    model.doc_string = "changed"
    onnx.save(model, folder / "m2.onnx")
    with pytest.raises(DataError, match="is not the file") as caught:
        rebuild_artifact(folder / "out", model=folder / "m2.onnx")
    assert caught.value.reason == "source-changed"


def test_a_missing_model_is_refused(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        rebuild_artifact(folder / "out", model=folder / "gone.onnx")
    assert caught.value.reason == "source-missing"


def test_changed_calibration_data_are_refused(folder: Path) -> None:
    np.savez(folder / "c2.npz", x=np.zeros((20, 16), np.float32))
    with pytest.raises(DataError) as caught:
        rebuild_artifact(folder / "out", calibration=folder / "c2.npz")
    assert caught.value.reason == "calibration-changed"


def test_missing_calibration_data_are_refused(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        rebuild_artifact(folder / "out", calibration=folder / "gone.npz")
    assert caught.value.reason == "calibration-missing-file"


def test_an_artifact_from_memory_needs_its_model(made: Path, folder: Path) -> None:
    pared.compile((made / "m.onnx").read_bytes(), output=folder / "memory")
    with pytest.raises(ArtifactError) as caught:
        rebuild_artifact(folder / "memory")
    assert caught.value.reason == "source-unknown"
    assert rebuild_artifact(folder / "memory", model=made / "m.onnx").same


def test_the_file_of_the_users_own_target_is_not_needed_again(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    target.write_text('extends = "cpu"\nname = "mine"\ndescription = "my CPU"\n')
    pared.compile(made / "m.onnx", target=str(target), output=tmp_path / "out")
    target.unlink()
    assert rebuild_artifact(tmp_path / "out").same
