"""Bad input through the command line: exit code 2, one message with reason and next step, nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bad_input_runner import files_under, refusal, refusal_as_json
from bad_models import BAD_MODELS, image_model, model, node, small_model

Folder = Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good model and good calibration data for it."""
    onnx.save(small_model(), tmp_path / "m.onnx")
    onnx.save(image_model(), tmp_path / "image.onnx")
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "c.npz", x=rng.standard_normal((16, 4)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("what", list(BAD_MODELS))
def test_a_bad_model_is_refused_by_compile(what: str, folder: Path) -> None:
    build, reasons = BAD_MODELS[what]
    (folder / "bad.onnx").write_bytes(build())
    assert refusal(folder, "compile", "-m", folder / "bad.onnx", "-o", folder / "out") in reasons


@pytest.mark.parametrize("what", list(BAD_MODELS))
def test_a_bad_model_is_refused_by_inspect(what: str, folder: Path) -> None:
    build, reasons = BAD_MODELS[what]
    (folder / "bad.onnx").write_bytes(build())
    assert refusal(folder, "inspect", "-m", folder / "bad.onnx") in reasons


@pytest.mark.parametrize("verb", ["compile", "inspect"])
def test_a_missing_model_is_refused(verb: str, folder: Path) -> None:
    extra = ["-o", folder / "out"] if verb == "compile" else []
    assert refusal(folder, verb, "-m", folder / "none.onnx", *extra) == "model-not-found"


def test_a_folder_as_model_is_refused(folder: Path) -> None:
    assert refusal(folder, "compile", "-m", folder, "-o", folder / "out") == "not-a-file"


def test_a_refusal_with_json_is_one_object(folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(b"")
    assert refusal_as_json(folder, "inspect", "-m", folder / "bad.onnx")["reason"] == "empty-model"


def test_a_shape_for_no_input_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "--shape", "ghost:1x4", "-o", folder / "out")
    assert refusal(folder, *args) == "unknown-input"


def test_a_shape_against_a_fixed_size_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "--shape", "x:1x5", "-o", folder / "out")
    assert refusal(folder, *args) == "shape-conflict"


def test_a_shape_that_is_no_shape_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "--shape", "x=1,4", "-o", folder / "out")
    assert refusal(folder, *args) == "bad-shape"


# --- calibration data -----------------------------------------------------------------------------------


def calibrated(folder: Path, arrays: dict[str, np.ndarray], name: str = "m.onnx") -> str:
    """Compile to int8 with these calibration arrays; return the reason of the refusal."""
    np.savez(folder / "bad.npz", **arrays)
    return refusal(
        folder, "compile", "-m", folder / name, "--precision", "int8",
        "--calib-data", folder / "bad.npz", "-o", folder / "out",
    )  # fmt: skip


def test_empty_calibration_is_refused(folder: Path) -> None:
    assert calibrated(folder, {"x": np.zeros((0, 4), np.float32)}) == "calibration-empty"


def test_calibration_without_arrays_is_refused(folder: Path) -> None:
    assert calibrated(folder, {}) == "calibration-empty"


def test_calibration_for_a_wrong_name_is_refused(folder: Path) -> None:
    assert calibrated(folder, {"image": np.zeros((8, 4), np.float32)}) == "calibration-wrong-name"


def test_calibration_of_a_wrong_shape_is_refused(folder: Path) -> None:
    assert calibrated(folder, {"x": np.zeros((8, 5), np.float32)}) == "calibration-shape"


def test_nhwc_calibration_for_an_nchw_model_is_refused_as_such(folder: Path) -> None:
    assert calibrated(folder, {"x": np.zeros((8, 8, 8, 3), np.float32)}, "image.onnx") == "calibration-layout"


def test_calibration_of_a_wrong_dtype_is_refused(folder: Path) -> None:
    assert calibrated(folder, {"x": np.full((8, 4), "text")}) == "calibration-dtype"


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "calibration-nan"), (np.inf, "calibration-inf"), (-np.inf, "calibration-inf")],
)
def test_calibration_that_is_not_finite_is_refused(value: float, reason: str, folder: Path) -> None:
    data = np.zeros((8, 4), np.float32)
    data[5, 2] = value
    assert calibrated(folder, {"x": data}) == reason


def test_pickled_calibration_is_refused(folder: Path) -> None:
    assert calibrated(folder, {"x": np.array([{"a": 1}], object)}) == "calibration-pickled"


def test_missing_calibration_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "--precision", "int8", "-o", folder / "out")
    assert refusal(folder, *args, "--calib-data", folder / "none.npz") == "calibration-missing-file"


def test_int8_without_calibration_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "--precision", "int8", "-o", folder / "out")
    assert refusal(folder, *args) == "calibration-missing"


def test_damaged_calibration_is_refused(folder: Path) -> None:
    damaged = folder / "damaged.npz"
    damaged.write_bytes((folder / "c.npz").read_bytes()[:-40])
    args = ("compile", "-m", folder / "m.onnx", "--precision", "int8", "-o", folder / "out")
    assert refusal(folder, *args, "--calib-data", damaged) == "calibration-corrupt"


