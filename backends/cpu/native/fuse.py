"""Merges neighbouring layers: an add and clipping go into the convolution before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from . import layers as L
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
        if gone is not None:
            done[gone] = _GONE
        where[merged.output.name] = len(done)
        done.append(merged)
    return tuple(layer for layer in done if layer is not _GONE)


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
        merged = _with_add(before, layer) if isinstance(layer, L.Add) else _with_clip(before, layer)
        if merged is not None:
            return merged, index
    return layer, None


def _with_add(before: L.Layer, add: L.Add) -> L.Layer | None:
    """Return the convolution `before` with the add as its epilogue."""
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
