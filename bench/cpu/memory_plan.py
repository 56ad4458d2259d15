"""The arena of whole models: bound, plan and naive sum of the native engine's programs, float32, batch 1.

    python -m pared.bench.cpu.memory_plan [NAMES...]

Nothing is compiled, TVM is not needed. Writes docs/results/memory_plan.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from ...backends.cpu.native.isa import host_isa
from ...backends.cpu.native.lower import sketch
from ...backends.cpu.native.planner import plan
from ...compiler.backend import Verdict
from ...compiler.driver.job import Inputs, prepare
from ...compiler.driver.variants import FLOAT, build_variants
from ...compiler.errors import UnsupportedOp
from ...compiler.manager import Manager
from ...compiler.recipe import Recipe
from ..encoder import encoder
from ..light_models import NAMES as LIGHT
from ..light_models import light_model
from ..results import Page
from .nets import mobilenet_v2 as mobilenet_v2

KIB = 1024


_OWN: Mapping[str, Callable[[], onnx.ModelProto]] = {"mobilenet_v2": mobilenet_v2, "encoder": encoder}


def main(names: list[str]) -> None:
    """Plan every model and write the page."""
    isa = host_isa()
    if isinstance(isa, Verdict):
        raise SystemExit(isa.reason)
    page = Page(
        Path("docs/results/memory_plan.md"),
        "Memory plans",
        "KiB of the native engine's arena: float32, batch 1, all activations and scratch of the program as "
        "it is compiled; inputs and outputs stay in the caller's memory. Bound: the most bytes live at one "
        "step. Written by `python -m pared.bench.cpu.memory_plan`.",
        ("Model", "Steps", "Naive sum", "Bound", "Plan", "Plan / bound", "Planned in"),
    )
    for name in names or [*_OWN, *LIGHT]:
        source = _OWN[name]() if name in _OWN else light_model(name)
        variants = build_variants(prepare(Recipe(target="cpu"), Inputs(model=source)), Manager())
        try:
            program = sketch(variants.models[FLOAT], isa)
        except UnsupportedOp as error:
            page.remark(f"{name}: {error.message}.")
            continue
        start = time.perf_counter()
        made = plan(program)
        taken = f"{time.perf_counter() - start:.2f} s"
        sizes = [f"{size / KIB:.0f}" for size in (made.naive_bytes, made.bound_bytes, made.arena_bytes)]
        page.add(name, len(program.steps), *sizes, f"{made.arena_bytes / made.bound_bytes:.3f}", taken)


if __name__ == "__main__":
    main(sys.argv[1:])
