import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_artifact import INPUTS, OUTPUTS, write

from pared.compiler.artifact.arrays import npz_bytes, read_npz
from pared.compiler.artifact.compare import differences
from pared.compiler.artifact.manifest import Manifest, Quantization, SignatureRecord
from pared.compiler.artifact.read import open_artifact
from pared.compiler.backend import Port, Signature
from pared.compiler.errors import ArtifactError

FILES = ["model.onnx", "golden/inputs.npz", "golden/outputs.npz", "reports/passes.json"]


def reason(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path)
    return caught.value.reason


def edit(artifact: Path, **changes: object) -> None:
    path = artifact / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | changes))


def test_a_whole_artifact_opens(artifact):
    found = open_artifact(artifact)
    assert found.signature == Signature((Port("x", "FLOAT", ("N", 2)),), (Port("y", "FLOAT", ("N", 1)),))
    assert found.payload_files() == ["model.onnx"]
    assert found.payload_bytes() == (artifact / "model.onnx").stat().st_size


def test_golden_samples_come_back(artifact):
    golden = open_artifact(artifact).golden()
    assert [inputs["x"].tolist() for inputs, _ in golden] == [sample["x"].tolist() for sample in INPUTS]
    assert [outputs["y"].tolist() for _, outputs in golden] == [sample["y"].tolist() for sample in OUTPUTS]


def test_reports_can_be_read(artifact):
    assert open_artifact(artifact).read_text("reports/passes.json") == "{}\n"


def test_a_report_that_is_not_there_is_refused(artifact):
    with pytest.raises(ArtifactError, match=r"reports/passes\.json"):
        open_artifact(artifact).read_text("reports/none.json")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(artifact, name):
    path = artifact / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"'{name}' was changed .*sha256") as caught:
        open_artifact(artifact)
    assert caught.value.reason == "artifact-file-changed"


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(artifact, name):
    path = artifact / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes, the manifest says"):
        open_artifact(artifact)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(artifact, name):
    (artifact / name).unlink()
    assert reason(artifact) == "artifact-file-missing"


@pytest.mark.parametrize("name", ["extra.txt", "golden/extra.npz", "a/b/c", ".hidden"])
def test_a_foreign_file_is_refused(artifact, name):
    (artifact / name).parent.mkdir(parents=True, exist_ok=True)
    (artifact / name).write_text("")
    assert reason(artifact) == "artifact-file-foreign"


def test_a_link_is_refused_even_to_the_right_bytes(artifact, tmp_path):
    (artifact / "model.onnx").rename(tmp_path / "real")
    (artifact / "model.onnx").symlink_to(tmp_path / "real")
    assert reason(artifact) == "artifact-file-foreign"


def test_a_linked_manifest_is_refused(artifact, tmp_path):
    (artifact / "manifest.json").rename(tmp_path / "real")
    (artifact / "manifest.json").symlink_to(tmp_path / "real")
    assert reason(artifact) == "artifact-not-found"


def test_a_pipe_is_refused_without_waiting(artifact):
    (artifact / "model.onnx").unlink()
    os.mkfifo(artifact / "model.onnx")
    assert reason(artifact) == "artifact-file-foreign"


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0"])
def test_another_major_version_is_refused_with_both_versions(artifact, version):
    edit(artifact, schema_version=version)
    with pytest.raises(ArtifactError, match=f"schema version {version}, this pared reads 1.x") as caught:
        open_artifact(artifact)
    assert caught.value.reason == "artifact-version"


def test_a_later_minor_version_with_new_keys_opens(artifact):
    edit(artifact, schema_version="1.7", novelty={"a": 1})
    assert open_artifact(artifact).manifest.schema_version == "1.7"


@pytest.mark.parametrize("version", [None, 1, "1", "1.0.0", "one.two", "9" * 5000])
def test_a_nonsense_version_is_refused(artifact, version):
    edit(artifact, schema_version=version)
    assert reason(artifact) == "artifact-manifest"


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/../b", "C:\\x", ".hidden", "", "a//b", "model\n", "x" * 300]
)
def test_names_that_escape_are_refused(artifact, name):
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    edit(artifact, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    assert reason(artifact) == "artifact-manifest"


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"model.onnx": {"sha256": "abc", "bytes": 1}}},
        {"files": {"model.onnx": {"sha256": "0" * 64, "bytes": -1}}},
        {"files": []},
        {"seed": "many"},
        {"signature": {}},
        {"bounds": {"y": {"atol": -1, "rtol_of_max": 0}}},
    ],
)
def test_wrong_values_are_refused_with_their_key(artifact, change):
    edit(artifact, **change)
    with pytest.raises(ArtifactError, match=f"not a valid manifest: {next(iter(change))}"):
        open_artifact(artifact)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"{}", b"null"])
