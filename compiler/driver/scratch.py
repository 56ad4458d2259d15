"""The folder that candidates are built in, and the removal of those that killed compilations left."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtifactError
from ..temporary import PREFIX, folder_prefix


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder for candidates, gone afterwards.

    Raises:
        ArtifactError: the temporary folder is full or cannot be written.
    """
    place = tempfile.gettempdir()
    try:
        _sweep(Path(place))
        with tempfile.TemporaryDirectory(prefix=folder_prefix(), ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as err:
        if err.filename is not None and not str(err.filename).startswith(os.path.join(place, "pared-")):
            raise
        full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ArtifactError(
            "artifact-disk-full" if full else "artifact-unwritable",
            f"temporary files in {place}: {err.strerror or err}; no artifact was written",
            "free space there or set TMPDIR to another folder",
        ) from err


def _sweep(place: Path) -> None:
    """Remove what killed compilations left behind: folders named after a process that is gone."""
    if os.name != "posix":
        return
    for folder in place.glob(f"{PREFIX}*-*"):
        owner = folder.name.split("-")[2]
        with contextlib.suppress(FileNotFoundError):  # its owner ended, or another process sweeps too
            if owner.isdecimal() and folder.lstat().st_uid == os.getuid() and not _runs(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
