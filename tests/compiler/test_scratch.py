"""Folders that killed compilations left go, whoever else sweeps at the same time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pared.compiler.driver import scratch
from pared.compiler.errors import ArtifactError

NOBODY = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_removed(place: Path) -> None:
    (place / f"pared-compile-{NOBODY}-x").mkdir()
    with scratch.scratch_folder() as folder:
        assert [*place.iterdir()] == [folder]


def test_a_folder_that_another_process_swept_is_no_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = place / f"pared-compile-{NOBODY}-x"
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    with scratch.scratch_folder() as folder:
        assert folder.is_dir()


def test_only_trouble_with_files_of_ours_is_blamed_on_the_temporary_folder(place: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch.scratch_folder():
        (place / "elsewhere" / "file").read_bytes()
    with pytest.raises(ArtifactError, match="temporary files"), scratch.scratch_folder() as folder:
        (folder / "file").read_bytes()
