from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Run
from json_keys import documented, plain, promised

from pared.compiler.event_run import EventReport

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
