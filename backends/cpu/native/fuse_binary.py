"""Merges what follows a product of bits into it: shortcuts, operators per channel, and the next quantizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import layers as L
from . import layers_binary as B
from .kernels.conv_binary import has_whole_blocks
from .kernels.real_end import RealOp


def _clip(low: float, high: float) -> list[B.Step]:
    return [] if low == -np.inf and high == np.inf else [B.Step(RealOp("clip", low, high))]


def with_shortcut(before: L.Layer, add: L.Layer) -> L.Layer | None:
    """Return a product of bits with an add behind it: a real-valued stream around the layer."""
    if not isinstance(before, B.BitReals) or not isinstance(add, L.Add) or before.bits is not None:
        return None
    others = [x for x in add.inputs if x.name != before.output.name]
    plain = all(x.quant is None for x in (*others, add.output))
    if len(others) != 1 or not plain or others[0].shape != add.output.shape:
        return None
    steps = (*before.steps, B.Step(RealOp("residual")), *_clip(add.low, add.high))
    inputs, covers = (*before.inputs, *others), before.covers + add.covers
    return replace(before, inputs=inputs, output=add.output, covers=covers, steps=steps)


def with_affine(before: L.Layer, after: L.Layer) -> L.Layer | None:
    """Return a product of bits with a scale and shift, or clipping, behind it."""
    if not isinstance(before, B.BitReals) or before.bits is not None or after.output.quant is not None:
        return None
    if isinstance(after, L.Clip):
        steps = _clip(after.low, after.high)
    elif isinstance(after, L.Affine):
        pairs = (("mul", after.scale, 1), ("add", after.shift, 0))
        steps = [B.Step(RealOp(name), (a,)) for name, a, none in pairs if (a != none).any()]  # type: ignore[arg-type]
        steps += _clip(after.low, after.high)
    else:
        return None
    covers = before.covers + after.covers
    return replace(before, output=after.output, covers=covers, steps=(*before.steps, *steps))


def with_bits(layers: Sequence[L.Layer], kept: Sequence[L.Tensor]) -> tuple[L.Layer, ...]:
    """Return layers in which a quantizer of a product's real result is part of the product.

    The result itself is stored only where somebody else reads it.
    """
    uses = Counter(x.name for layer in layers for x in layer.inputs)
    uses.update(x.name for x in kept)
    done: list[L.Layer] = []
    where: dict[str, int] = {}
    for layer in layers:
        index = where.get(layer.inputs[0].name) if isinstance(layer, B.Binarize) else None
        maker = done[index] if index is not None else None
        if isinstance(layer, B.Binarize) and index is not None and _takes(maker):
            assert isinstance(maker, B.BitReals), "it takes bits"
            alone = uses[maker.output.name] == 1
            done[index] = replace(
                maker, bits=layer.output, limits=layer.limits, kept=not alone,
                covers=maker.covers + layer.covers,
            )  # fmt: skip
            continue
        where[layer.output.name] = len(done)
        done.append(layer)
    return tuple(done)


def _takes(maker: L.Layer | None) -> bool:
    """Say whether a layer can end in bits: it has none yet, and whole words."""
    return isinstance(maker, B.BitReals) and maker.bits is None and has_whole_blocks(maker.output.channels)
