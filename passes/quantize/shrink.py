"""`weights=auto`: one scale per tensor instead of one per channel where no accuracy is lost by it.

Scales per channel are a tenth of the file of a small network, and most layers do not need them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import walk
from ...compiler.ir.quant import dequantize_array, quantize_array
from ...compiler.pass_api import Context, PassStats
from .constants import Floats, params_of
from .fallback import is_judged
from .plan import Decision, QuantPlan, Site
from .ranges import Judge, held_out
from .scales import WeightRange, rescale

# All layers together may lose this much output SQNR; less is not measurable on few samples.
_LOSS_DB = 0.3

# Where scales are a smaller part of the weights, there is nothing to win.
_WORTH = 0.01


def shrink_weights(
    model: ir.Model,
    plan: QuantPlan,
    samples: Samples,
    ctx: Context,
    stats: PassStats,
    weight_range: WeightRange,
) -> QuantPlan:
    """Return the plan with per-tensor scales in as many layers as the outputs' SQNR allows.

    Layers are taken in the order of the weight error that the change adds; the longest prefix that costs
    at most `_LOSS_DB` on held-out samples is found by bisection.
    """
    found = _candidates(model.graph, plan)
    if not found or not is_judged(model.graph):
        return plan
    coarse = rescale(
        plan, model.graph, {site: _per_tensor(d) for site, (d, _) in found.items()}, weight_range
    )
    order = sorted(found, key=lambda site: _added_error(found[site][1], plan, coarse, site))
    judge = Judge(model, held_out(samples))
    want = judge.sqnr(plan) - _LOSS_DB

    def mixed(count: int) -> QuantPlan:
        return plan.updated({site: coarse.decisions[site] for site in order[:count]})

    low, high = 0, len(order) + 1
    while high - low > 1:
        ctx.check_cancelled()
        middle = (low + high) // 2
        low, high = (middle, high) if judge.sqnr(mixed(middle)) >= want else (low, middle)
    stats.details["weights_per_tensor"] = low
    return mixed(low)


def _candidates(graph: ir.Graph, plan: QuantPlan) -> dict[Site, tuple[Decision, Floats]]:
    found: dict[Site, tuple[Decision, Floats]] = {}
    for node in graph:
        for index, value in enumerate(node.inputs):
            site = Site.read(node.name or "", index)
            decision = plan.get(site)
            if decision is None or decision.role not in ("weight", "table") or decision.scale is None:
                continue
            array = walk.constant(value)
            if (
                array is not None
                and len(decision.scale) > 1
                and array.size * _WORTH < 4 * len(decision.scale)
            ):
                found[site] = (decision, np.asarray(array, np.float32))
    return found


def _per_tensor(decision: Decision) -> Decision:
    spec = dataclasses.replace(decision.spec, axis=None)
    return dataclasses.replace(decision, spec=spec, scale=None, zero_point=None)


def _added_error(weight: Floats, fine: QuantPlan, coarse: QuantPlan, site: Site) -> float:
    """Return the growth of the weight's squared error, relative to its energy."""
    errors = []
    for plan in (fine, coarse):
        params = params_of(plan.decisions[site], weight)
        real = dequantize_array(quantize_array(weight, params), params)
        errors.append(float(np.square(np.asarray(real, np.float64) - weight).sum()))
    return (errors[1] - errors[0]) / max(float(np.square(weight, dtype=np.float64).sum()), 1e-30)
