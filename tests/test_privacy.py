"""Nothing is recorded about the user: the engine's own telemetry is off."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

COMPILE = """
import sys
import onnx_ir as ir
import pared
text = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
pared.compile(ir.from_onnx_text(text), engine=sys.argv[1], output=sys.argv[2])
"""


def files_left(folder: Path, engine: str) -> list[str]:
    """Names that a compilation leaves in the user's folders."""
    home = folder / "home"
    home.mkdir()
    folders = {name: str(home) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    command = [sys.executable, "-c", COMPILE, engine, str(folder / "out")]
    subprocess.run(command, env=kept | folders, check=True)
    return [path.name for path in home.rglob("*")]


def test_onnxruntime_leaves_no_trace_in_the_users_folders(tmp_path: Path) -> None:
    assert files_left(tmp_path, "ort") == []


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_leaves_no_trace_in_the_users_folders(tmp_path: Path) -> None:
    assert files_left(tmp_path, "openvino") == []


def test_a_choice_made_before_is_respected(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import pared, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"],
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "0"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout == "0\n"
