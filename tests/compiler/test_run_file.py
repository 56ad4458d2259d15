"""Running over files of samples: shapes of outputs, and all or nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from pared.compiler import run_file as module
from pared.compiler.backend import Array, Arrays, Port, Signature
from pared.compiler.errors import DataError
from pared.compiler.files import write_file
from pared.compiler.run_file import NamedShape, RunReport, run_file, write_npz

Function = Callable[[Array], Array]


class FakeModel:
    """Computes `y = function(x)` for x float [1, 3]."""

    signature = Signature((Port("x", "FLOAT", (1, 3)),), (Port("y", "FLOAT", (1,)),))
    best_rows = 1
    artifact = None

    def __init__(self, function: Function) -> None:
        self._function = function

    def run(self, inputs: Arrays) -> dict[str, Array]:
        return {"y": np.asarray(self._function(inputs["x"]))}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        return


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=np.arange(12, dtype=np.float32).reshape(4, 3))
    return tmp_path / "x.npz"


def run(samples: Path, function: Function, monkeypatch: pytest.MonkeyPatch) -> tuple[RunReport, Array]:
    monkeypatch.setattr(module, "load", lambda path, threads: FakeModel(function))
    monkeypatch.setattr(module, "simulation_of", lambda artifact: ())
    output = samples.parent / "y.npz"
    report = run_file(Path("out"), samples, output, threads=1, progress=lambda label, done, total: None)
    with np.load(output) as archive:
        return report, archive["y"]


class FakeBatches(FakeModel):
    """Takes any number of samples, three at best."""

    signature = Signature((Port("x", "FLOAT", ("n", 3)),), (Port("y", "FLOAT", ("n", 3)),))
    best_rows = 3


def test_models_that_are_made_for_batches_get_them(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def double(x: Array) -> Array:
        seen.append(len(x))
        return np.asarray(x) * 2

    monkeypatch.setattr(module, "load", lambda path, threads: FakeBatches(double))
    monkeypatch.setattr(module, "simulation_of", lambda artifact: ("simulated here",))
    output = samples.parent / "y.npz"
    report = run_file(Path("out"), samples, output, threads=1, progress=lambda label, done, total: None)
    with np.load(output) as archive:
        np.testing.assert_array_equal(archive["y"], np.arange(12, dtype=np.float32).reshape(4, 3) * 2)
    assert seen == [3, 1]
    assert report.notes == ("simulated here",)


def test_outputs_with_a_batch_axis_are_concatenated(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, y = run(samples, lambda x: x * 2, monkeypatch)
    np.testing.assert_array_equal(y, np.arange(12, dtype=np.float32).reshape(4, 3) * 2)
    assert report.inputs == (NamedShape("x", "float32", (4, 3)),)
    assert report.outputs == (NamedShape("y", "float32", (4, 3)),)


def test_scalar_outputs_are_stacked(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, y = run(samples, lambda x: np.float32(x.sum()), monkeypatch)
    np.testing.assert_array_equal(y, np.array([3, 12, 21, 30], np.float32))


def test_outputs_without_a_batch_axis_get_one(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, y = run(samples, lambda x: x[0], monkeypatch)
    assert y.shape == (4, 3)


def test_outputs_of_different_shapes_are_refused(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="different shapes") as caught:
        run(samples, lambda x: np.zeros((1, int(x[0, 0]))), monkeypatch)
    assert caught.value.reason == "output-shapes-differ"


def test_a_failure_leaves_the_old_output(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = samples.parent / "y.npz"
    output.write_bytes(b"old")
    with pytest.raises(DataError):
        run(samples, lambda x: np.zeros((1, int(x[0, 0]))), monkeypatch)
    assert output.read_bytes() == b"old"


def test_another_suffix_is_refused(samples: Path) -> None:
    with pytest.raises(DataError, match=r"only \.npz"):
        run_file(Path("out"), samples, Path("y.csv"), threads=1, progress=lambda a, b, c: None)


@pytest.mark.parametrize("name", ["input:0", "a/b", "file", "arr_0"])
def test_any_name_survives_the_file(name: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "y.npz", {name: np.arange(3)})
    with np.load(tmp_path / "y.npz") as archive:
        np.testing.assert_array_equal(archive[name], np.arange(3))


def test_a_written_file_has_the_usual_mode(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_file(tmp_path / "f", b"text")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "folder", b"text")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_cannot_be_written_is_named_as_given(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nosuch") as caught:
        write_file(tmp_path / "nosuch" / "y.npz", b"")
    assert caught.value.filename == str(tmp_path / "nosuch" / "y.npz")
