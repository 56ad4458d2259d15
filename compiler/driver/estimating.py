"""`pared estimate`: what a model would need on a device, before synthesis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import TargetError
from ..estimates import RESOURCES, Alternative, Estimate, Estimator, shortages
from ..manager import Manager
from ..recipe import Recipe
from ..target import Target
from .job import Inputs, prepare


@dataclass(frozen=True)
class EstimateReport:
    """An estimate beside what the target has.

    Attributes:
        model: file name; empty for a model from memory.
        target: name.
        origin: `estimated`, of every figure.
        estimate: the figures.
        available: resource -> what the target has; None where nothing limits it.
        fits: None where the target names no limit.
        verdict: one sentence: fits, or what is missing, because of which layer.
        ways: what could be tried where it does not fit.
        seconds: that the estimate took, without reading and quantizing the model.
    """

    model: str
    target: str
    origin: str
    estimate: Estimate
    available: Mapping[str, int | None]
    fits: bool | None
    verdict: str
    ways: tuple[str, ...]
    seconds: float


def estimate_recipe(
    recipe: Recipe, inputs: Inputs | None = None, progress: Callable[[str, int, int], None] | None = None
) -> EstimateReport:
    """Prepare the model as a compilation would, and estimate instead of compiling.

    Raises:
        TargetError: `estimate-backend`: the target's backend makes no hardware.
        ParedError: as a compilation.
    """
    job = prepare(recipe, inputs or Inputs(progress=progress))
    if not isinstance(job.backend, Estimator):
        raise TargetError(
            "estimate-backend",
            f"target {job.target.name} (backend {job.backend.name}) has no hardware to estimate",
            f"targets with an estimate: {', '.join(sorted(_rivals(None)))}",
        )
    model = Manager().run(job.imported.model, job.passes, job.ctx).model
    begin = time.monotonic()
    found = job.backend.estimate(model, job.target, recipe.engine or job.target.engines[0])
    spent = round(time.monotonic() - begin, 2)
    path = job.imported.path
    return _report("" if path is None else path.name, job.target, found, spent)


def _report(model: str, target: Target, found: Estimate, seconds: float) -> EstimateReport:
    available = {name: getattr(target.resources, name) for name in RESOURCES}
    short = shortages(found.needs(), target)
    known = any(count is not None for count in available.values())
    ways = tuple(_ways(target, found)) if short else ()
    verdict = _missing(target, found, short) if short else _fitting(target, found, available)
    fits = not short if known else None
    return EstimateReport(model, target.name, "estimated", found, available, fits, verdict, ways, seconds)


def _fitting(target: Target, found: Estimate, available: Mapping[str, int | None]) -> str:
    shares = [
        f"{100 * found.needs()[name] / count:.0f} % of its {name.upper()}"
        for name, count in available.items()
        if count and found.needs()[name]
    ]
    return f"fits {target.name}: {', '.join(shares)}" if shares else f"{target.name} names no limits"


def _missing(target: Target, found: Estimate, short: list[str]) -> str:
    """Say what is missing and which layer takes the most of it."""
    name = short[0]
    layer = max(found.layers, key=lambda one: int(getattr(one, name)))
    return (
        f"does not fit {target.name}: about {found.needs()[name]} {name.upper()} are needed, it has "
        f"{getattr(target.resources, name)}, because layer {layer.name!r} ({layer.kind}, {layer.products} "
        f"products) needs {getattr(layer, name)}"
    )


def _ways(target: Target, found: Estimate) -> list[str]:
    have = target.resources.lut
    ways = [
        _way(other) for other in found.alternatives if have is None or other.lut is None or other.lut <= have
    ]
    if found.alternatives and not ways:
        ways = [
            f"{_way(found.alternatives[-1])} is still too much: fewer channels, or more zeros (--sparsity)"
        ]
    for name, rival in _rivals(target).items():
        if not shortages(found.needs(), rival):
            ways.append(f"--target {name}")
    return ways


def _way(other: Alternative) -> str:
    return other.what if other.lut is None else f"{other.what}: about {other.lut} LUT"


def _rivals(target: Target | None) -> dict[str, Target]:
    """Return the shipped targets that count resources: of the same family and engine, or all for None."""
    from ...targets import load_target, target_names

    loaded = {name: load_target(name) for name in target_names()}
    with_counts = {name: one for name, one in loaded.items() if one.resources.lut is not None}
    if target is None:
        return with_counts
    return {
        name: one
        for name, one in with_counts.items()
        if one != target and one.isa.arch == target.isa.arch and one.engines[:1] == target.engines[:1]
    }
