"""Devices as data: one TOML file each, read by name or from a user's own file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..compiler.errors import TargetError, nearest
from ..compiler.target import Target, read_target

_FOLDER = Path(__file__).parent


def target_names() -> list[str]:
    """Return the names of the targets that come with pared."""
    return sorted(_built_in())


def load_target(name: str | Path) -> Target:
    """Return a target by name, or from a TOML file when `name` is a path to one.

    Raises:
        TargetError: `target-unknown` with the nearest names, or what is wrong in the file.
    """
    built_in = _built_in()
    if str(name) in built_in:
        return _load_built_in(str(name))
    path = Path(name)
    if path.suffix == ".toml":
        return read_target(path, built_in)
    raise TargetError(
        "target-unknown",
        f"unknown target {str(name)!r}",
        nearest(str(name), list(built_in)) + "; a path to a .toml file works too",
    )


@cache
def _load_built_in(name: str) -> Target:
    return read_target(_built_in()[name], _built_in())


@cache
def _built_in() -> dict[str, Path]:
    return {path.stem: path for path in _FOLDER.glob("*.toml")}
