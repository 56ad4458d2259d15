"""What calibration data can improve beyond scales: the rounding of weights and the mean of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import walk
from ...compiler.ir.quant import Scheme, broadcast_params, dequantize_array, quantize_array
from ...compiler.pass_api import Context, PassStats, Refusal
from .adaround import Grid, Method, refuse_reconstruction, round_layer
from .bias_correct import expected_shift, refuse_bias
from .constants import Floats, Integers, params_of
from .moments import Layer, Moments, collect_moments, layer_of
from .plan import Decision, QuantPlan, Site


@dataclass(frozen=True)
class Improvements:
    """Results of the methods that look at layer outputs.

    Attributes:
        integers: weights by site, in the weight's shape.
        bias_shift: node name -> what to add to its bias, `[channels]`.
    """

    integers: Mapping[Site, Integers]
    bias_shift: Mapping[str, Floats]


@dataclass(frozen=True)
class _Job:
    """One planned layer; `corrects` says whether its bias takes the mean error back."""

    site: Site
    layer: Layer
    decision: Decision
    corrects: bool


def improve(
    model: ir.Model,
    plan: QuantPlan,
    samples: Samples,
    rounding: Method,
    bias_correct: bool,
    ctx: Context,
    stats: PassStats,
) -> Improvements:
    """Round weights by layer reconstruction and correct biases.

    Where the bias takes the mean error back, the rounding minimises only the rest: the form is then the
    covariance of the inputs, not their second moment.

    Args:
        model: float model; not edited.
        plan: with scales.
        samples: calibration inputs, read once per group of layers (`moments.GRAM_BUDGET_BYTES`).
        rounding: of the weights.
        bias_correct: whether to shift biases.
        ctx: seed, progress, cancellation.
        stats: gets refusals and details.
    """
    integers: dict[Site, Integers] = {}
    shifts: dict[str, Floats] = {}
    reconstructs = rounding != "nearest"
    jobs = {job.layer: job for job in _jobs(model.graph, plan, reconstructs, bias_correct, stats)}
    errors = np.zeros(2)
    for layer, moments in collect_moments(model, list(jobs), samples, ctx, gram=reconstructs):
        ctx.check_cancelled()
        job = jobs[layer]
        weight = np.asarray(walk.constant(layer.node.inputs[1]), np.float32)
        params = params_of(job.decision, weight)
        q = quantize_array(weight, params)
        if reconstructs:
            q, found = _reconstruct(job, weight, moments, rounding, ctx.seed)
            errors += found
            integers[job.site] = q
        if job.corrects:
            delta = np.asarray(dequantize_array(q, params), np.float64) - weight
            shifts[job.site.node] = -expected_shift(layer, delta, moments.mean)
    _account(stats, integers, shifts, errors)
    return Improvements(integers, shifts)


def _reconstruct(
    job: _Job, weight: Floats, moments: Moments, rounding: Method, seed: int
) -> tuple[Integers, Floats]:
    """Return integers, and the output error with nearest rounding and with this one."""
    params = params_of(job.decision, weight)
    scale, zero = broadcast_params(params, weight.shape)
    spec = params.spec
    grid = Grid(np.asarray(scale, np.float64), spec.qmin, spec.qmax, np.asarray(zero, np.float64))
    form = moments.covariance if job.corrects else moments.gram
    q, account = round_layer(job.layer, weight, grid, form, rounding, seed=seed)
    return q, np.array([account.nearest_error.sum(), account.error.sum()])


def _account(
    stats: PassStats, integers: Mapping[Site, Integers], shifts: Mapping[str, Floats], errors: Floats
) -> None:
    if integers:
        stats.details["layers_reconstructed"] = len(integers)
        stats.details["output_error_of_nearest"] = (
            round(float(errors[1] / errors[0]), 4) if errors[0] else 1.0
        )
    if shifts:
        stats.details["biases_corrected"] = len(shifts)


def _jobs(
    graph: ir.Graph, plan: QuantPlan, reconstructs: bool, bias_correct: bool, stats: PassStats
) -> list[_Job]:
    found: list[_Job] = []
    for node in graph:
        site = Site.read(node.name or "", 1)
        decision = plan.get(site)
        if decision is None or decision.role != "weight" or node.op_type in ("Add", "Mul", "Concat"):
            continue
        layer = layer_of(node, _shape(node.inputs[1]))
        reason = layer if isinstance(layer, str) else _refuse(layer, decision, reconstructs)
        if isinstance(layer, str) or reason:
            stats.refused.append(Refusal(site.node, f"{reason}; rounded to nearest"))
            continue
        unbiased = refuse_bias(node) if bias_correct else None
        if unbiased:
            stats.refused.append(Refusal(site.node, f"bias not corrected: {unbiased}"))
        if reconstructs or (bias_correct and not unbiased):
            found.append(_Job(site, layer, decision, corrects=bias_correct and not unbiased))
    return found


def _refuse(layer: Layer, decision: Decision, reconstructs: bool) -> str | None:
    if not reconstructs:
        return None
    if decision.spec.scheme is Scheme.BIPOLAR:
        return "bipolar weights have no grid to round to"
    weight = layer.node.inputs[1]
    assert weight is not None, layer
    if len(weight.uses()) > 1:
        return f"weight {weight.name!r} is shared, and its readers see different inputs"
    return refuse_reconstruction(layer)


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    tensor = None if value is None else walk.constant_tensor(value)
    assert tensor is not None, "a planned weight is constant"
    return tuple(int(size) for size in tensor.shape.numpy())
