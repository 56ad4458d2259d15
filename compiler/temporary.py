"""Names of temporary folders, by which the next compilation finds what a killed one left behind."""

from __future__ import annotations

import os

PREFIX = "pared-compile-"


def folder_prefix(what: str = "") -> str:
    """Return the prefix of a temporary folder of this process; `what` it holds is for the reader alone.

    >>> folder_prefix("native").startswith("pared-compile-")
    True
    """
    return f"{PREFIX}{os.getpid()}-{what}-" if what else f"{PREFIX}{os.getpid()}-"
