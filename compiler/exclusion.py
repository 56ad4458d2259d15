"""Which nodes `--exclude` means: a name, or a regular expression that matches all of a name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence


def excluded_by(name: str, patterns: Sequence[str]) -> str | None:
    """Return the first pattern that means the node of this name; None when none does."""
    return next((p for p in patterns if p == name or _matches(p, name)), None)


def idle_patterns(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the patterns that mean none of these nodes."""
    listed = list(names)
    return [p for p in patterns if not any(excluded_by(name, [p]) for name in listed)]


def _matches(pattern: str, name: str) -> bool:
    compiled = _compiled(pattern)
    return compiled is not None and compiled.fullmatch(name) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None  # a plain name such as `conv(1`
