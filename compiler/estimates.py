"""What hardware a model would need, before any tool has run: records that backends fill and views show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import onnx_ir as ir

    from .target import Target

RESOURCES = ("lut", "ff", "bram", "dsp")


@dataclass(frozen=True)
class LayerEstimate:
    """One layer.

    Attributes:
        name: of the node.
        kind: `dense`, `conv`, `pool`, `mix` (sum), `move` or `requant`.
        products: multiplications by non-zero constants.
        lut, ff, bram, dsp: what it needs.
        cycles: that it adds to the latency.
        latency_ns: the same in time.
        ii: clocks from one result to the next.
        traced: share of `lut` that stands on a traced part of the layer, the rest on formulas.
    """

    name: str
    kind: str
    products: int
    lut: int
    ff: int
    bram: int
    dsp: int
    cycles: float
    latency_ns: float | None
    ii: int
    traced: float


@dataclass(frozen=True)
class Alternative:
    """A way to need less.

    Attributes:
        what: in words.
        lut: estimated for it; None where that is not known.
    """

    what: str
    lut: int | None


@dataclass(frozen=True)
class Estimate:
    """A model on a family of chips; every figure is estimated.

    Attributes:
        engine: of the backend.
        family: of the chips.
        layers: in running order.
        lut, ff, bram, dsp: of the whole, what is around the layers included.
        latency_cycles, latency_ns: from input to output.
        ii: clocks from one result to the next.
        fmax_mhz: None where nothing stands for it.
        error_median, error_worst: of `lut` on routed designs, in percent; None where none was routed.
        how: what the figures stand on.
        alternatives: ways to need less, where it does not fit.
    """

    engine: str
    family: str
    layers: tuple[LayerEstimate, ...]
    lut: int
    ff: int
    bram: int
    dsp: int
    latency_cycles: int
    latency_ns: float | None
    ii: int
    fmax_mhz: float | None
    error_median: float | None
    error_worst: float | None
    how: str
    alternatives: tuple[Alternative, ...] = ()

    def needs(self) -> dict[str, int]:
        """Return resource -> count."""
        return {"lut": self.lut, "ff": self.ff, "bram": self.bram, "dsp": self.dsp}


@runtime_checkable
class Estimator(Protocol):
    """A backend that tells what a model would need."""

    def estimate(self, model: ir.Model, target: Target, engine: str) -> Estimate:
        """Estimate in seconds; raises `ParedError` where it cannot."""
        ...


def shortages(needs: Mapping[str, int], target: Target) -> list[str]:
    """Return the resources of which a target has too little, worst first."""
    have = {name: getattr(target.resources, name) for name in RESOURCES}
    over = {
        name: needs[name] / max(count, 1)
        for name, count in have.items()
        if count is not None and needs[name] > count
    }
    return sorted(over, key=lambda name: -over[name])
