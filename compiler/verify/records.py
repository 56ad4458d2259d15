"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class OutputCheck:
    """One output against what it should be.

    Attributes:
        against: `reference` (reference semantics of the payload) or `golden` (outputs stored when compiled).
        passed: every sample is within the bound.
        max_difference: largest absolute difference; infinite for another shape, NaN or text.
        allowed: absolute difference allowed on the worst sample.
        used: largest difference / allowed over the samples; above 1 fails.
        worst_sample: index of the sample with the largest share of its bound used.
        how: where the bound comes from.
    """

    output: str
    against: Literal["reference", "golden"]
    passed: bool
    max_difference: float
    allowed: float
    used: float
    worst_sample: int
    samples: int
    how: str


@dataclass(frozen=True)
class LayerRecord:
    """One value of the float original beside the value of the same name in the artifact.

    Attributes:
        index: position in the graph of the original.
        value, node, op_type: of the original.
        sqnr_db: signal-to-noise ratio over all samples; infinite when equal.
        added_noise: noise-to-signal ratio beyond that of the noisiest matched value it is computed from.
        max_difference, max_reference: largest absolute difference and value.
    """

    index: int
    value: str
    node: str
    op_type: str
    sqnr_db: float
    added_noise: float
    max_difference: float
    max_reference: float


@dataclass(frozen=True)
class LayerReport:
    """Every matched layer, in graph order.

    Attributes:
        first_hurt: the first value in graph order below `limit_db`, or None.
        unmatched: values of the original without a counterpart (fused or folded away).
    """

    layers: tuple[LayerRecord, ...]
    first_hurt: str | None
    limit_db: float
    unmatched: int
    samples: int

    def most_hurt(self, count: int) -> tuple[LayerRecord, ...]:
        """Return the layers that add the most noise, worst first."""
        return tuple(sorted(self.layers, key=lambda layer: (-layer.added_noise, layer.index))[:count])


@dataclass(frozen=True)
class MetricResult:
    """A figure of merit of the float original and the artifact on the same samples.

    Attributes:
        reference: of the float original; None when it is not at hand.
        drop: by how much the artifact is worse, in `unit`; negative when better.
        standard_error: of `drop`, from paired samples; None when unknown.
        note: how far to trust it.
    """

    metric: str
    reference: float | None
    artifact: float
    drop: float | None
    unit: str
    samples: int
    standard_error: float | None
    note: str


@dataclass(frozen=True)
class Trial:
    """One set of nodes left in float, and the loss with it."""

    excluded: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class BisectReport:
    """The layers to blame.

    Attributes:
        measure: what `loss` is, with its unit.
        limit: the loss that was to be reached.
        excluded: nodes that, left in float, bring the loss within the limit; empty when none are needed.
        solved: whether `loss` is within the limit.
        exclude_line: options for `pared compile`, or empty.
    """

    measure: str
    limit: float
    loss_before: float
    loss: float
    excluded: tuple[str, ...]
    solved: bool
    trials: tuple[Trial, ...]
    exclude_line: str
    note: str


@dataclass(frozen=True)
class VerifyReport:
    """The result of `pared verify`.

    Attributes:
        passed: every output is within its bound of the reference and of the golden outputs.
        data: where the samples came from: a path, `memory` or `golden`.
        notes: what was not done and why, casts of the data, and the like.
    """

    artifact: Path
    passed: bool
    data: str
    samples: int
    outputs: tuple[OutputCheck, ...]
    layers: LayerReport | None
    metrics: tuple[MetricResult, ...]
    bisect: BisectReport | None
    notes: tuple[str, ...]
