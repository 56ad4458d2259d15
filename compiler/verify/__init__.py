"""Verification of artifacts; `verify_artifact` and its records are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import VerifyReport
    from .verify import verify_artifact

__all__ = ["VerifyReport", "verify_artifact"]

_HOMES = {"VerifyReport": "records", "verify_artifact": "verify"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
