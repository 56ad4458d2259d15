from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_runner import Run
from json_keys import documented, plain, promised
from onnx import TensorProto, helper, numpy_helper

from pared.compiler.event_run import EventReport

DATA = Path(os.environ["PARED_DATA"]) if "PARED_DATA" in os.environ else None
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture
def artifact(place: Path, pared: Run) -> Path:
    """The digits CNN for target event-cpu, compiled once."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    if not (place / "out").exists():
        model = EXAMPLES / "models" / "digits_cnn.onnx"
        data = EXAMPLES / "data" / "digits_calibration.npz"
        named = ("--target", "event-cpu", "--precision", "int8", "--calib-data", data)
        done = pared("compile", "-m", model, *named, "-o", place / "out")
        assert done.code == 0, done.out + done.err
    return place / "out"


def recording(path: Path, t: list[int]) -> Path:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, (2, len(t))).astype(np.int16)
    np.savez(path, x=x, y=y, t=np.array(t, np.int64), p=np.ones(len(t), bool))
    return path


def test_the_documented_keys_are_the_promised_ones() -> None:
    found = plain(promised(EventReport))
    assert documented("`pared run --events`") == found - {"counts.*"}


def test_a_recording_gives_a_row_per_window_with_events(artifact: Path, place: Path, pared: Run) -> None:
    file = recording(place / "e.npz", [0, 5, 999, 1000, 7500, 7501])
    done = pared("run", artifact, "--events", file, "--window", "1ms", "-o", place / "y.npz", "--json")
    assert done.code == 0, done.out
    assert done.json["counts"]["used"] == 6  # type: ignore[index,call-overload]
    rows = np.load(place / "y.npz")
    assert rows["time_us"].tolist() == [1000, 2000, 8000]
    assert rows["events"].tolist() == [3, 1, 2]
    assert rows["logits"].shape == (3, 10)


def test_strict_refuses_what_is_dropped_otherwise(artifact: Path, place: Path, pared: Run) -> None:
    file = recording(place / "late.npz", [10, 20, 5, 30])
    args = ("run", artifact, "--events", file, "-o", place / "z.npz")
    assert pared(*args).code == 0
    done = pared(*args, "--strict", "--json")
    assert done.code == 2
    assert done.json["error"]["reason"] == "event-order"  # type: ignore[index,call-overload]


def test_run_takes_samples_or_a_recording(artifact: Path, place: Path, pared: Run) -> None:
    done = pared("run", artifact, "-o", place / "n.npz", "--json")
    assert (done.code, done.json["error"]["reason"]) == (2, "run-input")  # type: ignore[index,call-overload]


def test_a_recording_without_counters_shows_no_empty_table(artifact: Path, place: Path, pared: Run) -> None:
    file = place / "empty.bin"
    file.write_bytes(b"abc")
    done = pared("run", artifact, "--events", file, "-o", place / "n.npz")
    assert done.code == 0, done.err
    assert "counter" not in done.out
    assert "3 bytes at the end are no whole event" in done.out


def test_a_table_of_events_taken_for_frames_says_how_events_look(
    artifact: Path, place: Path, pared: Run
) -> None:
    np.save(place / "table.npy", np.array([[118, 0, 0.3], [58, 0, 2.9]]))
    done = pared("run", artifact, "--events", place / "table.npy", "-o", place / "n.npz", "--json")
    error = done.json["error"]
    assert isinstance(error, dict)
    assert error["reason"] == "event-frame"
    assert "a table of events is a .npz of x, y, t, p" in str(error["next_step"])


@pytest.mark.parametrize(
    ("name", "reason"), [("y.txt", "output-format"), ("no/such/folder/y.npz", "output-folder")]
)
def test_a_place_for_outputs_is_checked_before_a_recording_runs(
    artifact: Path, place: Path, pared: Run, name: str, reason: str
) -> None:
    file = recording(place / "o.npz", [0, 1])
    done = pared("run", artifact, "--events", file, "-o", place / name, "--json")
    assert (done.code, done.json["error"]["reason"]) == (2, reason)  # type: ignore[index,call-overload]
    assert not (place / name).exists()


def row_model(path: Path) -> Path:
    """Write two dense layers behind a row of 200 counts."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=size).astype(np.float32) / 10 for size in ((200, 16), (16, 10))]
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], name="f"),
        helper.make_node("MatMul", ["f", "w0"], ["h"], name="h"),
        helper.make_node("Relu", ["h"], ["r"], name="r"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="y"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 1, 1, 200]), ("y", ["N", 10]))
    ]
    arrays = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "row", ports[:1], ports[1:], initializer=arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.skipif(DATA is None, reason="PARED_DATA is not set")
@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_a_real_recording_gives_what_its_windows_give_as_samples(tmp_path: Path, pared: Run) -> None:
    assert DATA is not None
    neuron, _, ms = np.load(DATA / "datasets" / "lava_oxford" / "input.npy").T
    t, x = (ms * 1000).round().astype(int), neuron.astype(int)
    np.savez(tmp_path / "e.npz", x=x, y=np.zeros(len(t), int), t=t, p=np.ones(len(t), bool))
    counts = np.zeros((189, 1, 1, 200), np.float32)
    np.add.at(counts, (t // 10_000, 0, 0, x), 1)
    np.savez(tmp_path / "c.npz", x=counts)
    named = ("--target", "event-cpu", "--precision", "int8", "--calib-data", tmp_path / "c.npz")
    out = tmp_path / "out"
    assert pared("compile", "-m", row_model(tmp_path / "m.onnx"), *named, "-o", out).code == 0
    assert pared("run", out, "--events", tmp_path / "e.npz", "-o", tmp_path / "y.npz").code == 0
    assert pared("run", out, "--input", tmp_path / "c.npz", "-o", tmp_path / "z.npz").code == 0
    rows = np.load(tmp_path / "y.npz")
    assert rows["events"].sum() == 1889
    np.testing.assert_array_equal(rows["y"], np.load(tmp_path / "z.npz")["y"])
