"""Ctrl-C, kill, kill -9, a full disk, and two compilations to one place: the artifact is whole or absent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from bad_input_runner import files_under
from bad_models import image_model, small_model

from pared.compiler.artifact.read import open_artifact

PARED = [sys.executable, "-m", "pared.compiler.cli.app"]

# A pass that waits where the marker file says so, so that a test can strike in the middle of a compilation.
# Shells start what runs in their background with Ctrl-C ignored, and a test run may have been started so.
_WAITING = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from pared.compiler.artifact import write
commit, marker = write.ArtifactWriter.commit, Path(sys.argv[1])
def waiting(self, manifest):
    marker.write_text("about to commit")
    while marker.exists():
        time.sleep(0.02)
    return commit(self, manifest)
write.ArtifactWriter.commit = waiting
from pared.compiler.cli.app import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(small_model(), tmp_path / "m.onnx")
    onnx.save(image_model(), tmp_path / "other.onnx")
    return tmp_path


@pytest.fixture
def striking(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A compilation to `out` that waits just before it puts the artifact in place."""
    with waiting_compilation(folder) as process:
        yield process


@contextmanager
def waiting_compilation(folder: Path) -> Iterator[subprocess.Popen[str]]:
    marker = folder.parent / f"{folder.name}-marker"
    command = [sys.executable, "-c", _WAITING, marker, "compile", "-m", folder / "m.onnx"]
    with subprocess.Popen(
        [str(part) for part in [*command, "-o", folder / "out"]],
        env=os.environ | {"TMPDIR": str(temporary(folder))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert marker.exists(), process.communicate()
        yield process
        marker.unlink(missing_ok=True)
        if process.poll() is None:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def compiled(folder: Path, model: str = "m.onnx") -> subprocess.CompletedProcess[str]:
    command = [*PARED, "compile", "-m", str(folder / model), "-o", str(folder / "out"), "--quiet"]
    env = os.environ | {"TMPDIR": str(temporary(folder))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def temporary(folder: Path) -> Path:
    """The temporary folder of the compilations, beside `folder`."""
    place = folder.parent / f"{folder.name}-tmp"
    place.mkdir(exist_ok=True)
    return place


def test_ctrl_c_exits_130_and_leaves_nothing(folder: Path, striking: subprocess.Popen[str]) -> None:
    striking.send_signal(signal.SIGINT)
    code, out, err = finish(striking)
    assert (code, out) == (130, "")
    assert err.startswith("error[cancelled]: interrupted; nothing was written")
    assert files_under(folder) == {"m.onnx", "other.onnx"}


def test_terminate_leaves_nothing(folder: Path, striking: subprocess.Popen[str]) -> None:
    striking.send_signal(signal.SIGTERM)
    code, _, err = finish(striking)
    assert code == 143
    assert "Traceback" not in err
    assert files_under(folder) == {"m.onnx", "other.onnx"}


def test_kill_9_leaves_the_new_artifact_absent(folder: Path, striking: subprocess.Popen[str]) -> None:
    striking.kill()
    finish(striking)
    assert not (folder / "out").exists()


def test_what_kill_9_left_behind_is_cleaned_up_by_the_next_compilation(
    folder: Path, striking: subprocess.Popen[str]
) -> None:
    striking.kill()
    finish(striking)
    assert compiled(folder).returncode == 0
    assert {path.split("/")[0] for path in files_under(folder)} == {"m.onnx", "other.onnx", "out"}
    assert list(temporary(folder).iterdir()) == []


def test_kill_9_leaves_the_old_artifact_whole(folder: Path) -> None:
    assert compiled(folder, "other.onnx").returncode == 0
    before = open_artifact(folder / "out").digest
    with waiting_compilation(folder) as process:
        process.kill()
        finish(process)
    assert open_artifact(folder / "out").digest == before


def test_two_compilations_to_one_place_leave_one_whole_artifact(folder: Path) -> None:
    command = [*PARED, "compile", "--quiet", "-o", str(folder / "out"), "-m"]
    models = ("m.onnx", "other.onnx", "m.onnx")
    running = [subprocess.Popen([*command, str(folder / m)], stderr=subprocess.DEVNULL) for m in models]
    assert [process.wait(timeout=240) for process in running] == [0, 0, 0]
    open_artifact(folder / "out")
    assert {path.split("/")[0] for path in files_under(folder)} == {"m.onnx", "other.onnx", "out"}
    assert list(temporary(folder).iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB, or a skip where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=16k", "pared-test", str(place)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(folder: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(12 << 10))
    command = [*PARED, "compile", "-m", str(folder / "other.onnx"), "-o", str(small_disk / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error[artifact-disk-full]: ")
    assert files_under(small_disk) == {"ballast"}


def test_outputs_of_run_on_a_full_disk_leave_nothing(folder: Path, small_disk: Path) -> None:
    import numpy as np

    assert compiled(folder).returncode == 0
    np.savez(folder / "x.npz", x=np.zeros((5000, 4), np.float32))
    command = [*PARED, "run", str(folder / "out"), "--input", str(folder / "x.npz")]
    done = subprocess.run(
        [*command, "--output", str(small_disk / "y.npz")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error[disk-full]: ")
    assert files_under(small_disk) == set()
