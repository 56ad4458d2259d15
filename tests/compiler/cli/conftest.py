from __future__ import annotations

import pytest
from cli_runner import Result, Run

from pared.compiler.cli.app import main


@pytest.fixture
def pared(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; arguments may be paths and numbers."""

    def run(*args: object) -> Result:
        code = main([str(arg) for arg in args])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run
