"""A folder for the tools' steps that survives a failure: the same command goes on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...compiler.cache import cache_folder
from ...compiler.temporary import folder_prefix


@contextmanager
def workplace(files: Mapping[str, str], key: object) -> Iterator[Path]:
    """Give the folder of exactly these files and this `key` in the user's cache; it goes when all went well.

    Where the user's cache is turned off, it is a temporary one.
    """
    base = cache_folder()
    if base is None:
        with tempfile.TemporaryDirectory(prefix=folder_prefix("fpga")) as name:
            yield Path(name)
        return
    text = "\0".join([repr(key), *(f"{name}\0{files[name]}" for name in sorted(files))])
    folder = base / "fpga" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
