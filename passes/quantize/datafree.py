"""Activation ranges without data: BatchNorm knows the mean and deviation of what it puts out.

A BatchNorm output is taken as normal with mean beta and deviation |gamma| per channel (Nagel et al. 2019,
arXiv 1906.04721, section 4 and appendix C). Moments and bounds are carried on through activations, pooling,
sums, joins, and through linear layers without a BatchNorm of their own (inputs taken as independent).

This reads BatchNorm nodes, so it runs before they are folded; the names of values survive folding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .plan import Decision, QuantPlan, Site
from .scales import Range

Floats = npt.NDArray[np.floating]

ATTACHMENT = "estimated_ranges.json"


@dataclass(frozen=True)
class EstimateRanges:
    """Estimate activation ranges from BatchNorm statistics, for `quantize` without calibration data.

    Exact: changes nothing. Has to stand before the pass that folds BatchNorm nodes. The ranges go to later
    passes, and to the report, as the attachment `estimated_ranges.json`: value name -> [min, max].

    Attributes:
        sigmas: deviations around the mean that count as the range of a normal value.
    """

    name: ClassVar[str] = "estimate-ranges"
    effect: ClassVar[Effect] = Effect.EXACT
    sigmas: float = 6.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.sigmas <= 20.0:
            raise PipelineError("estimate-ranges-option", f"sigmas must be 1..20, got {self.sigmas:g}")

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Return the ranges in the account; `model` is only read."""
        found = capture_bn_ranges(model, self.sigmas)
        stats = PassStats(details={"ranges_estimated": len(found)})
        stats.attachments[ATTACHMENT] = json.dumps(found)
        return stats


def estimated_ranges(ctx: Context) -> dict[str, tuple[float, float]] | None:
    """Return what `estimate-ranges` found earlier in the pipeline; None when it did not run."""
    text = ctx.attachments.get(ATTACHMENT)
    return None if text is None else {name: (low, high) for name, (low, high) in json.loads(text).items()}


@dataclass(frozen=True)
class Spread:
    """What is known of a value, per channel.

    Attributes:
        mean: `[channels]`, or `[1]` for the whole tensor.
        std: likewise.
        low: bound that holds surely or within the sigmas asked for.
        high: likewise.
        axis: of the channels; None: one entry for the whole tensor.
    """

    mean: Floats
    std: Floats
    low: Floats
    high: Floats
    axis: int | None

    @classmethod
    def normal(cls, mean: Floats, std: Floats, sigmas: float, axis: int | None) -> Spread:
        """A normal value, bounded at `sigmas` deviations."""
        return cls(mean, std, mean - sigmas * std, mean + sigmas * std, axis)

    def within(self, low: Floats | float, high: Floats | float) -> Spread:
        """The same with bounds no wider than these."""
        return Spread(self.mean, self.std, np.maximum(self.low, low), np.minimum(self.high, high), self.axis)

    def whole(self) -> Spread:
        """One entry for all channels: mixture of equal parts."""
        mean = self.mean.mean(keepdims=True)
        std = np.sqrt((self.std**2 + self.mean**2).mean(keepdims=True) - mean**2)
        return Spread(mean, std, self.low.min(keepdims=True), self.high.max(keepdims=True), None)

    def spread_like(self, other: Spread) -> Spread:
        """The one entry of this repeated for each channel of `other`."""
        size = other.mean.size
        arrays = (np.broadcast_to(a, size) for a in (self.mean, self.std, self.low, self.high))
        mean, std, low, high = arrays
        return Spread(mean, std, low, high, other.axis)

    def range(self) -> Range:
        """Range over all channels."""
        return Range(float(self.low.min()), float(self.high.max()))


def capture_bn_ranges(model: ir.Model, sigmas: float = 6.0) -> dict[str, tuple[float, float]]:
    """Return value name -> (min, max) for every value that BatchNorm statistics reach; `model` is not edited.

    Args:
        model: after import, before BatchNorm nodes are folded. Only the main graph is read.
        sigmas: deviations around the mean that count as the range of a normal value.
    """
    return {name: (s.range().low, s.range().high) for name, s in spreads(model, sigmas).items()}


def spreads(model: ir.Model, sigmas: float = 6.0) -> dict[str, Spread]:
    """Return value name -> `Spread` for every value that BatchNorm statistics reach."""
    found: dict[ir.Value, Spread] = {}
    for node in model.graph:
        rule = _RULES.get(node.op_type) if not node.domain else None
        spread = None if rule is None else rule(node, found, sigmas)
        if spread is not None:
            found[node.outputs[0]] = spread
    return {str(value.name): spread for value, spread in found.items()}