# --- names, recipes and places -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value", "reason", "hint"),
    [
        ("--target", "cpuu", "target-unknown", "cpu"),
        ("--pipeline", "canonicalise", "unknown-pass", "canonicalize"),
        ("--pipeline", "quantize{bitss=8}", "unknown-option", "bits"),
        ("--pipeline", "quantize{bits=", "pipeline-syntax", "key=value"),
        ("--precision", "int9", "unknown-precision", "int8"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(
    flag: str, value: str, reason: str, hint: str, folder: Path
) -> None:
    args = ("compile", "-m", folder / "m.onnx", flag, value, "-o", folder / "out")
    found = refusal_as_json(folder, *args)
    assert found["reason"] == reason
    assert hint in found["next_step"]
    assert refusal(folder, *args) == reason


def test_an_unknown_recipe_key_is_refused_with_the_nearest_one(folder: Path) -> None:
    (folder / "r.yaml").write_text("model: m.onnx\nprecison: int8\n")
    found = refusal_as_json(folder, "compile", "-c", folder / "r.yaml", "-o", folder / "out")
    assert found["reason"] == "unknown-key"
    assert "precision" in found["next_step"]


def test_a_recipe_that_is_no_yaml_is_refused(folder: Path) -> None:
    (folder / "r.yaml").write_text("{model: [")
    assert refusal(folder, "compile", "-c", folder / "r.yaml", "-o", folder / "out") == "recipe-unreadable"


def test_a_recipe_that_is_not_there_is_named_once(folder: Path) -> None:
    found = refusal_as_json(folder, "compile", "-c", folder / "none.yaml", "-o", folder / "out")
    assert found["reason"] == "recipe-unreadable"
    assert found["message"] == f"{folder / 'none.yaml'}: No such file or directory"


def test_no_model_is_refused(folder: Path) -> None:
    assert refusal(folder, "compile", "-o", folder / "out") == "model-missing"


def test_no_output_is_refused(folder: Path) -> None:
    assert refusal(folder, "compile", "-m", folder / "m.onnx") == "output-missing"


def test_a_place_under_a_file_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "-o", folder / "m.onnx" / "out")
    assert refusal(folder, *args) == "artifact-unwritable"


def test_a_place_on_a_read_only_file_system_is_refused(folder: Path) -> None:
    args = ("compile", "-m", folder / "m.onnx", "-o", "/proc/pared-out")
    assert refusal(folder, *args) == "artifact-unwritable"


def test_a_folder_that_is_no_artifact_is_not_overwritten(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("keep me")
    args = ("compile", "-m", folder / "m.onnx", "-o", folder / "mine")
    assert refusal(folder, *args) == "artifact-occupied"


@pytest.mark.parametrize("verb", ["run", "verify", "bench", "rebuild"])
def test_something_that_is_no_artifact_is_refused(verb: str, folder: Path) -> None:
    (folder / "mine").mkdir()
    extra = ["--input", folder / "c.npz", "--output", folder / "y.npz"] if verb == "run" else []
    assert refusal(folder, verb, folder / "mine", *extra) == "artifact-not-found"


@pytest.mark.parametrize("verb", ["run", "verify", "bench", "rebuild"])
def test_an_artifact_with_a_wrong_checksum_is_refused(verb: str, folder: Path) -> None:
    compiled(folder)
    payload = folder / "out" / "model.onnx"
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(bytes(data))
    extra = ["--input", folder / "c.npz", "--output", folder / "y.npz"] if verb == "run" else []
    assert refusal(folder, verb, folder / "out", *extra) == "artifact-file-changed"


def test_run_refuses_a_place_that_is_no_folder(folder: Path) -> None:
    compiled(folder)
    args = ("run", folder / "out", "--input", folder / "c.npz", "--output", folder / "none" / "y.npz")
    assert refusal(folder, *args) == "output-folder"


def test_run_refuses_input_of_a_wrong_shape(folder: Path) -> None:
    compiled(folder)
    np.savez(folder / "x.npz", x=np.zeros((2, 5), np.float32))
    args = ("run", folder / "out", "--input", folder / "x.npz", "--output", folder / "y.npz")
    assert refusal(folder, *args) == "input-shape"


def test_verify_refuses_an_unknown_metric_with_the_nearest_one(folder: Path) -> None:
    compiled(folder)
    np.savez(folder / "t.npz", x=np.zeros((2, 4), np.float32), labels=np.zeros(2, np.int64))
    args = ("verify", folder / "out", "--data", folder / "t.npz", "--metric", "top2")
    found = refusal_as_json(folder, *args)
    assert found["reason"] == "unknown-metric"
    assert "top1" in found["next_step"]


def test_verify_refuses_a_tolerance_that_is_no_number(folder: Path) -> None:
    compiled(folder)
    assert refusal(folder, "verify", folder / "out", "--rtol", "y:small") == "bad-tolerance"


def test_a_computed_constant_of_a_billion_elements_is_refused(folder: Path) -> None:
    """ConstantOfShape(10^9) is a few bytes in the file and 4 GB in memory."""
    size = onnx.numpy_helper.from_array(np.array([10**9], np.int64), "n")
    nodes = [
        node("ConstantOfShape", "n", "big"),
        node("ReduceMax", "big", "m", keepdims=0),
        node("Add", "x m", "y"),
    ]
    onnx.save(model(nodes, [size]), folder / "huge.onnx")
    args = ("compile", "-m", folder / "huge.onnx", "-o", folder / "out")
    assert refusal(folder, *args) == "value-too-large"


def compiled(folder: Path) -> None:
    """Put a good artifact at `out`."""
    from pared.compiler.cli.app import main

    assert (
        main(["compile", "-m", str(folder / "m.onnx"), "-o", str(folder / "out"), "--engine", "ort", "-q"])
        == 0
    )
    assert "out/manifest.json" in files_under(folder)
