"""Where things that save time are kept between runs of one user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "PARED_CACHE_DIR"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return `$PARED_CACHE_DIR`, else `$XDG_CACHE_HOME/pared`, else `~/.cache/pared`.

    None where `$PARED_CACHE_DIR` is empty: then nothing is kept.

    >>> cache_folder({"XDG_CACHE_HOME": "/var/cache"})
    PosixPath('/var/cache/pared')
    """
    own = environ.get(VARIABLE)
    if own is not None:
        return Path(own) if own else None
    # The specification of XDG tells to ignore relative paths.
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pared"
