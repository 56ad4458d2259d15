"""Nothing is recorded about the user: the engine's own telemetry is off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import pared
from pared.compiler.ort import make_session
import onnx_ir as ir
make_session(ir.from_onnx_text('<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y)'
    ' { y = Relu(x) }'))
"""


def files_left(folder: Path) -> list[str]:
    """Names that a session leaves in the user's folders."""
    folders = {"HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder)}
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", RUN], env=kept | folders, check=True)
    return [path.name for path in folder.rglob("*")]


def test_a_session_leaves_no_trace_in_the_users_folders(tmp_path: Path) -> None:
    assert files_left(tmp_path) == []


def test_a_choice_made_before_is_respected(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import pared, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"],
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "0"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout == "0\n"
