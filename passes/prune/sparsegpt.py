"""Second-order pruning with compensation: SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774).

For the squared output error `e G e'` of a row, removing weight j costs `w_j^2 / (2 [G^-1]_jj)`, and the
best change of the others is `-w_j / [G^-1]_jj * [G^-1]_j,:` (optimal brain surgeon). All rows share the
inverses when columns are frozen from left to right; they are then the rows of one Cholesky factor `U` of
`G^-1 = U'U`, and a removed weight changes those to its right by `-w_j / U_jj * U_j,:`. Masks are chosen for a
block of columns at a time (one group for N:M), from the weights as they are by then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .masks import Scope, block_scores, choose, mark_zeros, quota, select, spread
from .pattern import Pattern

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

BLOCK = 128
"""Columns whose mask is chosen at once, as in the paper."""


@dataclass(frozen=True)
class Factor:
    """`upper` `[k, k]` with `inv(G + damping I) = upper' upper`, and what it took to exist.

    Attributes:
        damping: what was added to the diagonal, in units of its mean.
        asked: what should have been enough.
    """

    upper: Floats
    damping: float
    asked: float


def factor(gram: Floats, damping: float) -> Factor:
    """Factorise the inverse of one group's second moments `[k, k]`.

    Inputs that are always zero get a one on the diagonal. A matrix that is singular all the same gets ten
    times the damping, again and again; `Factor.damping` says so.
    """
    dead = np.diag(gram) <= 0
    h = gram.copy()
    h[dead, dead] = 1.0
    mean = float(np.diag(h)[~dead].mean()) if not dead.all() else 1.0
    used = damping
    while True:
        try:
            return Factor(_inverse_factor(h + used * mean * np.eye(len(h))), used, damping)
        except np.linalg.LinAlgError:
            used = max(10.0 * used, 1e-6)


def _inverse_factor(h: Floats) -> Floats:
    """`U` with `inv(h) = U'U`, upper triangular; raises LinAlgError when h is (nearly) singular."""
    if np.array_equal(h, np.diag(np.diag(h))):
        return np.diag(1.0 / np.sqrt(np.diag(h)))  # also exact: nothing is compensated
    lower = np.linalg.cholesky(h)
    diagonal = np.diag(lower)
    if diagonal.min() <= 1e-7 * diagonal.max():
        raise np.linalg.LinAlgError("singular to working precision")
    inverse_lower = np.linalg.solve(lower, np.eye(len(h)))
    upper: Floats = np.linalg.cholesky(inverse_lower.T @ inverse_lower).T
    return upper


@dataclass(frozen=True)
class Pruned:
    """A matrix `[groups, rows, k]` with its zeros, and the largest damping that was needed."""

    matrix: Floats
    damping: float
    raised: bool


def prune(
    matrix: Floats, gram: Floats, pattern: Pattern, sparsity: float, scope: Scope, damping: float
) -> Pruned:
    """Prune one weight.

    Args:
        matrix: `[groups, rows, k]`.
        gram: `[groups, k, k]`.
        pattern: what goes together.
        sparsity: share of the blocks that go; N:M patterns have their own.
        scope: `layer`: per group of a convolution and block of columns; `row`: per row too.
        damping: of the diagonal, relative to its mean.
    """
    out = np.empty_like(matrix)
    worst, raised = damping, False
    for g in range(len(matrix)):
        found = factor(gram[g], damping)
        worst, raised = max(worst, found.damping), raised or found.damping > damping
        out[g] = _prune_group(matrix[g], found.upper, pattern, sparsity, scope)
    return Pruned(out, worst, raised)


def _prune_group(weight: Floats, upper: Floats, pattern: Pattern, sparsity: float, scope: Scope) -> Floats:
    w = weight.copy()
    k = w.shape[1]
    # An N:M group is chosen when its turn comes; what goes elsewhere competes with a block's columns.
    width = pattern.of or max(BLOCK // pattern.step, 1) * pattern.step
    done = decided = 0
    for start in range(0, k, width):
        end = min(start + width, k)
        scores = mark_zeros((w[:, start:end] / np.diag(upper)[start:end]) ** 2, w[:, start:end])[None]
        if pattern.of is not None:
            gone = select([scores], pattern, sparsity, scope)[0][0]
        else:
            blocks = block_scores(scores, pattern)
            # Quotas add up, so that the whole has exactly as many zeros as asked for.
            decided += blocks.shape[-1] if scope == "row" else blocks.size
            count = quota(sparsity, decided) - done
            done += count
            gone = spread(choose(blocks, count, scope), scores.shape, pattern)[0]
        remove(w, upper, start, end, gone)
    return w


def remove(w: Floats, upper: Floats, start: int, end: int, gone: Mask) -> None:
    """Zero what goes in columns start..end of `w`, in place, and let what is to the right make up for it."""
    errors = np.zeros((len(w), end - start))
    for j in range(start, end):
        errors[:, j - start] = np.where(gone[:, j - start], w[:, j] / upper[j, j], 0.0)
        w[gone[:, j - start], j] = 0.0
        w[:, j + 1 : end] -= np.outer(errors[:, j - start], upper[j, j + 1 : end])
    w[:, end:] -= errors @ upper[start:end, end:]
