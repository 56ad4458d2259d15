"""`pared compile`: flags, recipes and what is written where."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_runner import Run
from onnx import TensorProto, helper, numpy_helper

from pared.compiler.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with a model `m.onnx` and calibration data `c.npz`."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (16, 16)), ("w2", (16, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "fc1"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "fc2"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 16), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializer=weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=rng.standard_normal((24, 16)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Only the payload of engine `ort` is a model that these tests can look into.
ORT = ("--engine", "ort")
INT8 = ("--precision", "int8", "--calib-data", "c.npz", "--force", *ORT)


def pipeline(pared: Run, *args: object) -> str:
    done = pared("compile", "-m", "m.onnx", "--print-pipeline", *args)
    assert done.code == 0, done.err
    return " ".join(done.out.split())


@pytest.mark.parametrize("flag", [("-O0",), ("-O", "0"), ("--opt-level", "0"), ("--opt-level=0",)])
def test_the_level_is_read_in_every_spelling(flag: tuple[str, ...], folder: Path, pared: Run) -> None:
    assert pipeline(pared, *flag) == pipeline(pared, "-O0") != pipeline(pared)


def test_level_2_is_the_default(folder: Path, pared: Run) -> None:
    assert pipeline(pared) == pipeline(pared, "-O2")


@pytest.mark.parametrize("flag", ["-O4", "-O-1", "-Ofast"])
def test_another_level_is_a_usage_error(flag: str, folder: Path, pared: Run) -> None:
    done = pared("compile", "-m", "m.onnx", flag, "--print-pipeline")
    assert (done.code, "error[usage]" in done.err) == (2, True)


def test_print_pipeline_needs_no_model_and_writes_nothing(folder: Path, pared: Run) -> None:
    before = sorted(folder.iterdir())
    assert pared("compile", "--pipeline", "dead-code", "--print-pipeline").out == "dead-code\n"
    assert sorted(folder.iterdir()) == before


def test_a_dump_folder_that_cannot_be_made_is_named(folder: Path, pared: Run) -> None:
    done = pared("compile", "-m", "m.onnx", "--dry-run", "--dump-ir", "m.onnx/ir")
    assert done.code == 2
    assert "m.onnx/ir" in done.err


def test_a_full_temporary_folder_is_told_with_the_way_out(
    folder: Path, pared: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pared.compiler.driver.choose.choose", full)
    done = pared("compile", "-m", "m.onnx", "-o", "out")
    assert (done.code, "set TMPDIR" in done.err, (folder / "out").exists()) == (2, True, False)


def test_print_pipeline_is_one_line_to_copy(folder: Path, pared: Run) -> None:
    printed = pared("compile", "--precision", "int8", "--print-pipeline").out
    assert len(printed) > 100
    assert printed.count("\n") == 1


def test_a_precision_flag_wins_over_the_pipeline_of_a_saved_recipe(folder: Path, pared: Run) -> None:
    pared("compile", "-m", "m.onnx", *INT8, "--save-config", "r.yaml", "--print-pipeline")
    flags = ("--precision", "w8", "-O1")
    assert pipeline(pared, "-c", "r.yaml", *flags) == pipeline(pared, *flags)


def test_a_pipeline_written_by_hand_outlives_a_precision_flag(folder: Path, pared: Run) -> None:
    (folder / "r.yaml").write_text("pipeline: dead-code\n")
    assert pipeline(pared, "-c", "r.yaml", "--precision", "w8") == "dead-code"


def test_a_dry_run_writes_nothing(folder: Path, pared: Run) -> None:
    before = sorted(folder.iterdir())
    done = pared("compile", "-m", "m.onnx", *INT8, "--dry-run", "--json")
    assert (done.code, done.json["output"], done.json["digest"]) == (0, None, None)
    assert sorted(folder.iterdir()) == before


def test_quiet_prints_nothing(folder: Path, pared: Run) -> None:
    done = pared("compile", "-m", "m.onnx", *ORT, "-o", "out", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_the_payload_is_a_plain_model_that_onnxruntime_runs(folder: Path, pared: Run) -> None:
    import onnxruntime

    assert pared("compile", "-m", "m.onnx", *INT8, "-o", "out", "-q").code == 0
    session = onnxruntime.InferenceSession(str(folder / "out" / "model.onnx"))
    assert session.run(["y"], {"x": np.zeros((2, 16), np.float32)})[0].shape == (2, 4)


def test_an_excluded_layer_stays_in_float(folder: Path, pared: Run) -> None:
    done = pared("compile", "-m", "m.onnx", *INT8, "--exclude", "fc1", "-o", "out", "-q")
    assert done.code == 0, done.err
    # Weights of small layers are unpacked by Cast and Mul, so their storage tells, not a quantized operand.
    stored = {tuple(t.dims): t.data_type for t in onnx.load("out/model.onnx").graph.initializer}
    assert stored[16, 16] == TensorProto.FLOAT
    assert stored[16, 4] == TensorProto.INT8


def test_exclude_takes_several_names(folder: Path, pared: Run) -> None:
    args = (*INT8, "--exclude", "fc1", "--exclude", "fc.", "-o", "out", "--json")
    done = pared("compile", "-m", "m.onnx", *args)
    assert done.json["report"]["precision"] == "float"  # type: ignore[index,call-overload]


def test_a_shape_binds_a_symbolic_size(folder: Path, pared: Run) -> None:
    done = pared("compile", "-m", "m.onnx", "--shape", "x:3x16", "-o", "out", "--json")
    signature = done.json["report"]["signature"]  # type: ignore[index,call-overload]
    assert signature["inputs"][0]["shape"] == [3, 16]  # type: ignore[index,call-overload]


def test_dump_ir_writes_the_model_after_every_pass(folder: Path, pared: Run) -> None:
    pared(
        "compile", "-m", "m.onnx", "--pipeline", "dead-code,eliminate", "--dump-ir", "ir", "--dry-run", "-q"
    )
    assert sorted(p.name for p in (folder / "ir").iterdir()) == [
        "00-input.onnx",
        "01-dead-code.onnx",
        "02-eliminate.onnx",
    ]


def test_verify_each_compiles_too(folder: Path, pared: Run) -> None:
    assert pared("compile", "-m", "m.onnx", *INT8, "--verify-each", "--dry-run", "-q").code == 0


def test_a_saved_recipe_is_resolved(folder: Path, pared: Run) -> None:
    args = ("-m", "m.onnx", *INT8, "--seed", 7, "--dry-run", "-q", "--save-config", "r.yaml")
    assert pared("compile", *args).code == 0
    recipe = Recipe.read(folder / "r.yaml")
    assert (recipe.model, recipe.precision, recipe.seed) == (str(folder / "m.onnx"), "int8", 7)
    assert recipe.pipeline is not None
    assert "quantize" in recipe.pipeline


def test_a_saved_recipe_compiles_to_the_same_payload(folder: Path, pared: Run) -> None:
    pared("compile", "-m", "m.onnx", *INT8, "-o", "out", "-q", "--save-config", "r.yaml")
    assert pared("compile", "-c", "r.yaml", "-o", "again", "-q").code == 0
    assert (folder / "out" / "model.onnx").read_bytes() == (folder / "again" / "model.onnx").read_bytes()


def test_flags_win_over_the_recipe(folder: Path, pared: Run) -> None:
    (folder / "r.yaml").write_text("model: m.onnx\nopt_level: 0\n")
    assert pipeline(pared, "-c", "r.yaml") == pipeline(pared, "-O0")
    assert pipeline(pared, "-c", "r.yaml", "-O2") == pipeline(pared, "-O2")


def test_paths_in_a_recipe_are_relative_to_it(
    folder: Path, pared: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "r.yaml").write_text("model: m.onnx\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert pared("compile", "-c", "../r.yaml", "--dry-run", "-q").code == 0


def test_no_recipe_is_saved_when_the_compilation_fails(folder: Path, pared: Run) -> None:
    (folder / "bad.onnx").write_bytes(b"")
    assert pared("compile", "-m", "bad.onnx", "--dry-run", "--save-config", "r.yaml").code == 2
    assert not (folder / "r.yaml").exists()


def test_an_older_artifact_is_replaced(folder: Path, pared: Run) -> None:
    first = pared("compile", "-m", "m.onnx", "-o", "out", "--json").json["digest"]
    second = pared("compile", "-m", "m.onnx", "-O0", "-o", "out", "--json").json["digest"]
    assert first != second
    assert pared("rebuild", "out", "--check", "--json").json["digest"] == second


def test_check_and_output_of_rebuild_exclude_each_other(folder: Path, pared: Run) -> None:
    pared("compile", "-m", "m.onnx", *ORT, "-o", "out", "-q")
    assert pared("rebuild", "out", "--check", "-o", "again").code == 2


def test_verify_exits_0_within_the_bound(folder: Path, pared: Run) -> None:
    pared("compile", "-m", "m.onnx", *ORT, "-o", "out", "-q")
    assert pared("verify", "out", "--data", "c.npz", "-q").code == 0


def test_verify_exits_1_when_an_output_is_outside_its_bound(folder: Path, pared: Run) -> None:
    """The payload is exchanged for one with other weights, the manifest's hash with it."""
    pared("compile", "-m", "m.onnx", *ORT, "-o", "out", "-q")
    payload, manifest = folder / "out" / "model.onnx", folder / "out" / "manifest.json"
    model = onnx.load(payload)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    payload.write_bytes(model.SerializeToString())
    raw = json.loads(manifest.read_text())
    digest = hashlib.sha256(payload.read_bytes()).hexdigest()
    raw["files"]["model.onnx"] = {"sha256": digest, "bytes": payload.stat().st_size}
    manifest.write_text(json.dumps(raw, indent=1) + "\n")
    done = pared("verify", "out", "--json")
    assert (done.code, done.json["passed"]) == (1, False)
