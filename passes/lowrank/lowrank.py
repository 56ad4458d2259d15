"""The pass `lowrank`: which layers become chains of smaller ones, by which method and at which rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir.stats import count
from ...compiler.ir.walk import all_nodes, node_label
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..allocate import Option, allocate, least_cost
from ..prune.statistics import Parents, collect, parents_of, refuse_statistics
from .layers import CELLS, Dense, read_dense, repeats, write_chain
from .methods import Factored, factor, methods_for
from .whiten import Floats

REPORT = "lowrank.json"
# Longest patch whose second moment is collected: [k, k] in float64, and a decomposition of k^3.
_MAX_COLUMNS = 4608

Goal = Literal["rank", "energy", "sqnr", "macs", "params"]
_GOALS: tuple[Goal, ...] = ("rank", "energy", "sqnr", "macs", "params")
_DEFAULT_MACS = 0.5


@dataclass(frozen=True)
class LowRank:
    """Factor weights of Conv, Gemm, MatMul and inputs of LSTM and GRU into chains of smaller layers.

    Lossy, needs no training; with calibration data the truncation is that of the outputs on the data, not of
    the weights (whitening by the inputs' second moment). A layer is refused where no rank makes it both
    cheaper and smaller. One goal only, but `macs` and `params` may both be given.

    Attributes:
        method: `svd` (dense and 1x1), `channel`, `spatial`, `tucker2` (convolutions), or `auto`: all that
            apply compete by cost and loss, `channel` only where nothing else does.
        rank: the same for every layer.
        energy: share of every layer's squared output to keep, in (0, 1).
        sqnr: of every layer's output, in dB, at least.
        macs: share of the model's multiply-accumulates to keep, in (0, 1]; 0.5 when no goal is given.
        params: share of the model's parameters to keep, in (0, 1].
        whiten: use calibration data where there is any.
        round_to: ranks are multiples of this; kernels like 16.
    """

    name: ClassVar[str] = "lowrank"
    effect: ClassVar[Effect] = Effect.LOSSY

    method: Literal["auto", "svd", "channel", "spatial", "tucker2"] = "auto"
    rank: int = 0
    energy: float = 0.0
    sqnr: float = 0.0
    macs: float = 0.0
    params: float = 0.0
    whiten: bool = True
    round_to: int = 16

    def __post_init__(self) -> None:
        given = [goal for goal in _GOALS if getattr(self, goal)]
        if len(given) > 1 and set(given) != {"macs", "params"}:
            raise PipelineError(
                "lowrank-goal", f"lowrank takes one goal, got {', '.join(given)}", "give one of them"
            )
        shares = {"energy": self.energy, "macs": self.macs, "params": self.params}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise PipelineError("lowrank-goal", f"lowrank: {name} is a share in (0, 1], got {value}")
        if self.rank < 0 or self.round_to < 1 or not 0 <= self.sqnr < math.inf:
            raise PipelineError(
                "lowrank-goal",
                f"rank={self.rank}, round_to={self.round_to}, sqnr={self.sqnr} must be positive",
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place.

        Raises:
            PipelineError: `lowrank-budget`: the share of MACs or parameters cannot be reached.
        """
        stats = PassStats()
        layers = list(self._layers(model, ctx, stats))
        plans = [plan for plan in self._factored(model, layers, ctx) if self._has_gain(plan, stats)]
        chosen = self._choose(model, plans)
        for plan, pick in zip(plans, chosen, strict=True):
            if pick is None:
                stats.refused.append(Refusal(node_label(plan.layer.node), "kept: the goal holds without it"))
                continue
            write_chain(model, plan.layer, pick.factored.stages(pick.rank))
            stats.changed += 1
        rows = [plan.row(pick) for plan, pick in zip(plans, chosen, strict=True) if pick is not None]
        stats.details = {
            "layers_factored": stats.changed,
            "macs_saved": sum(int(row["macs_before"]) - int(row["macs_after"]) for row in rows),
        }
        if rows:
            stats.attachments[REPORT] = json.dumps(rows, indent=1)
        return stats

    def _layers(self, model: ir.Model, ctx: Context, stats: PassStats) -> Iterator[Dense]:
        parents = parents_of(model)
        for node in all_nodes(model):
            if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul", *CELLS):
                continue
            pattern = excluded_by(node.name or "", ctx.exclude)
            found = f"excluded by {pattern!r}" if pattern else read_dense(node)
            if isinstance(found, Dense) and self.method not in ("auto", *methods_for(found.shape)):
                found = f"method {self.method} does not apply to weights {list(found.shape)}"
            if isinstance(found, Dense):
                yield replace(found, times=repeats(node, parents))
            else:
                stats.refused.append(Refusal(node_label(node), found))

    def _factored(self, model: ir.Model, layers: Sequence[Dense], ctx: Context) -> Iterator[_Plan]:
        """Decompose every layer, those with data first; layers stay in graph order within each kind."""
        samples = ctx.calibration if self.whiten else None
        parents = parents_of(model)
        seen = [d for d in layers if samples is not None and _is_observed(d, parents)]
        if samples is not None and seen:
            by_value = {dense.weight.value: dense for dense in seen}
            for weight, inputs in collect(model, [d.weight for d in seen], samples, ctx, gram=True):
                yield self._plan(by_value[weight.value], inputs.gram[0])
        for dense in layers:
            if dense not in seen:
                ctx.check_cancelled()
                yield self._plan(dense, None)

    def _plan(self, dense: Dense, gram: Floats | None) -> _Plan:
        weights = dense.weights(gram)
        named = [self.method] if self.method != "auto" else _automatic(dense.shape)
        picks = []
        for factored in (factor(weights, name) for name in named):
            ranks = [self.rank] if self.rank else range(self.round_to, len(factored.tail) - 1, self.round_to)
            picks += [_pick(dense, factored, rank) for rank in ranks if rank < len(factored.tail) - 1]
        return _Plan(dense, [p for p in picks if p.macs < dense.macs and p.parameters < dense.parameters])

    def _has_gain(self, plan: _Plan, stats: PassStats) -> bool:
        if plan.picks:
            return True
        at = f"rank {self.rank}" if self.rank else f"multiple of {self.round_to} as rank"
        shape = list(plan.layer.shape)
        reason = f"no {at} makes weights {shape} both smaller and cheaper"
        stats.refused.append(Refusal(node_label(plan.layer.node), reason))
        return False

    def _choose(self, model: ir.Model, plans: Sequence[_Plan]) -> list[_Pick | None]:
        if self.rank:
            return [plan.cheapest(math.inf) for plan in plans]
        if self.energy or self.sqnr:
            limit = 1 - self.energy if self.energy else 10 ** (-self.sqnr / 10)
            return [plan.cheapest(limit) for plan in plans]
        return self._within_budget(model, plans)

    def _within_budget(self, model: ir.Model, plans: Sequence[_Plan]) -> list[_Pick | None]:
        """Spend the least total loss; a layer's loss is its noise-to-signal ratio."""
        total = count(model)
        shares = {"macs": self.macs, "params": self.params}
        if not any(shares.values()):
            shares["macs"] = _DEFAULT_MACS
        budgets = [
            _Budget("macs", shares["macs"], total.macs, [plan.layer.macs for plan in plans]),
            _Budget("params", shares["params"], total.parameters, [plan.layer.parameters for plan in plans]),
        ]
        budgets = [budget for budget in budgets if budget.share]
        for budget in budgets:
            budget.check(least_cost(_options(plans, [budget])))
        # Each budget has weight 1 in the cost; the bound falls until both hold.
        bound = float(len(budgets))
        while bound > 0.01:
            indices = allocate(_options(plans, budgets), bound)
            picks = [plan.pick(i) for plan, i in zip(plans, indices or [], strict=True)] if indices else []
            if indices and all(budget.holds(plans, picks) for budget in budgets):
                return picks
            if indices is None:
                break
            bound *= 0.97
        raise PipelineError(
            "lowrank-budget",
            f"macs={self.macs:g} and params={self.params:g} can each be held, but not found together",
            "relax one of them",
        )


def _is_observed(dense: Dense, parents: Parents) -> bool:
    return dense.weight.view.columns <= _MAX_COLUMNS and refuse_statistics(dense.weight, parents) is None


def _automatic(shape: tuple[int, ...]) -> list[str]:
    """Channel decomposition is left out where there are others: it loses more at equal cost."""
    names = methods_for(shape)
    return [name for name in names if name != "channel" or "spatial" not in names]


@dataclass(frozen=True, eq=False)
class _Pick:
    """A method at a rank, with its loss and cost."""

    factored: Factored
    rank: int
    loss: float
    macs: int
    parameters: int


def _pick(dense: Dense, factored: Factored, rank: int) -> _Pick:
    macs, parameters = dense.cost(factored.shapes(rank))
    return _Pick(factored, rank, float(factored.tail[rank]), macs, parameters)


@dataclass(frozen=True, eq=False)
class _Plan:
    """A layer and the ways to factor it that pay."""

    layer: Dense
    picks: list[_Pick]

    def cheapest(self, limit: float) -> _Pick | None:
        """Return the pick of fewest MACs that loses at most `limit`."""
        fit = [pick for pick in self.picks if pick.loss <= limit]
        return min(fit, key=lambda pick: (pick.macs, pick.loss), default=None)

    def pick(self, index: int) -> _Pick | None:
        """Return a pick by its place among the options; 0 is the layer as it is."""
        return self.picks[index - 1] if index else None

    def row(self, pick: _Pick) -> dict[str, str | int | float]:
        """Return what the report says."""
        return {
            "layer": self.layer.node.name or self.layer.node.op_type,
            "method": pick.factored.method,
            "rank": pick.rank,
            "full_rank": len(pick.factored.tail) - 1,
            "lost": round(pick.loss, 6),
            "macs_before": self.layer.macs,
            "macs_after": pick.macs,
            "parameters_before": self.layer.parameters,
            "parameters_after": pick.parameters,
        }


@dataclass(frozen=True)
class _Budget:
    """A share of the model's total that may stay; `layers` is what the factored layers have of it now."""

    kind: Literal["macs", "params"]
    share: float
    total: int
    layers: list[int]

    @property
    def room(self) -> float:
        """What the factored layers may cost, everything else being fixed."""
        return self.share * self.total - (self.total - sum(self.layers))

    def check(self, least: float) -> None:
        """Refuse what no choice of ranks reaches."""
        if self.room > 0 and least <= 1:
            return
        lowest = (self.total - sum(self.layers) + max(least * self.room, 0)) / max(self.total, 1)
        if self.room <= 0:
            lowest = (self.total - sum(self.layers)) / max(self.total, 1)
        raise PipelineError(
            "lowrank-budget",
            f"{self.kind}={self.share:g} cannot be reached: low rank leaves at least {lowest:.3f} of them",
            "ask for more than that; a smaller round_to may help",
        )

    def of(self, plan: _Plan, pick: _Pick | None) -> float:
        """Return the share of the room that a layer takes."""
        macs = plan.layer.macs if pick is None else pick.macs
        parameters = plan.layer.parameters if pick is None else pick.parameters
        return (macs if self.kind == "macs" else parameters) / self.room

    def holds(self, plans: Sequence[_Plan], picks: Sequence[_Pick | None]) -> bool:
        """Say whether a choice is within the budget."""
        return sum(self.of(plan, pick) for plan, pick in zip(plans, picks, strict=True)) <= 1 + 1e-9


def _options(plans: Sequence[_Plan], budgets: Sequence[_Budget]) -> list[list[Option]]:
    return [
        [
            Option(sum(budget.of(plan, pick) for budget in budgets), 0.0 if pick is None else pick.loss)
            for pick in (None, *plan.picks)
        ]
        for plan in plans
    ]
