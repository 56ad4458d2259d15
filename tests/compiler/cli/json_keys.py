"""Key paths of JSON objects: what record types promise, what commands print, what docs/cli.md lists."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pared.compiler.records import Json

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


def promised(record: type, shared: Collection[type] = (), prefix: str = "") -> set[str]:
    """Return the paths of a record type: `a.b`, `[]` for items of lists, `*` for free keys.

    Types in `shared` are documented once and not looked into.
    """
    hints = typing.get_type_hints(record)
    found: set[str] = set()
    for field in dataclasses.fields(record):
        found |= _promised(hints[field.name], f"{prefix}{field.name}", shared)
    return found


def _promised(hint: object, path: str, shared: Collection[type]) -> set[str]:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [part for part in parts if part is not type(None)]
        return _promised(kinds[0], path, shared) if len(kinds) == 1 else {path}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {path} if hint in shared else {path} | promised(hint, shared, f"{path}.")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if "Json" in str(parts[1]) or isinstance(parts[1], typing.ForwardRef | str):
            return {path, f"{path}.*", f"{path}.**"}  # anything below
        return {path} | _promised(parts[1], f"{path}.*", shared)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {path} | _promised(parts[0], f"{path}[]", shared)
    return {path}


def plain(paths: set[str]) -> set[str]:
    """Drop items of lists and free keys, which are no keys themselves."""
    return {path for path in paths if not path.endswith(("[]", "*"))}


def unknown(value: Json, known: set[str], path: str = "") -> set[str]:
    """Return the printed paths that are not known; free keys go under the known `*`."""
    if isinstance(value, list):
        return {p for item in value for p in unknown(item, known, f"{path}[]")}
    if not isinstance(value, dict):
        return set()
    found: set[str] = set()
    for key, item in value.items():
        step = f"{path}.{key}" if path else key
        free = f"{path}.*"
        if step not in known and free in known:
            step = free
        if f"{path}.**" not in known:
            found |= unknown(item, known, step) if step in known else {step}
    return found


def documented(title: str) -> set[str]:
    """Return the keys in the table below a heading of docs/cli.md."""
    text = DOCS.read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(title)}$(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/cli.md has no section {title!r}"
    return set(re.findall(r"^\| `([^`]+)` \|", section[1], re.MULTILINE))
