"""The C host of examples/embed_c is built and run, and gives what pared gives."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pared

pytest.importorskip("tvm", reason="apache-tvm is not installed")
EXAMPLES = Path(__file__).parents[1] / "examples"
if shutil.which("make") is None or shutil.which("cc") is None or sys.platform != "linux":
    pytest.skip("needs make and cc on Linux", allow_module_level=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    out = tmp_path_factory.mktemp("embed") / "out"
    pared.compile(EXAMPLES / "models" / "digits_mlp.onnx", engine="native", output=out)
    return out


@pytest.fixture(scope="module")
def host(artifact):
    folder = artifact.parent
    for name in ("host.c", "Makefile"):
        shutil.copy(EXAMPLES / "embed_c" / name, folder)
    made = subprocess.run(
        ["make", f"MODEL={artifact.name}", "CFLAGS=-Wall -Wextra -Werror"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder / "host"


def test_the_c_host_computes_what_pared_computes(artifact, host, tmp_path):
    x = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    ran = subprocess.run([host, tmp_path / "x.bin"], capture_output=True, text=True, check=True)
    with pared.load(artifact, threads=1) as model:
        (want,) = model.run({model.signature.inputs[0].name: x}).values()
    np.testing.assert_array_equal(np.array(ran.stdout.split(), np.float32), want.ravel())


def test_the_c_host_tells_of_a_missing_input(host):
    ran = subprocess.run([host, "/nonexistent"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "cannot read the input\n")


def test_the_host_has_thirty_lines():
    lines = (EXAMPLES / "embed_c" / "host.c").read_text().splitlines()
    assert len(lines) <= 30