def keep_ranged(
    plan: QuantPlan, ranges: Mapping[str, tuple[float, float]], shared: Mapping[str, str]
) -> QuantPlan:
    """Return the plan without activations whose range is not known; their layers keep integer weights.

    Args:
        plan: without scales.
        ranges: from `capture_bn_ranges`.
        shared: value -> value whose scale it takes, from `policy.shared_scales`.
    """
    unknown = {
        d.value
        for d in plan.activations().values()
        if not d.dynamic and shared.get(d.value, d.value) not in ranges
    }
    # An int32 bias needs the input's scale.
    floats = {s.node for s, d in plan.decisions.items() if s.port == "in0" and d.value in unknown}
    kept: dict[Site, Decision] = {}
    refusals = list(plan.refusals)
    for site, decision in plan.decisions.items():
        if decision.role == "activation" and decision.value in unknown:
            refusals.append(
                Refusal(site.node, f"no BatchNorm statistics reach {decision.value!r}: it stays float")
            )
        elif not (decision.role == "bias" and site.node in floats):
            kept[site] = decision
    return QuantPlan(kept, tuple(dict.fromkeys(refusals)), plan.notes)


Found = Mapping[ir.Value, Spread]
Rule = Callable[[ir.Node, Found, float], "Spread | None"]


def _first(node: ir.Node, found: Found) -> Spread | None:
    value = node.inputs[0] if node.inputs else None
    return None if value is None else found.get(value)


