"""How often each layer uses its multipliers: strategy and reuse factor, before any vendor's tool runs.

HLS tools stop at loops of more than 4096 unrolled products (`[XFORM 203-504]`), after minutes. A matrix
product of n_in x n_out with reuse factor r has n_in * n_out / r multipliers, and a new input every r clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ....compiler.errors import TargetError
from .plan import Plan, Step
from .settings import Settings

MOST_UNROLLED = 4096


@dataclass(frozen=True)
class Reuse:
    """A layer's choice."""

    strategy: Literal["latency", "resource"]
    factor: int
    products: int

    @property
    def multipliers(self) -> int:
        """Products computed at once."""
        return -(-self.products // self.factor)


def choose_reuse(plan: Plan, settings: Settings) -> dict[str, Reuse]:
    """Return the choice for each step with a matrix product.

    Raises:
        TargetError: `fpga-hls-unroll`: strategy latency, or a reuse factor, that leaves more products than
            can be unrolled; `fpga-does-not-fit`: no reuse factors keep to the budget of multipliers.
    """
    steps = [step for step in plan.steps if step.product is not None]
    found = {step.name: _one(step, settings) for step in steps}
    return _within(steps, found, settings) if settings.multipliers else found


def valid_factors(n_in: int, n_out: int) -> list[int]:
    """Return the reuse factors that hls4ml's resource strategy computes right, ascending.

    >>> valid_factors(4, 6)
    [1, 2, 4, 8, 12, 24]
    """
    total = n_in * n_out
    divisors = [r for r in range(1, total + 1) if total % r == 0]
    return [r for r in divisors if (total // r % n_out == 0 if r < n_in else r % n_in == 0)]


def _one(step: Step, settings: Settings) -> Reuse:
    n_in, n_out = _size(step)
    factors = _factors(step)
    least = next((r for r in factors if n_in * n_out <= MOST_UNROLLED * r), factors[-1])
    factor = min(factors, key=lambda r: (abs(r - settings.reuse), r)) if settings.reuse else least
    latency = settings.strategy == "latency" or (
        factor == 1 and (settings.strategy == "auto" or _is_deep(step))
    )
    if n_in * n_out > MOST_UNROLLED * (1 if latency else factor):
        raise TargetError(
            "fpga-hls-unroll",
            f"node {step.source!r} ({step.kind}) unrolls into {n_in * n_out} products, strategy "
            f"{settings.strategy}, reuse {factor}; HLS tools stop above {MOST_UNROLLED}",
            "use fewer channels: hls4ml has no reuse for depthwise layers" if _is_deep(step) else
            f"--engine-option strategy=resource --engine-option reuse={least} (or more), or leave both out",
        )  # fmt: skip
    return Reuse("latency" if latency else "resource", 1 if latency else factor, n_in * n_out)


def _size(step: Step) -> tuple[int, int]:
    assert step.product is not None, f"{step.name} has no product"
    return step.product


def _factors(step: Step) -> list[int]:
    n_in, n_out = _size(step)
    return [1] if _is_deep(step) else valid_factors(n_in, n_out)


def _is_deep(step: Step) -> bool:
    """Whether hls4ml has no resource strategy for the layer."""
    return step.kind.startswith("Depthwise")


def _within(steps: Sequence[Step], found: Mapping[str, Reuse], settings: Settings) -> dict[str, Reuse]:
    """Raise the factor of whichever layer has most multipliers until all keep to the budget."""
    chosen = dict(found)
    factors = {step.name: _factors(step) for step in steps}
    while (total := sum(one.multipliers for one in chosen.values())) > settings.multipliers:
        open_ = [n for n, one in chosen.items() if one.factor < factors[n][-1]]
        if not open_ or settings.strategy == "latency" or settings.reuse:
            raise _over(steps, chosen, total, settings)
        name = max(open_, key=lambda n: chosen[n].multipliers)
        factor = next(r for r in factors[name] if r > chosen[name].factor)
        chosen[name] = Reuse("resource", factor, chosen[name].products)
    return chosen


def _over(steps: Sequence[Step], chosen: Mapping[str, Reuse], total: int, settings: Settings) -> TargetError:
    largest = max(steps, key=lambda step: chosen[step.name].multipliers)
    return TargetError(
        "fpga-does-not-fit",
        f"{total} multipliers are needed and {settings.multipliers} allowed; node {largest.source!r} has "
        f"{chosen[largest.name].multipliers} of them",
        "allow more (--engine-option multipliers=N), or leave out strategy and reuse",
    )
