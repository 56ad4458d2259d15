"""A place on disk that is replaced whole or not at all: staging beside it, lock, atomic exchange.

A staging folder lies beside the destination (same file system) and is locked by its owner for as long as it
lives; the kernel drops the lock when the owner dies, whatever kills it. The parent folder is locked for the
moments in which names change hands, so two writers exchange one after the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import ArtifactError

if sys.platform != "win32":
    import fcntl

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def resolve(out: Path) -> Path:
    """Follow links, so that what a link points to is replaced and not the link."""
    return Path(os.path.realpath(out))


def make_staging(out: Path) -> tuple[Path, int]:
    """Make and lock a new folder beside `out`, after removing those whose owners died.

    Its name is random; the lock, not the name, tells whether its owner lives.

    Returns:
        The folder and the descriptor that holds its lock.

    Raises:
        OSError: the parent cannot be made or written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent):
        _remove_abandoned(out)
        folder = out.with_name(f"{_prefix(out)}{secrets.token_hex(4)}")
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY)
        _lock(handle, wait=False)
    return folder, handle


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, in which names change hands; not reentrant."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def exchange(staging: Path, out: Path, check: Callable[[], None]) -> None:
    """Put `staging` at `out` in one step; what was at `out` is then at `staging`, or nowhere if nothing was.

    Args:
        staging: a folder that `make_staging` made.
        out: the place it is for.
        check: raises when what is at `out` by now must stay.

    Raises:
        OSError: nothing changed.
    """
    with locked(out.parent):
        check()
        if out.exists():
            _swap(staging, out)
        else:
            staging.rename(out)
        sync_folder(out.parent)


def sync_tree(folder: Path) -> None:
    """Force files and folders to disk, so that a power cut after the exchange finds them whole."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where the system can."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_error(out: Path, err: OSError) -> ArtifactError:
    """Say in the user's words why nothing could be written."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            "artifact-disk-full",
            f"no space left for {out}; nothing was written there",
            "free space or choose another -o",
        )
    finding = err.strerror or str(err)
    return ArtifactError(
        "artifact-unwritable",
        f"cannot write {out}: {finding}; nothing was written there",
        "choose another -o",
    )


def _prefix(out: Path) -> str:
    return f".{out.name}.pared-"


def _remove_abandoned(out: Path) -> None:
    for folder in out.parent.glob(f"{_escaped(_prefix(out))}????????"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        handle = os.open(folder, os.O_RDONLY)
        try:
            if _lock(handle, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _escaped(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _lock(handle: int, wait: bool) -> bool:
    """Take the lock; False when another holds it or the file system has none (then nothing is abandoned)."""
    if sys.platform == "win32":  # no advisory locks: abandoned folders are left to the user
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _swap(first: Path, second: Path) -> None:
    """Exchange two names atomically; where the system cannot, in two renames with a way back."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            names = os.fsencode(first), os.fsencode(second)
            if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.ENOSYS, errno.EINVAL):
                raise OSError(code, os.strerror(code), str(second))
    _swap_by_renames(first, second)


def _swap_by_renames(first: Path, second: Path) -> None:
    aside = first.with_name(f"{first.name}.old")
    second.rename(aside)
    try:
        first.rename(second)
    except OSError:
        aside.rename(second)
        raise
    aside.rename(first)
