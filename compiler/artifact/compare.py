"""Says in what two artifacts differ, for `pared rebuild --check`."""

from __future__ import annotations

from .manifest import Manifest


def differences(first: Manifest, second: Manifest) -> list[str]:
    """Return one line per difference; empty when every file has the same bytes."""
    found = [f"manifest: {key} differs" for key in Manifest.model_fields if _differs(first, second, key)]
    names = sorted(first.files.keys() | second.files.keys())
    return found + [line for name in names if (line := _file_difference(first, second, name))]


def _differs(first: Manifest, second: Manifest, key: str) -> bool:
    return key != "files" and bool(getattr(first, key) != getattr(second, key))


def _file_difference(first: Manifest, second: Manifest, name: str) -> str:
    one, two = first.files.get(name), second.files.get(name)
    if one == two:
        return ""
    if one is None or two is None:
        return f"{name}: only in the {'second' if one is None else 'first'}"
    return (
        f"{name}: {one.bytes} bytes sha256 {one.sha256[:12]}, then {two.bytes} bytes sha256 {two.sha256[:12]}"
    )
