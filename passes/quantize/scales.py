"""Scales and zero points: from ranges of activations, from weights themselves; and into the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.pages import drop_pages
from ...compiler.ir.quant import QuantParams, QuantSpec, Scheme
from .biases import bias_sites
from .plan import Decision, QuantPlan, Site

Floats: TypeAlias = npt.NDArray[np.floating]
Zeros: TypeAlias = npt.NDArray[np.int64]
WeightRange: TypeAlias = Literal["minmax", "mse"]

# Smaller scales would leave float32's normal numbers when two of them are multiplied (input times weight).
_MIN_SCALE = 2.0**-60

# Clipping factors that are tried for weights with `mse`; below half the range the error only grows.
_CLIPS = np.linspace(1.0, 0.5, 21)

# A bias reaches at most this integer, which leaves half of int32 to the sum it is added to.
_MAX_BIAS = 2.0**30


@dataclass(frozen=True)
class Range:
    """What values a tensor takes, as far as they are to be represented; `low <= high`."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """Return the smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


def affine(found: Range, spec: QuantSpec) -> tuple[float, int]:
    """Return (scale, zero point) whose grid covers a range; zero is always representable exactly.

    scale is exact in float32. A range of only zeros gets the scale of [0, 1].
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if low == high:
        high = 1.0
    if spec.scheme is Scheme.ASYMMETRIC:
        scale = _float32((high - low) / (spec.qmax - spec.qmin))
        zero = round(spec.qmin - low / scale)
        return scale, min(max(zero, spec.qmin), spec.qmax)
    zero = _middle(spec, low)
    scale = max(high / (spec.qmax - zero), -low / (zero - spec.qmin) if zero > spec.qmin else 0.0)
    return (_power_of_two(scale) if spec.scheme is Scheme.POWER_OF_TWO else _float32(scale)), zero


def _middle(spec: QuantSpec, low: float) -> int:
    """Return the zero point of a symmetric grid; an unsigned one starts at 0 for non-negative values."""
    if spec.signed:
        return 0
    return 0 if low >= 0.0 else 1 << (spec.bits - 1)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, _MIN_SCALE)))


def _power_of_two(scale: float) -> float:
    """Return the smallest power of two that does not clip."""
    return float(2.0 ** math.ceil(math.log2(max(scale, _MIN_SCALE))))


def weight_params(weight: Floats, spec: QuantSpec, method: WeightRange = "minmax") -> QuantParams:
    """Return scale and zero point for a constant: shape (), `[channels]`, or the weight's rank in blocks.

    A channel of zeros takes the largest scale among the others, since its bias is stored in that unit.
    """
    if spec.block_size:
        return _block_params(weight, spec, method)
    rows = _rows(weight, spec.axis)
    scale, zero = _row_params(rows, spec, method)
    shape = () if spec.axis is None else (-1,)
    return QuantParams(spec, scale.reshape(shape), zero.reshape(shape))


def _rows(weight: Floats, axis: int | None) -> Floats:
    if axis is None:
        return weight.reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _block_params(weight: Floats, spec: QuantSpec, method: WeightRange) -> QuantParams:
    axis, size = spec.axis, spec.block_size
    assert axis is not None
    moved = np.moveaxis(weight, axis, -1)
    blocks = -(-moved.shape[-1] // size)
    pad = blocks * size - moved.shape[-1]
    # Padding repeats the edge, which changes neither extrema nor, noticeably, the mean error of a block.
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, pad)], mode="edge")
    scale, zero = _row_params(padded.reshape(-1, size), spec, method)
    shape = (*moved.shape[:-1], blocks)
    return QuantParams(
        spec, np.moveaxis(scale.reshape(shape), -1, axis), np.moveaxis(zero.reshape(shape), -1, axis)
    )


def _row_params(rows: Floats, spec: QuantSpec, method: WeightRange) -> tuple[Floats, Zeros]:
    """Return one float32 scale and one zero point per row."""
    if spec.scheme is Scheme.BIPOLAR:
        # The mean magnitude minimises the squared error of scale * sign(w) (XNOR-Net, eq. 6).
        return _filled(np.abs(rows).mean(axis=1, dtype=np.float64)), np.zeros(len(rows), np.int64)
    low = np.minimum(rows.min(axis=1), 0.0).astype(np.float64)
    high = np.maximum(rows.max(axis=1), 0.0).astype(np.float64)
    if method == "minmax":
        return _grid(low, high, spec)
    best = np.full(len(rows), np.inf)
    clip = np.ones(len(rows))
    for factor in _CLIPS:
        error = _squared_error(rows, *_grid(low * factor, high * factor, spec), spec)
        clip = np.where(error < best, factor, clip)
        best = np.minimum(error, best)
    return _grid(low * clip, high * clip, spec)


def _grid(low: Floats, high: Floats, spec: QuantSpec) -> tuple[Floats, Zeros]:
    if spec.scheme is Scheme.ASYMMETRIC:
        scale = _filled((high - low) / (spec.qmax - spec.qmin))
        zero = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax).astype(np.int64)
        return scale, zero
    middle = 0 if spec.signed or not (low < 0).any() else 1 << (spec.bits - 1)
    scale = _filled(np.maximum(-low, high) / (spec.qmax - middle))
    if spec.scheme is Scheme.POWER_OF_TWO:
        scale = np.exp2(np.ceil(np.log2(scale))).astype(np.float32)
    return scale, np.full(len(low), middle, np.int64)


def _filled(scale: Floats) -> Floats:
    """Return float32 scales; zeros become the largest scale, or 1 when there is none."""
    largest = float(scale.max(initial=0.0)) or 1.0
    return short(np.maximum(np.where(scale > 0, scale, largest), _MIN_SCALE))


def short(scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Round positive numbers up to 11 significant bits.

    The grid gets coarser by at most 2^-10 of a step, and such a scale fits into float16 (if it is not too
    small), which halves what per-channel scales take in the file.
    """
    fraction, exponent = np.frexp(np.asarray(scale, np.float64))
    return np.asarray(np.ldexp(np.ceil(fraction * 2048.0) / 2048.0, exponent), np.float32)


