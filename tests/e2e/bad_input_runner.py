"""Runs the command line for the bad-input tests and says what it left behind."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

from pared.compiler.cli.app import main

_FIRST_LINE = re.compile(r"error\[([a-z0-9-]+)\]: \S.*")


def files_under(folder: Path) -> set[str]:
    """Return every path below a folder, hidden ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refusal(folder: Path, *args: object) -> str:
    """Run a command that must refuse; return its reason code.

    Checks what every refusal has in common: exit code 2, one message with a next step on stderr, nothing
    on stdout, no traceback, and not one file more or less under `folder`.
    """
    before = files_under(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(arg) for arg in args])
    text = err.getvalue()
    assert code == 2, f"exit code {code}: {text}"
    assert out.getvalue() == ""
    assert "Traceback" not in text
    assert files_under(folder) == before
    found = _FIRST_LINE.match(text)
    assert found is not None, text
    assert text.count("error[") == 1
    assert "next: " in text, f"no next step: {text}"
    return found[1]


def refusal_as_json(folder: Path, *args: object) -> dict[str, str]:
    """Run with `--json` a command that must refuse; return its error object."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*(str(arg) for arg in args), "--json"])
    assert (code, err.getvalue()) == (2, "")
    body: dict[str, dict[str, str]] = json.loads(out.getvalue())
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"reason", "message", "next_step"}
    return body["error"]
