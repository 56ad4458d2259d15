"""How long engine `native` takes to compile whole models on one core, with an empty and with a full cache.

    PARED_DATA=... python -m pared.bench.cpu.compile_time [--kinds int8 float] [--only NAMES...]

Writes docs/results/native_compile_time.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from ...backends.cpu.native import codegen, link, objects
from ...compiler.cache import VARIABLE
from ...compiler.errors import ParedError
from ..data import data_folder
from ..meter import pinned
from ..results import Page
from .models import Case, cases, compiled

ABOUT = """`python -m pared.bench.cpu.compile_time`. Seconds of wall time of `pared.compile(engine="native")`
from the model to the verified artifact, quantization and the graph for onnxruntime included, imports not; one
pinned core, `force`. Cold: no kernel and no time is known; warm: the same again in a new process's state.
Kernels: distinct ones; kernel s and link s are parts of cold; the rest is reading, quantization, timing of
candidates, and verification against the reference. Aims: tiny models 5 s, ResNet-50 and DenseNet-121 60 s."""
HEADINGS = ("model", "precision", "kernels", "cold s", "kernel s", "link s", "warm s")


class Clock:
    """Adds up the time inside wrapped functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.kernels = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the compilation of kernels and linking meanwhile."""
        with (
            patch.object(codegen, "compile_all", self._timed("kernels", objects.compile_all)),
            patch.object(codegen, "link", self._timed("link", link.link)),
        ):
            yield

    def _timed(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            start = time.perf_counter()
            result = function(*arguments)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if isinstance(result, list):
                self.kernels += len(result)
            return result

        return run


def measure(kind: str, case: Case, page: Page) -> None:
    """Compile a case twice and add its row; `kind` is the precision of what comes out."""
    with tempfile.TemporaryDirectory(prefix="pared-bench-") as name:
        folder, clock = Path(name), Clock()
        with patch.dict(os.environ, {VARIABLE: str(folder / "cache")}):
            try:
                with clock.watching():
                    cold = _compile(case, folder / "cold")
                warm = _compile(case, folder / "warm")
            except ParedError as err:
                page.remark(f"{case.name}: {json.dumps(err.message)}")
                return
    parts = [f"{clock.seconds.get(part, 0.0):.1f}" for part in ("kernels", "link")]
    page.add(case.name, kind, clock.kernels, f"{cold:.1f}", *parts, f"{warm:.1f}")


def _compile(case: Case, folder: Path) -> float:
    folder.mkdir()
    start = time.perf_counter()
    compiled(case, "native", folder)
    return time.perf_counter() - start


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description="compile time of engine native")
    parser.add_argument("--kinds", choices=["int8", "float"], nargs="+", default=["int8", "float"])
    parser.add_argument("--only", nargs="*", help="names of models")
    given = parser.parse_args()
    data = data_folder()
    page = Page(Path("docs/results/native_compile_time.md"), "Compile time", ABOUT, HEADINGS)
    with pinned(1), tempfile.TemporaryDirectory(prefix="pared-bench-") as folder:
        for kind in given.kinds:
            for case in cases(kind, data, Path(folder)):
                if not given.only or case.name in given.only:
                    measure(kind, case, page)


if __name__ == "__main__":
    main()
