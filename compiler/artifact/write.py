"""Writes an artifact: staged beside its place, hashed, synced, then exchanged in one step."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..backend import Array, Arrays
from ..errors import ArtifactError
from . import place
from .arrays import npz_bytes
from .manifest import FILE_PATTERN, NAME, FileRecord, Manifest
from .read import foreign_files

GOLDEN_INPUTS = "golden/inputs.npz"
GOLDEN_OUTPUTS = "golden/outputs.npz"


class ArtifactWriter:
    """Collects files, then puts the whole artifact in place.

        with ArtifactWriter(out) as writer:
            writer.add("model.onnx", data)
            writer.commit(manifest)

    Leaving the block without `commit`, by an error or Ctrl-C, leaves nothing behind and what was at `out`
    untouched. A process killed outright leaves a hidden folder that the next writer to `out` removes.

    Args:
        out: the folder to be. An older artifact there is replaced whole; anything else there is refused.

    Raises:
        ArtifactError: `artifact-occupied`, `artifact-unwritable` or `artifact-disk-full`.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = place.resolve(Path(out))
        self._files: dict[str, FileRecord] = {}
        check_destination(self.out)
        try:
            self._folder, self._lock = place.make_staging(self.out)
        except OSError as err:
            raise place.write_error(self.out, err) from err
        self._closed = False

    def add(self, name: str, content: bytes | str | Path) -> None:
        """Add a file; a `Path` is moved in when it lies on the same file system, else copied and removed."""
        assert FILE_PATTERN.fullmatch(name), f"file name {name!r} is not portable"
        assert name != NAME, "the manifest is written by commit"
        assert name not in self._files, f"file {name!r} is added twice"
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                _move(content, path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            self._files[name] = file_record(path)
        except OSError as err:
            raise place.write_error(self.out, err) from err

    def add_golden(self, inputs: Sequence[Arrays], outputs: Sequence[Arrays]) -> None:
        """Add the samples that prove the artifact: what went in and what came out, one mapping per sample."""
        assert len(inputs) == len(outputs), "every golden input has its output"
        self.add(GOLDEN_INPUTS, npz_bytes(_numbered(inputs)))
        self.add(GOLDEN_OUTPUTS, npz_bytes(_numbered(outputs)))

    def commit(self, manifest: Manifest) -> Path:
        """Write the manifest with the hashes of the files added, and put the artifact in place.

        Returns:
            Where it is.
        """
        assert not self._closed, "the writer is closed"
        files = dict(sorted(self._files.items()))
        try:
            (self._folder / NAME).write_text(
                manifest.model_copy(update={"files": files}).text(), encoding="utf-8"
            )
            place.sync_tree(self._folder)
            # Looked at again: another program may have put something there meanwhile.
            place.exchange(self._folder, self.out, lambda: _check(self.out))
        except OSError as err:
            raise place.write_error(self.out, err) from err
        finally:
            self.close()
        return self.out

    def close(self) -> None:
        """Remove the staging folder, where after a commit the older artifact is; later calls do nothing."""
        if not self._closed:
            self._closed = True
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_destination(out: str | Path) -> None:
    """Refuse a place that may not be overwritten; call it before work starts.

    Raises:
        ArtifactError: `artifact-occupied` by a file, by a folder that is no artifact, or by an artifact with
            files that do not belong to it; `artifact-unwritable`.
    """
    path = place.resolve(Path(out))
    above = next((folder for folder in path.parents if folder.exists()), path)
    try:
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, f"{above} is not a writable folder")
        with place.locked(above):
            _check(path)
    except OSError as err:
        raise place.write_error(path, err) from err


def _check(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise _occupied(path, "is a file")
    if any(path.iterdir()):
        if not (path / NAME).is_file():
            raise _occupied(path, f"is a folder without {NAME}, so not an artifact")
        foreign = foreign_files(path)
        if NAME in foreign:
            raise _occupied(path, f"has a damaged {NAME}")
        if foreign:
            raise _occupied(path, f"holds {foreign[0]!r}, which is not the artifact's")


def file_record(path: Path) -> FileRecord:
    """Return hash and size of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(sha256=digest, bytes=os.fstat(file.fileno()).st_size)


def _occupied(path: Path, finding: str) -> ArtifactError:
    return ArtifactError(
        "artifact-occupied", f"{path} {finding}; it will not be overwritten", "remove it or choose another -o"
    )


def _move(source: Path, path: Path) -> None:
    try:
        source.rename(path)
    except OSError:  # another file system
        shutil.copyfile(source, path)
        source.unlink()


def _numbered(samples: Sequence[Arrays]) -> Mapping[str, Array]:
    return {
        f"{index}/{name}": array for index, sample in enumerate(samples) for name, array in sample.items()
    }