def test_what_is_no_manifest_is_refused(artifact, text):
    (artifact / "manifest.json").write_bytes(text)
    assert reason(artifact) == "artifact-manifest"


def test_a_huge_manifest_is_refused_unparsed(artifact):
    with (artifact / "manifest.json").open("ab") as file:
        file.truncate(1 << 30)
    assert reason(artifact) == "artifact-manifest"


@pytest.mark.parametrize("name", ["none", "empty"])
def test_what_is_no_artifact_is_not_found(tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / name) == "artifact-not-found"


def pack(artifact: Path, path: Path, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(artifact.rglob("*")):
            archive.write(file, file.relative_to(artifact))
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path


def test_a_zip_opens_and_its_folder_goes_with_it(artifact, tmp_path):
    found = open_artifact(pack(artifact, tmp_path / "a.zip"))
    folder = found.path
    assert len(found.golden()) == 2
    del found
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "golden\\..\\evil"])
def test_a_zip_that_escapes_is_refused(artifact, tmp_path, name):
    assert reason(pack(artifact, tmp_path / "a.zip", {name: b"x"})) == "artifact-zip"
    assert not list(tmp_path.parent.glob("evil"))


def test_a_zip_with_a_foreign_file_is_refused(artifact, tmp_path):
    assert reason(pack(artifact, tmp_path / "a.zip", {"model.extra": b"x"})) == "artifact-file-foreign"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice_is_refused(artifact, tmp_path):
    assert reason(pack(artifact, tmp_path / "a.zip", {"model.onnx": b"x"})) == "artifact-zip"


def test_a_zip_larger_than_the_disk_is_refused(artifact, tmp_path, monkeypatch):
    path = pack(artifact, tmp_path / "a.zip", {"model.bomb": bytes(1 << 24)})
    free = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ArtifactError, match=r"unpack to 16.* bytes, which is refused"):
        open_artifact(path)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all"])
def test_what_is_no_zip_is_refused(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    assert reason(tmp_path / "a.zip") == "artifact-zip"


def test_a_damaged_zip_is_refused(artifact, tmp_path):
    path = pack(artifact, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[200:240] = bytes(40)
    path.write_bytes(data)
    assert reason(path) in ("artifact-zip", "artifact-file-changed")


def test_manifest_text_round_trips(artifact):
    found = open_artifact(artifact).manifest
    assert Manifest.parse(found.text().encode(), "here") == found


def test_port_quantization_round_trips():
    ports = Signature((Port("x", "INT8", (1, 2)),), ())
    record = SignatureRecord.of(ports, {"x": Quantization(scale=(0.1,), zero_point=(-3,))})
    again = SignatureRecord.model_validate_json(record.model_dump_json())
    assert (again, again.signature()) == (record, ports)


def test_equal_artifacts_do_not_differ(artifact, tmp_path):
    other = write(tmp_path / "other")
    assert differences(open_artifact(artifact).manifest, open_artifact(other).manifest) == []


def test_differences_name_key_and_file(artifact):
    one = open_artifact(artifact).manifest
    files = {**one.files, "model.onnx": one.files["golden/inputs.npz"]}
    files.pop("golden/outputs.npz")
    found = differences(one, one.model_copy(update={"seed": 9, "files": files}))
    assert found[0] == "manifest: seed differs"
    assert found[1] == "golden/outputs.npz: only in the first"
    assert found[2].startswith("model.onnx: ")


def test_a_report_counts_like_any_file(artifact):
    one = open_artifact(artifact).manifest
    files = {name: record for name, record in one.files.items() if not name.startswith("reports/")}
    changed = one.model_copy(update={"files": files})
    assert differences(one, changed) == ["reports/passes.json: only in the first"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.array(3, np.int64),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.arange(6, dtype=">f4"),
        np.arange(6.0).reshape(2, 3).T,
        np.array(["a", "bc"], object),
    ],
)
def test_arrays_round_trip_without_pickle(tmp_path, array):
    (tmp_path / "a.npz").write_bytes(npz_bytes({"0/a:0": array}))
    back = read_npz(tmp_path / "a.npz")["0/a:0"]
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_arrays_that_need_pickle_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(ArtifactError, match="cannot read its arrays"):
        read_npz(tmp_path / "a.npz")


def test_a_file_that_is_no_artifact_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no zip")
    with pytest.raises(ArtifactError) as caught:
        open_artifact(tmp_path / "model.onnx")
    assert caught.value.reason == "artifact-zip"
    assert "pared compile -o" in caught.value.next_step
