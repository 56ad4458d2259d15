"""Bases that make a layer's outputs, not its weights, come out right.

A row `w` costs `(w - v) G (w - v)'` for the second moment `G` of the layer's inputs and its target `v`.
Three steps, each kept only where a row got better: columns are rounded to the codebook one by one and the
open ones make up for the error (as GPTQ does on a grid, arXiv 2210.17323); codes are changed one weight at a
time, to the best of all sums given the rest (coordinate descent); scales are fitted by least squares in the
metric of `G`. None of them can make a row worse than alternating least squares on the weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .bases import Bases, alphabet, alternating, solve

Floats = npt.NDArray[np.floating]

_COMPENSATED = 3
"""Rounds of column by column rounding: scales, then codes, then scales."""
_DESCENTS = 8
_ENOUGH = 1e-3
"""Descent ends when a sweep saves less than this share of the error."""


def output_error(target: Floats, gram: Floats, bases: Bases) -> Floats:
    """`(w - v) G (w - v)'` of each row."""
    e = bases.matrix() - target
    error: Floats = np.einsum("rk,rk->r", e @ gram, e)
    return error


def fit(target: Floats, gram: Floats, count: int, ternary: bool = False) -> Bases:
    """Fit one group of a layer.

    Args:
        target: `[rows, k]`, the weights that would be best if all were allowed.
        gram: `[k, k]`, positive definite.
        count: bases.
        ternary: codes -1, 0, 1 instead of -1, 1.
    """
    words = alphabet(count, ternary)
    best = alternating(target, count, ternary)
    error = output_error(target, gram, best)
    found = best
    upper = _inverse_factor(gram)
    for _ in range(_COMPENSATED):
        found = _rescaled(target, gram, _compensated(target, upper, found.scales, words))
        best, error = _better(target, gram, best, error, found)
    for _ in range(_DESCENTS):
        before = error.sum()
        found = _rescaled(target, gram, _descended(target, gram, best, words))
        best, error = _better(target, gram, best, error, found)
        if before - error.sum() <= _ENOUGH * before:
            break
    return best


def _better(target: Floats, gram: Floats, best: Bases, error: Floats, found: Bases) -> tuple[Bases, Floats]:
    new = output_error(target, gram, found)
    return best.rows(new < error, found), np.minimum(new, error)


def _inverse_factor(gram: Floats) -> Floats:
    """`U` with `inv(G) = U'U`, upper triangular."""
    upper: Floats = np.linalg.cholesky(np.linalg.inv(gram)).T
    return upper


def _compensated(target: Floats, upper: Floats, scales: Floats, words: Floats) -> Bases:
    """Round column by column; what is still open makes up for it."""
    levels = (words @ scales).T
    open_, index = target.astype(np.float64), np.zeros(target.shape, np.int64)
    for j in range(target.shape[1]):
        index[:, j], chosen = _closest(open_[:, j], levels)
        error = (open_[:, j] - chosen) / upper[j, j]
        open_[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])
    return Bases(np.moveaxis(words[index], -1, 0).astype(np.int8), scales)


def _descended(target: Floats, gram: Floats, bases: Bases, words: Floats) -> Bases:
    """Give every weight in turn the best of the sums, all others being fixed; the error cannot grow."""
    levels = (words @ bases.scales).T
    now = bases.matrix()
    codes = bases.codes.copy()
    slope = (now - target) @ gram
    for j in range(target.shape[1]):
        index, chosen = _closest(now[:, j] - slope[:, j] / gram[j, j], levels)
        step = chosen - now[:, j]
        moved = np.flatnonzero(np.abs(step) > 0)
        if len(moved):
            slope[moved] += np.outer(step[moved], gram[j])
            codes[:, moved, j] = words[index[moved]].T
    return Bases(codes, bases.scales)


def _closest(values: Floats, levels: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the index and value of the level `[rows, V]` that is closest to each value `[rows]`."""
    index = np.abs(levels - values[:, None]).argmin(axis=1)
    return index, levels[np.arange(len(levels)), index]


def _rescaled(target: Floats, gram: Floats, bases: Bases) -> Bases:
    """Fit the scales in the metric of `gram`."""
    s = bases.codes.astype(np.float64)
    weighted = s @ gram
    normal = np.einsum("irc,jrc->rij", weighted, s)
    right = np.einsum("irc,rc->ri", weighted, target)
    return Bases(bases.codes, solve(normal, right))
