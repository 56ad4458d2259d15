"""Latency, memory and energy of artifacts beside their float original.

Importing this package anywhere puts it at `pared.bench`, where the facade has a function of the same name;
so the package itself can be called: `pared.bench(path)` works in any order of imports.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import BenchReport


class _Verb(types.ModuleType):
    @property
    def __call__(self) -> Callable[..., BenchReport]:
        from .bench import bench_artifact

        return bench_artifact


sys.modules[__name__].__class__ = _Verb
