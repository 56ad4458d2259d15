"""Opens an artifact: a folder or a zip whose every byte is accounted for in its manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..backend import Array, Signature
from ..errors import ArtifactError
from .arrays import read_npz
from .manifest import FILE_LIMIT, FILE_PATTERN, NAME, SIZE_LIMIT, Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Artifact:
    """A checked artifact.

    Attributes:
        path: the folder (for a zip: where it was unpacked, gone with this object).
        manifest: what is in it.
    """

    path: Path
    manifest: Manifest

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self.manifest.signature.signature()

    @property
    def digest(self) -> str:
        """Return the sha256 of the manifest, and through its hashes of everything."""
        return hashlib.sha256(self.manifest.text().encode()).hexdigest()

    def payload_files(self) -> list[str]:
        """Return the names of the payload's files."""
        return [name for name in self.manifest.files if name.startswith("model")]

    def payload_bytes(self) -> int:
        """Return the size of the payload."""
        return sum(self.manifest.files[name].bytes for name in self.payload_files())

    def read_text(self, name: str) -> str:
        """Return the text of a file, such as `reports/passes.json`.

        Raises:
            ArtifactError: `artifact-file-missing`; names the files there are.
        """
        if name not in self.manifest.files:
            raise ArtifactError(
                "artifact-file-missing", f"{self.path} has no {name}; it has {list(self.manifest.files)}"
            )
        return (self.path / name).read_text(encoding="utf-8")

    def golden(self) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """Return the golden samples as `(inputs, outputs)`; empty when the artifact carries none."""
        if "golden/inputs.npz" not in self.manifest.files:
            return []
        inputs = _by_sample(read_npz(self.path / "golden/inputs.npz"))
        outputs = _by_sample(read_npz(self.path / "golden/outputs.npz"))
        return [(inputs[index], outputs[index]) for index in sorted(inputs)]


def open_artifact(path: str | Path) -> Artifact:
    """Open an artifact and check every hash.

    Raises:
        ArtifactError: `artifact-not-found`, `artifact-manifest`, `artifact-version`, `artifact-file-missing`,
            `artifact-file-foreign`, `artifact-file-changed`, `artifact-zip`; names the file and the finding.
    """
    place = Path(path)
    try:
        if place.is_dir():
            return steadily(place, lambda: Artifact(place, check_folder(place)))
        if place.is_file():
            return _open_zip(place)
    except OSError as err:
        raise ArtifactError(
            "artifact-unreadable", f"cannot read {place}: {err.strerror}", "check the permissions"
        ) from err
    raise ArtifactError("artifact-not-found", f"no artifact at {place}", "check the path, or compile with -o")


def steadily(folder: Path, read: Callable[[], T]) -> T:
    """Read from a folder that a writer may exchange for a new one meanwhile; then it is read again."""
    while True:
        before = _identity(folder)
        try:
            result = read()
        except (ArtifactError, OSError):
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return result


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_folder(folder: Path) -> Manifest:
    """Compare a folder with its manifest, byte for byte, and return the manifest."""
    manifest = read_manifest(folder)
    present = set(_walk(folder)) - {NAME}
    if foreign := sorted(present - manifest.files.keys()):
        raise ArtifactError(
            "artifact-file-foreign",
            f"{folder}: {foreign[0]!r} is not in the manifest",
            "remove it or compile again",
        )
    for name, record in manifest.files.items():
        if name not in present:
            raise ArtifactError("artifact-file-missing", f"{folder}: {name!r} is missing", "compile it again")
        with (folder / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.bytes:
                raise _changed(folder, name, f"{size} bytes, the manifest says {record.bytes}")
            if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                raise _changed(folder, name, "its sha256 is not the manifest's")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest alone; the files are not looked at."""
    path = folder / NAME
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(
            "artifact-not-found", f"{folder} has no {NAME}, so it is not an artifact", "check the path"
        )
    with path.open("rb") as file:
        text = file.read(SIZE_LIMIT + 1)
    if len(text) > SIZE_LIMIT:
        raise ArtifactError(
            "artifact-manifest", f"{path} is larger than {SIZE_LIMIT} bytes", "compile it again"
        )
    return Manifest.parse(text, str(path))


def foreign_files(folder: Path) -> list[str]:
    """Return what lies in a folder beside an artifact's own files; `[NAME]` when the manifest is bad."""
    try:
        known = {NAME, *read_manifest(folder).files}
        present = set(_walk(folder))
    except ArtifactError as err:
        # A later schema version is still an artifact; damage is not for us to overwrite.
        return [] if err.reason == "artifact-version" else [NAME]
    return sorted(present - known)


def _walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """Yield relative names of plain files; refuse links and special files."""
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            name = prefix + entry.name
            if count > FILE_LIMIT:
                raise ArtifactError("artifact-file-foreign", f"{folder} holds more than {FILE_LIMIT} entries")
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and prefix.count("/") < 2:
                yield from _walk(Path(entry.path), f"{name}/")
            elif stat.S_ISREG(mode):
                yield name
            else:
                kind = "a link" if stat.S_ISLNK(mode) else "not a plain file"
                raise ArtifactError(
                    "artifact-file-foreign",
                    f"{folder}: {name!r} is {kind}",
                    "artifacts hold plain files only",
                )


def _changed(folder: Path, name: str, finding: str) -> ArtifactError:
    return ArtifactError(
        "artifact-file-changed",
        f"{folder}: {name!r} was changed or damaged: {finding}",
        "copy it again or compile it again",
    )


def _by_sample(arrays: dict[str, Array]) -> dict[int, dict[str, Array]]:
    samples: dict[int, dict[str, Array]] = {}
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        samples.setdefault(int(index), {})[name] = array
    return samples


def _open_zip(path: Path) -> Artifact:
    folder = Path(tempfile.mkdtemp(prefix="pared-artifact-"))
    try:
        _unpack(path, folder)
        artifact = Artifact(folder, check_folder(folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(artifact, shutil.rmtree, folder, ignore_errors=True)
    return artifact


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in _checked_entries(path, entries, shutil.disk_usage(folder).free):
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as err:
        raise ArtifactError(
            "artifact-zip",
            f"{path} is neither an artifact folder nor a readable zip: {err}",
            "give the folder that `pared compile -o` wrote, or a zip of it",
        ) from err


def _checked_entries(path: Path, entries: list[zipfile.ZipInfo], room: int) -> list[zipfile.ZipInfo]:
    names = [entry.filename for entry in entries]
    total = sum(entry.file_size for entry in entries)
    bad = next((name for name in names if not FILE_PATTERN.fullmatch(name)), None)
    if bad is not None:
        raise ArtifactError("artifact-zip", f"{path}: entry {bad[:200]!r} is not a plain relative name")
    if len(set(names)) != len(names):
        raise ArtifactError("artifact-zip", f"{path}: two entries have the same name")
    if len(names) > FILE_LIMIT or total > room:
        raise ArtifactError(
            "artifact-zip", f"{path}: {len(names)} entries unpack to {total} bytes, which is refused"
        )
    return entries