def _squared_error(rows: Floats, scale: Floats, zero: Zeros, spec: QuantSpec) -> Floats:
    scale, zero = scale[:, None], zero[:, None]
    q = np.clip(np.rint(rows / scale) + zero, spec.qmin, spec.qmax)
    return np.asarray(np.square((q - zero) * scale - rows).sum(axis=1, dtype=np.float64))


def assign(
    plan: QuantPlan,
    graph: ir.Graph,
    ranges: Mapping[str, Range],
    shared: Mapping[str, str],
    weight_range: WeightRange = "minmax",
) -> QuantPlan:
    """Return the plan with scales and zero points.

    Args:
        plan: what `decide` made for `graph`.
        graph: holds the constants, which are read one at a time.
        ranges: of every quantized activation that does not share a scale.
        shared: value -> value whose scale it takes, from `shared_scales`.
        weight_range: how far weights are clipped.
    """
    changes: dict[Site, Decision] = {}
    for site, decision in plan.decisions.items():
        if decision.role == "activation" and not decision.dynamic:
            found = ranges[shared.get(decision.value, decision.value)]
            changes[site] = decision.scaled(*affine(found, decision.spec))
    for node in graph:
        changes |= _constants(node, plan, changes, weight_range)
    return plan.updated(changes)


def rescale(
    plan: QuantPlan, graph: ir.Graph, constants: Mapping[Site, Decision], weight_range: WeightRange
) -> QuantPlan:
    """Return the plan with other decisions on some constants, for which scales are found."""
    draft = plan.updated(constants)
    changes: dict[Site, Decision] = {}
    for node in graph:
        changes |= _constants(node, draft, plan.decisions, weight_range)
    return draft.updated({site: changes[site] for site in constants})


def _constants(
    node: ir.Node, plan: QuantPlan, scaled: Mapping[Site, Decision], method: WeightRange
) -> dict[Site, Decision]:
    changes: dict[Site, Decision] = {}
    for index, value in enumerate(node.inputs):
        site = Site.read(node.name or "", index)
        decision = plan.get(site)
        if decision is None or decision.role not in ("weight", "table") or decision.spec.block_size:
            continue
        array = walk.constant(value)
        assert array is not None, f"{site} is planned as a constant"
        params = weight_params(np.asarray(array, np.float32), decision.spec, method)
        drop_pages(None if value is None else walk.constant_tensor(value))
        scale = short(np.maximum(params.scale, _least_scale(node, plan, scaled, params)))
        changes[site] = decision.scaled(scale, params.zero_point)
    return changes


def _least_scale(
    node: ir.Node, plan: QuantPlan, scaled: Mapping[Site, Decision], params: QuantParams
) -> Floats:
    """Return the smallest weight scale with which the bias still fits into its integers."""
    for site, value in bias_sites(node):
        bias, source = plan.get(site), scaled.get(Site.read(site.node, 0))
        array = walk.constant(value)
        if bias is None or bias.role != "bias" or source is None or source.scale is None or array is None:
            continue
        least = np.abs(np.asarray(array, np.float64)).reshape(-1) / (source.scale[0] * _MAX_BIAS)
        least = least if params.spec.axis is not None else least.max(initial=0.0)
        if params.spec.scheme is Scheme.POWER_OF_TWO:
            least = np.exp2(np.ceil(np.log2(np.maximum(least, _MIN_SCALE))))
        return np.asarray(least, np.float32).reshape(params.scale.shape)
    return np.zeros(params.scale.shape, np.float32)
