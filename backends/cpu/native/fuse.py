"""Merges neighbouring layers: an add and clipping go into the convolution before them, and the like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import layers as L
from .fuse_binary import with_affine, with_bits, with_shortcut
from .fuse_sequence import SEQUENCE_MERGES
from .quantized import limits


def fuse(layers: Sequence[L.Layer], kept: Sequence[L.Tensor]) -> tuple[L.Layer, ...]:
    """Return layers that compute the same tensors; those in `kept` (model outputs) survive.

    The merged layer stands where the add stood, so its second operand is ready.
    """
    uses = Counter(x.name for layer in layers for x in layer.inputs)
    uses.update(x.name for x in kept)
    done: list[L.Layer] = []
    where: dict[str, int] = {}
    for layer in layers:
        merged, gone = _merge(layer, done, where, uses)
        while gone is not None:
            uses.subtract(_reads_saved(done[gone], layer, merged))
            layer, done[gone] = merged, _GONE
            merged, gone = _merge(layer, done, where, uses)
        where[merged.output.name] = len(done)
        done.append(merged)
    return with_bits([layer for layer in done if layer is not _GONE], kept)


def _reads_saved(before: L.Layer, after: L.Layer, merged: L.Layer) -> Counter[str]:
    """Return how many reads of each tensor fewer there are, since two layers read it and one does now."""
    names = [x.name for x in (*before.inputs, *after.inputs) if x.name != before.output.name]
    return Counter(names) - Counter(x.name for x in merged.inputs)


_GONE = L.Layer((), L.Tensor("", ()), ())


def _merge(
    layer: L.Layer, done: Sequence[L.Layer], where: dict[str, int], uses: Counter[str]
) -> tuple[L.Layer, int | None]:
    """Return the layer, merged with one of `done` where possible, and which one."""
    makers = sorted(
        (where[x.name] for x in layer.inputs if uses[x.name] == 1 and x.name in where), reverse=True
    )
    for index in makers:
        before = done[index]
        merged = next(filter(None, (rule(before, layer) for rule in _RULES)), None)
        if merged is not None:
            return merged, index
    return layer, None


def _with_add(before: L.Layer, add: L.Layer) -> L.Layer | None:
    """Return the convolution `before` with the add as its epilogue."""
    if not isinstance(add, L.Add):
        return None
    others = [x for x in add.inputs if x.name != before.output.name]
    if len(before.inputs) != 1 or len(others) != 1:
        return None
    inputs, covers = (*before.inputs, others[0]), before.covers + add.covers
    quant = add.output.quant
    if isinstance(before, L.IntLayer) and quant is not None and before.output.quant is not None:
        inner = L.Residual(before.output.quant, before.low, before.high)
        low, high = limits(add.low, add.high, quant)
        return replace(
            before, inputs=inputs, output=add.output, covers=covers, low=low, high=high, residual=inner
        )
    if isinstance(before, L.FloatLayer) and quant is None and not before.clips:
        return replace(before, inputs=inputs, output=add.output, covers=covers, low=add.low, high=add.high)
    return None


def _with_clip(before: L.Layer, clip: L.Layer) -> L.Layer | None:
    """Return a float layer with clipping as its epilogue."""
    if not isinstance(clip, L.Clip) or not isinstance(before, L.FloatLayer | L.Add | L.Affine):
        return None
    if before.output.quant is not None:
        return None
    low, high = max(before.low, clip.low), min(before.high, clip.high)
    if low > high:
        return None
    return replace(before, output=clip.output, covers=before.covers + clip.covers, low=low, high=high)


def _with_affine(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return two scales and shifts as one; products in float64, rounded once."""
    if not isinstance(before, L.Affine) or not isinstance(after, L.Affine) or before.clips:
        return None
    scale = before.scale.astype(np.float64) * after.scale
    shift = before.shift.astype(np.float64) * after.scale + after.shift
    covers = before.covers + after.covers
    return replace(
        after,
        inputs=before.inputs,
        covers=covers,
        scale=scale.astype(np.float32),
        shift=shift.astype(np.float32),
    )


def _folded(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a convolution with the scale and shift behind it in its weights."""
    if not isinstance(before, L.FloatLayer) or not isinstance(after, L.Affine):
        return None
    if before.clips or len(before.inputs) > 1:
        return None
    scale = after.scale.astype(np.float64)
    weight = (before.weight * scale[:, None, None, None]).astype(np.float32)
    bias = (before.bias * scale + after.shift).astype(np.float32)
    covers = before.covers + after.covers
    return replace(
        before, output=after.output, covers=covers, weight=weight, bias=bias, low=after.low, high=after.high
    )


def _shuffle(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return Reshape, Transpose, Reshape that interleave groups of channels as one layer.

    The first two become a Shuffle whose output still has the transposed shape; the last Reshape, being
    trivial then, gives it its own.
    """
    if isinstance(before, L.Reshape) and isinstance(after, L.Transpose):
        x, groups = before.inputs[0], before.output.shape
        if len(x.shape) != 4 or len(groups) != 5 or after.perm != (0, 2, 1, 3, 4):
            return None
        if (groups[0], groups[1] * groups[2], *groups[3:]) != x.shape:
            return None
        order = np.arange(x.channels).reshape(groups[1:3]).T.reshape(-1)
        source = tuple(int(c) for c in order)
        return L.Shuffle(before.inputs, after.output, before.covers + after.covers, source, groups[1])
    if (
        isinstance(before, L.Shuffle)
        and isinstance(after, L.Reshape)
        and after.output.shape == before.inputs[0].shape
    ):
        return replace(before, output=after.output, covers=before.covers + after.covers)
    return None


_RULES = (
    _with_add, _with_clip, _with_affine, _folded, _shuffle, with_shortcut, with_affine, *SEQUENCE_MERGES
)  # fmt: skip
