"""The one visible table of passes and backends; nothing is found by scanning folders.

Entries are lazy: a name costs an import only when it is used. This module and the driver are the only
places in `compiler/` that look into `passes/` and `backends/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from .backend import Backend
from .pass_api import Pass, PassTable


def _pass(module: str, cls: str) -> Callable[[], type[Pass]]:
    def load() -> type[Pass]:
        return cast(type[Pass], getattr(importlib.import_module(f"pared.passes.{module}"), cls))

    return load


def _backend(module: str, cls: str) -> Callable[[], Backend]:
    def load() -> Backend:
        return cast(Backend, getattr(importlib.import_module(f"pared.backends.{module}"), cls)())

    return load


PASSES: PassTable = {
    "fold-constants": _pass("canonicalize.fold_constants", "FoldConstants"),
    "quantize": _pass("quantize.quantize", "Quantize"),
}

# A macro is a name for a pipeline text.
MACROS: Mapping[str, str] = {}

BACKENDS: Mapping[str, Callable[[], Backend]] = {
    "cpu": _backend("cpu.backend", "CpuBackend"),
    "reference": _backend("reference.backend", "ReferenceBackend"),
}
