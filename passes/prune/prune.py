"""The pass `prune`: score, choose, zero; every weight and every refusal goes into the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError, PipelineError
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..quantize.moments import Moments
from . import dsnot, sparsegpt, swap
from .masks import Scope, mark_zeros, select
from .pattern import Pattern, parse_pattern
from .report import Report
from .statistics import collect, parents_of, refuse_statistics, samples_needed
from .weights import Weight, find_weights, store

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Seen = dict[ir.Value, Moments]

MAX_COLUMNS = 8192
"""Longest input for second moments: 512 MiB in float64, and the time grows with the cube."""


@dataclass(frozen=True)
class Prune:
    """Set the weights that matter least to zero, without training.

    Lossy, edits all graphs; the graph's structure stays (whole channels, without data: `prune-datafree`).
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN are pruned, in Scan and Loop bodies too;
    biases never. Has to stand before `quantize`: zeros stay zeros there. `wanda`, `sparsegpt` and `refine`
    need calibration data.

    Attributes:
        criterion: `magnitude`; `wanda`: |w| times the norm of its input (arXiv 2306.11695); `sparsegpt`:
            second order, and the weights that stay make up for those that go (arXiv 2301.00774).
        sparsity: share of zeros, 0 to 1; default 0.5, or what an N:M pattern says.
        scope: where the share is reached: `global`, per `layer`, per output `row`; `auto`: row for wanda
            and refine, else layer.
        pattern: `unstructured`, `16x1` (blocks of outputs x inputs), `2:4` (at most N of M consecutive
            inputs stay), `2:4/32` or `shared32` (one choice for 32 outputs), `fan-in-4` (at most 4 inputs of
            every output stay, whatever their number).
        refine: on top of magnitude or wanda, swap pruned for kept weights: `dsnot` until the mean output
            error is small (arXiv 2310.08915); `swap` while the exact squared output error falls.
        damping: for sparsegpt, of the mean of the diagonal of second moments.
    """

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = Effect.LOSSY

    criterion: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude"
    sparsity: float | None = None
    scope: Literal["auto", "global", "layer", "row"] = "auto"
    pattern: str = "unstructured"
    refine: Literal["none", "dsnot", "swap"] = "none"
    damping: float = 0.01

    def __post_init__(self) -> None:
        pattern = parse_pattern(self.pattern)
        if self.sparsity is not None and not 0.0 <= self.sparsity <= 1.0:
            raise PipelineError("prune-sparsity", f"prune: sparsity must be 0..1, got {self.sparsity:g}")
        fixed = pattern.sparsity
        if None not in (fixed, self.sparsity) and not np.isclose(fixed or 0.0, self.sparsity or 0.0):
            raise PipelineError(
                "prune-sparsity",
                f"prune: pattern={self.pattern} has sparsity {fixed:g}, not {self.sparsity:g}",
                "leave one of them out",
            )
        if pattern.fan_in is not None and (self.sparsity is not None or self.scope in ("global", "layer")):
            raise PipelineError(
                "prune-option",
                f"prune: pattern={self.pattern} says how many weights of every row stay",
                "leave out sparsity and scope",
            )
        if not 0.0 <= self.damping < 10.0:
            raise PipelineError("prune-option", f"prune: damping must be 0..10, got {self.damping:g}")
        if self.criterion == "sparsegpt" and (self.scope == "global" or self.refine != "none"):
            raise PipelineError(
                "prune-option",
                "prune: criterion=sparsegpt changes weights on the way; scope=global and refine cannot",
                "use criterion=wanda or magnitude",
            )
        if self.refine == "swap" and self.scope == "global":
            raise PipelineError(
                "prune-option",
                "prune: refine=swap looks at one layer at a time, scope=global at all",
                "use scope=layer or row, or refine=dsnot",
            )
        if self.refine != "none" and not pattern.single:
            raise PipelineError(
                "prune-option",
                f"prune: refine={self.refine} swaps single weights, pattern={self.pattern} has blocks",
                "use pattern=unstructured or N:M",
            )

    @property
    def level(self) -> float:
        """The share of zeros asked for."""
        fixed = parse_pattern(self.pattern).sparsity
        return fixed if fixed is not None else 0.5 if self.sparsity is None else self.sparsity

    @property
    def pool(self) -> Scope:
        """`scope` without `auto`."""
        if self.scope != "auto":
            return self.scope
        if parse_pattern(self.pattern).fan_in is not None:
            return "row"
        return "row" if self.criterion == "wanda" or self.refine != "none" else "layer"

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place.

        Raises:
            DataError: statistics are needed and there are no calibration samples.
        """
        stats = PassStats()
        if self.level == 0.0:
            return stats
        weights = find_weights(model, stats.refused, ctx.exclude)
        done: list[tuple[Weight, Floats]] = []
        report = Report(parse_pattern(self.pattern))
        for weight, old, new in self._pruned(model, weights, ctx, stats):
            ctx.check_cancelled()
            if not np.array_equal(old, new):
                done.append((weight, new))
            report.add(weight, new)
        # Statistics are those of the model as it was: weights are exchanged when all are known.
        for weight, new in done:
            store(model, weight, new)
        stats.changed = len(done)
        report.finish(stats)
        return stats

    def _pruned(
        self, model: ir.Model, weights: list[Weight], ctx: Context, stats: PassStats
    ) -> Iterator[tuple[Weight, Floats, Floats]]:
        """Yield weight, matrix before and after."""
        pattern = parse_pattern(self.pattern)
        if self.criterion == "magnitude" and self.refine == "none":
            yield from self._by_score(weights, {}, pattern)
            return
        gram = self.criterion == "sparsegpt" or self.refine == "swap"
        observed = list(_observable(model, weights, gram, stats))
        seen: Seen = {}
        samples = _samples(ctx, self)
        stream = collect(model, observed, samples, ctx, gram=gram)
        if self.criterion == "sparsegpt":
            yield from self._second_order(stream, pattern, seen, stats)
        elif self.pool == "global":
            seen |= {weight.value: inputs for weight, inputs in stream}
            yield from self._by_score(observed, seen, pattern)
        else:
            for weight, inputs in stream:
                yield from self._by_score([weight], {weight.value: inputs}, pattern)
                seen[weight.value] = inputs.slim()
        needed = samples_needed(seen.values(), len(samples), gram=gram)
        if needed is not None:
            stats.notes.append(
                f"prune: {len(samples)} calibration samples are few for criterion={self.criterion}; "
                f"about {needed} determine its statistics"
            )

    def _second_order(
        self,
        stream: Iterator[tuple[Weight, Moments]],
        pattern: Pattern,
        seen: Seen,
        stats: PassStats,
    ) -> Iterator[tuple[Weight, Floats, Floats]]:
        for weight, inputs in stream:
            old = weight.matrix()
            own = pattern.on(old.shape[-1])
            found = sparsegpt.prune(old, inputs.gram, own, self.level, self.pool, self.damping)
            if found.raised:
                stats.notes.append(
                    f"prune: second moments at {weight.name!r} are singular, damping raised from "
                    f"{self.damping:g} to {found.damping:g}"
                )
            seen[weight.value] = inputs.slim()
            yield weight, old, found.matrix

    def _by_score(
        self, weights: list[Weight], seen: Seen, pattern: Pattern
    ) -> Iterator[tuple[Weight, Floats, Floats]]:
        # Only a global choice has to see everything at once.
        pools = [weights] if self.pool == "global" else [[weight] for weight in weights]
        for pool in pools:
            scores = [self._scores(weight.matrix(), seen.get(weight.value)) for weight in pool]
            own = pattern.on(scores[0].shape[-1])  # of a pool of one, where it matters
            for weight, gone in zip(pool, select(scores, own, self.level, self.pool), strict=True):
                old = weight.matrix()
                if self.refine != "none":
                    gone = _refined(self.refine, old, gone, seen[weight.value], own.step)
                yield weight, old, np.where(gone, 0.0, old)

    def _scores(self, matrix: Floats, inputs: Moments | None) -> Floats:
        """Squared scores: what leaves with a weight, `w^2`, times the power of its input for wanda."""
        scores = np.square(matrix)
        if self.criterion == "wanda":
            assert inputs is not None, "observed before"
            scores = scores * inputs.power[:, None, :]
        return mark_zeros(scores, matrix)


