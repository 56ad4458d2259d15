"""Weights of a planned quantization made better before they become integers.

The float weight in the graph is replaced by `(q - zero_point) * scale` with well chosen integers `q`, and the
bias by one that takes back the mean error. Quantizing such a weight to nearest gives exactly `q`, so what
materializes the plan afterwards needs to know nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import walk
from ...compiler.ir.quant import (
    QuantParams,
    QuantSpec,
    Scheme,
    broadcast_params,
    dequantize_array,
    quantize_array,
)
from ...compiler.pass_api import Context, Refusal
from .adaround import Grid, Method, refuse_reconstruction, round_layer
from .bias_correct import add_to_bias, expected_shift, refuse_bias
from .constants import params_of
from .moments import Floats, Layer, Moments, collect_moments, layer_of
from .plan import Decision, QuantPlan, Site


@dataclass
class Refined:
    """What was done.

    Attributes:
        plan: the plan given, with decisions on biases that had to be made.
        rounded: layers whose rounding got better than nearest.
        corrected: layers whose bias was corrected.
        error: expected squared output error of all layers, summed over channels, with the new rounding.
        nearest_error: and with nearest rounding.
        refused: layers left as they were, with reasons.
    """

    plan: QuantPlan
    rounded: int = 0
    corrected: int = 0
    error: float = 0.0
    nearest_error: float = 0.0
    refused: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """One planned layer; `corrects` says whether its bias takes the mean error back."""

    layer: Layer
    decision: Decision
    params: QuantParams
    corrects: bool


def refine(
    model: ir.Model,
    plan: QuantPlan,
    samples: Samples,
    ctx: Context,
    *,
    rounding: Method = "nearest",
    bias_correction: bool = True,
) -> Refined:
    """Improve rounding and biases of the planned layers of the main graph, in place.

    Where the bias takes the mean error back, the rounding minimises only the rest: its form is then the
    covariance of the inputs, not their second moment.

    Args:
        model: float model with the plan's nodes; its weights (and biases) are replaced.
        plan: with scales.
        samples: calibration inputs, read once per group of layers (`moments.GRAM_BUDGET_BYTES`).
        ctx: seed, progress, cancellation.
        rounding: of the weights.
        bias_correction: shift biases.
    """
    done = Refined(plan)
    if rounding == "nearest" and not bias_correction:
        return done
    jobs = {job.layer.node: job for job in _jobs(model, plan, rounding, bias_correction, done.refused)}
    layers = [job.layer for job in jobs.values()]
    # The data flow through a copy: layers behind must see the inputs of the float model.
    frozen = model.clone()
    for layer, moments in collect_moments(frozen, layers, samples, ctx, gram=rounding != "nearest"):
        ctx.check_cancelled()
        _refine_layer(model, jobs[layer.node], moments, rounding, ctx.seed, done)
    return done


def _jobs(
    model: ir.Model, plan: QuantPlan, rounding: Method, correct: bool, refused: list[Refusal]
) -> Iterator[_Job]:
    for node in model.graph:
        decision = plan.get(Site.read(str(node.name), 1))
        if decision is None or decision.role != "weight" or node.op_type in ("Add", "Mul", "Concat"):
            continue
        layer = _layer(node, decision, rounding)
        if isinstance(layer, str):
            refused.append(Refusal(str(node.name), f"{layer}; rounded to nearest"))
            continue
        reason = refuse_bias(node) if correct else None
        if reason is not None:
            refused.append(Refusal(str(node.name), f"bias not corrected: {reason}"))
        if rounding != "nearest" or (correct and reason is None):
            params = params_of(decision, np.zeros(0, np.float32))
            yield _Job(layer, decision, params, corrects=correct and reason is None)


def _layer(node: ir.Node, decision: Decision, rounding: Method) -> Layer | str:
    value = node.inputs[1]
    assert value is not None, node
    shape = walk.static_shape(value)
    assert shape is not None, f"{value.name}: planned as a constant"
    layer = layer_of(node, shape)
    if isinstance(layer, str):
        return layer
    if decision.scale is None:
        return "scales in blocks follow from the weight itself"
    if decision.spec.scheme is Scheme.BIPOLAR:
        return "bipolar weights have no grid to round to"
    if len(value.uses()) > 1 or value.is_graph_output():
        return f"weight {value.name!r} is shared, and its readers see different inputs"
    reason = refuse_reconstruction(layer) if rounding != "nearest" else None
    return reason or layer


def _refine_layer(
    model: ir.Model, job: _Job, moments: Moments, rounding: Method, seed: int, done: Refined
) -> None:
    array = walk.constant(job.layer.node.inputs[1])
    assert array is not None, job
    weight: Floats = array.astype(np.float32, copy=False)
    q = quantize_array(weight, job.params)
    if rounding != "nearest":
        scale, zero = broadcast_params(job.params, weight.shape)
        spec = job.params.spec
        grid = Grid(np.asarray(scale, np.float64), spec.qmin, spec.qmax, np.asarray(zero, np.float64))
        form = moments.covariance if job.corrects else moments.gram
        integers, account = round_layer(job.layer, weight, grid, form, rounding, seed=seed)
        done.rounded += int(np.any(account.error < account.nearest_error))
        done.error += float(account.error.sum())
        done.nearest_error += float(account.nearest_error.sum())
        q = integers.astype(q.dtype)
    new = np.asarray(dequantize_array(q, job.params), np.float32)
    _replace_weight(model, job.layer.node, new)
    if job.corrects:
        shift = expected_shift(job.layer, new.astype(np.float64) - weight, moments.mean)
        _correct(model, job, -shift, done)


def _replace_weight(model: ir.Model, node: ir.Node, array: Floats) -> None:
    old = node.inputs[1]
    assert old is not None, node
    assert isinstance(node.graph, ir.Graph), node
    name = str(old.name)
    walk.rename(old, walk.unique_name(model, f"{name}_float"))
    node.replace_input_with(1, walk.add_initializer(node.graph, name, array))
    maker = old.producer()
    if maker is not None:
        walk.remove_if_dead(maker)
    else:
        walk.drop_unused_initializer(old)


def _correct(model: ir.Model, job: _Job, change: Floats, done: Refined) -> None:
    node = job.layer.node
    had_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    add_to_bias(model, node, change)
    done.corrected += 1
    if not had_bias and _takes_integer_bias(done.plan, job):
        bias = node.inputs[2]
        assert bias is not None, node
        spec = QuantSpec(bits=32, signed=True, narrow=False, axis=0)
        site = Site.read(str(node.name), 2)
        done.plan = done.plan.updated({site: Decision(str(bias.name), "bias", spec)})


def _takes_integer_bias(plan: QuantPlan, job: _Job) -> bool:
    """An int32 bias belongs to integer inputs with a fixed scale and 8 bits at most."""
    source = plan.get(Site.read(str(job.layer.node.name), 0))
    if source is None or source.role != "activation" or source.dynamic:
        return False
    return max(source.spec.bits, job.decision.spec.bits) <= 8
