"""A folder for the tools' steps that survives a failure: the same command goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workplace(files: Mapping[str, str], key: object) -> Iterator[Path]:
    """Give the folder of exactly these files and this `key` in the user's cache; it goes when all went well.

    `$PARED_CACHE_DIR`, else `$XDG_CACHE_HOME/pared`, else `~/.cache/pared`; an empty `$PARED_CACHE_DIR` keeps
    nothing.
    """
    base = _cache()
    if base is None:
        with tempfile.TemporaryDirectory(prefix="pared-fpga-") as name:
            yield Path(name)
        return
    text = "\0".join([repr(key), *(f"{name}\0{files[name]}" for name in sorted(files))])
    folder = base / "fpga" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _cache(environ: Mapping[str, str] = os.environ) -> Path | None:
    own = environ.get("PARED_CACHE_DIR")
    if own is not None:
        return Path(own) if own else None
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pared"