def _refined(how: str, matrix: Floats, gone: Mask, inputs: Moments, step: int) -> Mask:
    if how == "swap":
        exact = zip(matrix, gone, inputs.gram, strict=True)
        return np.stack([swap.refine(w, g, gram, step=step) for w, g, gram in exact])
    parts = zip(matrix, gone, inputs.mean, inputs.power, strict=True)
    return np.stack([dsnot.refine(w, g, mean, power, step=step) for w, g, mean, power in parts])


def _observable(model: ir.Model, weights: list[Weight], gram: bool, stats: PassStats) -> Iterator[Weight]:
    """Yield the weights whose inputs can be observed; the others are refused."""
    parents = parents_of(model)
    for weight in weights:
        reason = refuse_statistics(weight, parents)
        if gram and weight.view.columns > MAX_COLUMNS:
            reason = f"{weight.view.columns} inputs are too many for second moments (at most {MAX_COLUMNS})"
        if reason is None:
            yield weight
        else:
            stats.refused.append(Refusal(weight.name, reason))


def _samples(ctx: Context, p: Prune) -> Samples:
    if ctx.calibration is None or len(ctx.calibration) == 0:
        what = f"refine={p.refine}" if p.criterion == "magnitude" else f"criterion={p.criterion}"
        raise DataError(
            "calibration-missing",
            f"prune: {what} looks at what flows into the weights, and no calibration data were given",
            "give --calib-data, or use criterion=magnitude",
        )
    return ctx.calibration
