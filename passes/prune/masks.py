"""From scores to masks: the lowest go, exactly as many as asked for.

Scores are squared, so that those of a block add up: a block goes by the mean of its weights. Weights that
are zero already have the score `ZERO`, below every other: they count and go first, so pruning twice to
the same level changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .pattern import Pattern

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Scope = Literal["global", "layer", "row"]

ZERO = -1.0
_ABSENT = -2.0  # padding of the last N:M group, never among the kept


def mark_zeros(scores: Floats, weight: Floats) -> Floats:
    """Return scores with `ZERO` where the weight is zero."""
    return np.where(weight == 0, ZERO, scores)


def select(scores: Sequence[Floats], pattern: Pattern, sparsity: float, scope: Scope) -> list[Mask]:
    """Return for each weight which entries go.

    Args:
        scores: `[groups, rows, k]` each.
        pattern: what goes together; an N:M pattern fixes level and scope by itself.
        sparsity: share of the blocks in each pool, 0..1.
        scope: a pool is everything, one weight, or one row (of blocks).
    """
    blocks = [block_scores(s, pattern) for s in scores]
    if pattern.of is not None:
        gone = [_lowest_of_groups(b, pattern) for b in blocks]
    elif scope == "global":
        flat = np.concatenate([b.reshape(-1) for b in blocks]) if blocks else np.zeros(0)
        mask = lowest(flat, quota(sparsity, flat.size))
        ends = np.cumsum([b.size for b in blocks])[:-1]
        gone = [m.reshape(b.shape) for m, b in zip(np.split(mask, ends), blocks, strict=True)]
    else:
        gone = [choose(b, quota(sparsity, pool_size(b, scope)), scope) for b in blocks]
    return [spread(m, s.shape, pattern) for m, s in zip(gone, scores, strict=True)]


def quota(sparsity: float, size: int) -> int:
    """Return how many of `size` go."""
    return int(np.floor(sparsity * size + 0.5))


def pool_size(blocks: Floats, scope: Scope) -> int:
    """Return the blocks that compete with each other."""
    return int(blocks.shape[-1]) if scope == "row" else int(blocks.size)


def choose(blocks: Floats, count: int, scope: Scope) -> Mask:
    """Return the `count` lowest of the whole array, or of each row of it."""
    if scope != "row":
        return lowest(blocks.reshape(-1), count).reshape(blocks.shape)
    order = np.argsort(blocks, axis=-1, kind="stable")
    gone = np.zeros(blocks.shape, np.bool_)
    np.put_along_axis(gone, order[..., :count], True, axis=-1)
    return gone


def lowest(flat: Floats, count: int) -> Mask:
    """Return the mask of the `count` lowest, the first ones among equals; linear in the size."""
    if count <= 0:
        return np.zeros(flat.shape, np.bool_)
    edge = np.partition(flat, count - 1)[count - 1]
    gone: Mask = flat < edge
    equal = np.flatnonzero(flat == edge)
    gone[equal[: count - int(gone.sum())]] = True
    return gone


def block_scores(scores: Floats, pattern: Pattern) -> Floats:
    """Return the mean score of each block, `[groups, tiles, blocks]`; the last ones may be smaller."""
    r, c = pattern.rows, pattern.columns
    if pattern.single:
        return scores
    g, rows, k = scores.shape
    tiles, steps = -(-rows // r), -(-k // c)
    padded = np.zeros((g, tiles * r, steps * c))
    padded[:, :rows, :k] = scores
    sums = padded.reshape(g, tiles, r, steps, c).sum(axis=(2, 4))
    heights = np.minimum(r, rows - r * np.arange(tiles))
    widths = np.minimum(c, k - c * np.arange(steps))
    means: Floats = sums / (heights[:, None] * widths)
    return means


def spread(gone: Mask, shape: tuple[int, ...], pattern: Pattern) -> Mask:
    """Undo the shape of `block_scores`."""
    full = gone.repeat(pattern.rows, axis=1).repeat(pattern.columns, axis=2)
    return full[:, : shape[1], : shape[2]]


def _lowest_of_groups(blocks: Floats, pattern: Pattern) -> Mask:
    """All but the N best of every M."""
    assert pattern.of is not None, pattern
    assert pattern.keep is not None, pattern
    g, tiles, k = blocks.shape
    groups = -(-k // pattern.of)
    padded = np.full((g, tiles, groups * pattern.of), _ABSENT)
    padded[:, :, :k] = blocks
    gone = choose(padded.reshape(g, tiles, groups, pattern.of), pattern.of - pattern.keep, "row")
    return gone.reshape(padded.shape)[:, :, :k]
