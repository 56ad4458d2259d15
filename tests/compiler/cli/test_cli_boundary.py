"""Whatever a verb raises becomes one message and an exit code."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
import typer

from pared.compiler.cli import boundary
from pared.compiler.errors import Cancelled, DataError


def test_a_pared_error_names_reason_and_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    code = boundary.report(DataError("calibration-nan", "input 'x' has NaN", "clean it"), as_json=False)
    assert code == 2
    assert capsys.readouterr().err == "error[calibration-nan]: input 'x' has NaN\n  next: clean it\n"


def test_a_pared_error_in_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code = boundary.report(DataError("calibration-nan", "input 'x' has NaN", "clean it"), as_json=True)
    captured = capsys.readouterr()
    body = {"reason": "calibration-nan", "message": "input 'x' has NaN", "next_step": "clean it"}
    assert (code, captured.err, json.loads(captured.out)) == (2, "", {"error": body})


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort(), Cancelled()])
def test_an_interruption_exits_130(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.report(error, as_json=False) == 130
    assert "nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "disk-full"), (errno.EACCES, "not-permitted"), (errno.EROFS, "not-permitted")],
)
def test_system_errors_are_told_as_such(number: int, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = boundary.report(OSError(number, "text", "/some/file"), as_json=False)
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith(f"error[{reason}]: /some/file: ")


def test_an_unexpected_error_leaves_a_crash_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise AssertionError("broken invariant")
    except AssertionError as err:
        code = boundary.report(err, as_json=False)
    shown = capsys.readouterr().err
    assert code == 70
    assert "Traceback" not in shown
    found = re.search(r"the details are in (\S+)", shown)
    assert found is not None
    assert "Traceback" in Path(found[1]).read_text()


def test_an_unexpected_system_error_is_a_crash_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert boundary.report(OSError(errno.EBADF, "bad descriptor"), as_json=False) == 70


def test_a_crash_without_a_place_for_the_report_still_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent/folder")
    assert boundary.report(ValueError("odd"), as_json=False) == 70
    assert "could not be written" in capsys.readouterr().err


def test_a_path_that_is_not_text_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "/data/m\udcff.onnx".encode()
    assert boundary.report(caught.value, as_json=False) == 2
    assert "error[bad-path]" in capsys.readouterr().err


def test_a_crash_report_takes_arguments_that_are_not_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["pared", "compile", "-m", "m\udcff.onnx"])
    assert boundary.report(ValueError("odd"), as_json=False) == 70
    assert "m\\udcff.onnx" in next(tmp_path.iterdir()).read_text()
