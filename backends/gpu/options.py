"""What `--engine-option` and `[options]` of a target may say to this backend."""

from __future__ import annotations

import re

from ...compiler.errors import TargetError, nearest
from ...compiler.target import Target

# Batch sizes to compile programs for, of models with an open first size: `1,8,64`.
BATCHES = "batches"
NAMES = frozenset({BATCHES})

_LARGEST = 1 << 16


def batch_sizes(target: Target) -> tuple[int, ...]:
    """Return the batch sizes asked for, ascending; 1 where nothing is said.

    Raises:
        TargetError: `engine-option`, naming what is wrong.
    """
    for key in target.options:
        if key not in NAMES:
            raise TargetError(
                "engine-option", f"the gpu backend has no engine option {key!r}", nearest(key, sorted(NAMES))
            )
    text = str(target.options.get(BATCHES, 1)).replace(" ", "")
    sizes = [int(part) for part in text.split(",")] if re.fullmatch(r"\d{1,6}(,\d{1,6})*", text) else [0]
    if not all(1 <= size <= _LARGEST for size in sizes):
        raise TargetError(
            "engine-option", f"{BATCHES} = {text}: not sizes from 1 to {_LARGEST}", f"write {BATCHES}=1,8,64"
        )
    return tuple(sorted(set(sizes)))