def _batchnorm(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    gamma, beta = (walk.constant(value) for value in node.inputs[1:3])
    if gamma is None or beta is None:
        return None
    return Spread.normal(beta.astype(np.float64), np.abs(gamma.astype(np.float64)), sigmas, 1)


def _relu(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    spread = _first(node, found)
    return None if spread is None else _clipped(spread, 0.0, math.inf)


def _clip(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    spread = _first(node, found)
    bounds = [walk.scalar(value) for value in node.inputs[1:3]]
    low = bounds[0] if bounds and bounds[0] is not None else -math.inf
    high = bounds[1] if len(bounds) > 1 and bounds[1] is not None else math.inf
    if spread is None:
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        spread = _uniform(low, high)
    return _clipped(spread, low, high)


def _uniform(low: float, high: float) -> Spread:
    """A value that is bounded and of which nothing else is known."""
    mean, std = np.array([(low + high) / 2]), np.array([(high - low) / math.sqrt(12)])
    return Spread(mean, std, np.array([low]), np.array([high]), None)


def _clipped(spread: Spread, low: float, high: float) -> Spread:
    """Moments of a normal value clipped to [low, high] (appendix C of the paper), and its bounds."""
    std = np.maximum(spread.std, 1e-12)
    a, b = (low - spread.mean) / std, (high - spread.mean) / std
    mass = _cdf(b) - _cdf(a)
    below, above = _cdf(a), 1.0 - _cdf(b)
    inner = mass * spread.mean + std * (_pdf(a) - _pdf(b))
    square = mass * (spread.mean**2 + std**2) + std * (
        (2 * spread.mean + std * _finite(a)) * _pdf(a) - (2 * spread.mean + std * _finite(b)) * _pdf(b)
    )
    edge_low, edge_high = _finite(np.array([low])), _finite(np.array([high]))
    mean = inner + below * edge_low + above * edge_high
    second = square + below * edge_low**2 + above * edge_high**2
    bounds = np.clip(spread.low, low, high), np.clip(spread.high, low, high)
    return Spread(mean, np.sqrt(np.maximum(second - mean**2, 0.0)), *bounds, spread.axis)


def _finite(x: Floats) -> Floats:
    """Infinities become 0: their terms vanish with the density or the mass that multiplies them."""
    return np.where(np.isfinite(x), x, 0.0)


def _pdf(x: Floats) -> Floats:
    density: Floats = np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)
    return density


def _cdf(x: Floats) -> Floats:
    return np.array([0.5 * (1.0 + math.erf(v / math.sqrt(2))) for v in x.reshape(-1)]).reshape(x.shape)


def _bounded(low: float, high: float) -> Rule:
    """A function whose values are bounded whatever comes in."""

    def rule(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
        return _uniform(low, high)

    return rule


def _same(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    """Pooling: bounds hold; the moments are those of one element, which bounds those of an average."""
    return _first(node, found)


def _moved(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    spread = _first(node, found)
    return None if spread is None else spread.whole()


def _add(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    parts = [_operand(value, found) for value in node.inputs]
    total = parts[0]
    for part in parts[1:]:
        if total is None or part is None:
            return None
        one, other = _aligned(total, part)
        mean, std = one.mean + other.mean, np.sqrt(one.std**2 + other.std**2)
        total = Spread.normal(mean, std, sigmas, one.axis).within(one.low + other.low, one.high + other.high)
    return total


def _mul(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    """Times a constant; the product of two computed values has bounds only."""
    one, other = (_operand(value, found) for value in node.inputs)
    if one is None or other is None:
        return None
    one, other = _aligned(one, other)
    corners = np.stack([a * b for a in (one.low, one.high) for b in (other.low, other.high)])
    mean = one.mean * other.mean
    std = np.sqrt((one.std**2 + one.mean**2) * (other.std**2 + other.mean**2) - mean**2)
    return Spread(mean, std, corners.min(axis=0), corners.max(axis=0), one.axis)


def _aligned(one: Spread, other: Spread) -> tuple[Spread, Spread]:
    """Both per channel alike: a whole tensor's entry stands for every channel of the other."""
    if one.axis is None:
        return one.spread_like(other), other
    if other.axis is None:
        return one, other.spread_like(one)
    if one.axis == other.axis and one.mean.shape == other.mean.shape:
        return one, other
    return one.whole(), other.whole()


def _operand(value: ir.Value | None, found: Found) -> Spread | None:
    """A computed value's spread, or that of a constant: per channel for [C, 1, 1], else as a whole."""
    constant = walk.constant(value)
    if constant is None:
        return None if value is None else found.get(value)
    array = constant.astype(np.float64)
    if array.ndim in (3, 4) and array.size == array.shape[-3]:
        flat = array.reshape(-1)
        return Spread(flat, np.zeros_like(flat), flat, flat, 1)
    one = (array.mean(), array.std(), array.min(), array.max())
    mean, std, low, high = (np.array([number]) for number in one)
    return Spread(mean, std, low, high, None)


def _concat(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    parts = [None if value is None else found.get(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    axis = walk.int_attribute(node, "axis", 0)
    alike = all(part.axis == axis for part in known)
    if not alike:
        known = [part.whole() for part in known]
    mean, std = np.concatenate([p.mean for p in known]), np.concatenate([p.std for p in known])
    low, high = np.concatenate([p.low for p in known]), np.concatenate([p.high for p in known])
    joined = Spread(mean, std, low, high, axis)
    return joined if alike else joined.whole()


def _linear(node: ir.Node, found: Found, sigmas: float) -> Spread | None:
    """`E[y] = W E[x] + b`, `Var[y] = W^2 Var[x]`, inputs taken as independent."""
    spread, weight = _first(node, found), walk.constant(node.inputs[1])
    if spread is None or weight is None:
        return None
    rows = _rows(node, weight.astype(np.float64))
    if rows is None:
        return None
    columns = rows.shape[1]
    shape = node.outputs[0].shape
    channels_second = node.op_type == "Conv" or (shape is not None and shape.rank() == 2)
    per_channel = channels_second and spread.axis == 1 and spread.mean.size == columns
    source = spread if per_channel else spread.whole()
    mean = np.einsum("rck,c->r", rows, np.broadcast_to(source.mean, columns))
    std = np.sqrt(np.einsum("rck,c->r", rows**2, np.broadcast_to(source.std**2, columns)))
    bias = walk.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        mean = mean + bias.astype(np.float64).reshape(-1)
    result = Spread.normal(mean, std, sigmas, 1)
    return result if channels_second else result.whole()


def _rows(node: ir.Node, weight: Floats) -> Floats | None:
    """The weight as `[out, in, kernel]`; channels of grouped convolutions have zeros elsewhere."""
    if node.op_type == "Conv":
        groups, out, size = walk.int_attribute(node, "group", 1), weight.shape[0], weight.shape[1]
        flat = weight.reshape(out, size, -1)
        if groups == 1:
            return flat
        rows = np.zeros((out, size * groups, flat.shape[2]))
        for group in range(groups):
            part = slice(group * out // groups, (group + 1) * out // groups)
            rows[part, group * size : (group + 1) * size] = flat[part]
        return rows
    if weight.ndim != 2:
        return None
    transposed = node.op_type == "Gemm" and walk.int_attribute(node, "transB", 0)
    return (weight if transposed else weight.T)[:, :, None]


_RULES: Mapping[str, Rule] = {
    "BatchNormalization": _batchnorm,
    "Relu": _relu,
    "Clip": _clip,
    "Sigmoid": _bounded(0.0, 1.0),
    "HardSigmoid": _bounded(0.0, 1.0),
    "Softmax": _bounded(0.0, 1.0),
    "Tanh": _bounded(-1.0, 1.0),
    "MaxPool": _same,
    "AveragePool": _same,
    "GlobalAveragePool": _same,
    "GlobalMaxPool": _same,
    "Identity": _same,
    "Dropout": _same,
    "Reshape": _moved,
    "Flatten": _moved,
    "Squeeze": _moved,
    "Unsqueeze": _moved,
    "Transpose": _moved,
    "Resize": _moved,
    "Add": _add,
    "Sum": _add,
    "Mul": _mul,
    "Concat": _concat,
    "Conv": _linear,
    "Gemm": _linear,
    "MatMul": _linear,
}
