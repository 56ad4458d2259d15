"""Layers to leave in float: those at the model's inputs, and those that cost too much accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir.stats import macs_of
from ...compiler.pass_api import Context, PassStats
from .plan import QuantPlan, Site
from .ranges import Judge, held_out

# What leaving the first layers in float must bring to be worth it.
INPUT_GAIN_DB = 2.0

# Judging runs the model on held-out samples; above this it would cost more than calibration itself.
_MAX_JUDGED_MACS = 1 << 30


def guard_inputs(
    model: ir.Model, plan: QuantPlan, samples: Samples, ctx: Context, stats: PassStats
) -> QuantPlan:
    """Return the plan with float activations in the layers that read the model's inputs, where that pays.

    Inputs often mix features of different size (a spectrum and its energy), which one scale serves badly;
    no later layer can repair that. It pays when the outputs' SQNR on held-out samples gains
    `INPUT_GAIN_DB`. Weights stay integers, so the file does not grow.
    """
    first = input_layers(model.graph, plan)
    if not first or not is_judged(model.graph):
        stats.details["input_layers"] = "integer" if first else "none"
        return plan
    judge = Judge(model, held_out(samples))
    guarded = plan.weights_only(first)
    gain = judge.sqnr(guarded) - judge.sqnr(plan)
    ctx.check_cancelled()
    stats.details["input_layers_gain_db"] = round(gain, 2)
    stats.details["input_layers"] = "float" if gain >= INPUT_GAIN_DB else "integer"
    return guarded if gain >= INPUT_GAIN_DB else plan


def is_judged(graph: ir.Graph) -> bool:
    """Say whether a model is small enough to be run on samples for the sake of a choice."""
    return sum(macs_of(node) or 0 for node in graph) <= _MAX_JUDGED_MACS


def input_layers(graph: ir.Graph, plan: QuantPlan) -> list[str]:
    """Return the planned layers with weights that read a graph input, directly or through other nodes."""
    reached = set(graph.inputs)
    found: list[str] = []
    for node in graph:
        if not any(value in reached for value in node.inputs):
            continue
        name = node.name or ""
        decisions = [plan.get(Site.read(name, index)) for index in range(len(node.inputs))]
        roles = {decision.role for decision in decisions if decision is not None}
        if {"weight", "activation"} <= roles:
            found.append(name)
        elif "table" not in roles:
            reached.update(node.outputs)
    return found


@dataclass(frozen=True)
class Fallback:
    """Outcome of `search_fallback`.

    Attributes:
        plan: with the layers left in float.
        float_nodes: those layers, in the order they were given up.
        drop: what the plan loses against float, in the unit of `evaluate`.
        evaluations: how often `evaluate` ran.
    """

    plan: QuantPlan
    float_nodes: tuple[str, ...]
    drop: float
    evaluations: int


def search_fallback(
    model: ir.Model,
    plan: QuantPlan,
    samples: Samples,
    evaluate: Callable[[QuantPlan], float],
    reference: float,
    max_drop: float,
    ctx: Context,
    *,
    max_evaluations: int = 32,
) -> Fallback:
    """Find few layers to leave in float so that the metric drops by at most `max_drop`.

    Layers are ordered by what the outputs' SQNR gains when each alone is left in float; then the shortest
    prefix of that order that is good enough is found by doubling and bisection, and layers of it that are
    not needed are taken back, the least sensitive first. Nothing is calibrated again.

    Args:
        model: float model that the plan is for.
        plan: with scales.
        samples: calibration samples; held-out ones give the order.
        evaluate: metric of the model under a plan, higher is better.
        reference: metric of the float model.
        max_drop: largest acceptable `reference - evaluate(plan)`.
        ctx: cancellation, progress.
        max_evaluations: stop refining after so many calls of `evaluate`.
    """
    calls = 0
    scores: dict[frozenset[str], float] = {}

    def drop(nodes: Sequence[str]) -> float:
        nonlocal calls
        ctx.check_cancelled()
        key = frozenset(nodes)
        if key not in scores:
            calls += 1
            scores[key] = reference - evaluate(plan.without(key))
            ctx.progress("fallback", calls, max_evaluations)
        return scores[key]

    chosen: list[str] = []
    if drop(chosen) > max_drop:
        order = sensitivity(model, plan, samples, ctx)
        chosen = _shortest_prefix(order, lambda nodes: drop(nodes) <= max_drop)
        for name in reversed(chosen[:-1]):
            fewer = [kept for kept in chosen if kept != name]
            if calls < max_evaluations and drop(fewer) <= max_drop:
                chosen = fewer
    return Fallback(plan.without(chosen), tuple(chosen), drop(chosen), calls)


def sensitivity(model: ir.Model, plan: QuantPlan, samples: Samples, ctx: Context) -> list[str]:
    """Return the planned nodes, those first whose return to float raises the outputs' SQNR most.

    Ties, where one bad layer hides the others, are broken by the SQNR of the model in which only this
    node is quantized.
    """
    judge = Judge(model, held_out(samples))
    names = plan.nodes()
    keys: dict[str, tuple[float, float]] = {}
    for done, name in enumerate(names, start=1):
        ctx.check_cancelled()
        others = [other for other in names if other != name]
        without = judge.sqnr(plan.without([name]))
        keys[name] = (-round(without, 1), judge.sqnr(plan.without(others)))
        ctx.progress("sensitivity", done, len(names))
    return sorted(names, key=keys.__getitem__)


def _shortest_prefix(order: Sequence[str], good: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return the shortest prefix that is good, taking goodness as monotone; all of it when none is."""
    high = 1
    while high < len(order) and not good(order[:high]):
        high *= 2
    high, low = min(high, len(order)), high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(order[:middle]) else (middle, high)
    return list(order[:high])
