"""Data-aware truncation: the singular values of what a layer gives on real inputs, not of its weights.

With `G = E[x x']` the mean squared output error of a replaced weight `W'` is `tr((W - W') G (W - W')')`, so
the best product of rank r is the truncated SVD of `W G^(1/2)`, with `G^(-1/2)` put back behind it (as in
DRONE, Chen et al. 2021, and ASVD, arXiv 2312.05821). Directions that the data never takes get a small share
of the mean variance, so that `G` may be singular.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Of the mean variance: what unseen directions count for.
_DAMPING = 1e-6


@dataclass(frozen=True)
class Root:
    """A square root of a second moment and its inverse, both [k, k]; None stands for the identity."""

    root: Floats | None
    inverse: Floats | None


PLAIN = Root(None, None)


def root_of(gram: Floats | None) -> Root:
    """Return the symmetric root of a second moment [k, k], damped; `PLAIN` for None or no variance at all."""
    if gram is None:
        return PLAIN
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    mean = float(np.trace(gram)) / len(gram)
    if not mean > 0:
        return PLAIN
    roots = np.sqrt(np.maximum(values, 0) + _DAMPING * mean)
    return Root((vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T)


@dataclass(frozen=True)
class Svd:
    """`W R = U diag(s) V`, and how to get W back: `W ~ left(r) @ right(r)`.

    Attributes:
        u: [m, n].
        s: [n], falling.
        v: [n, k], in the whitened space.
        inverse: of the root, [k, k], or None.
    """

    u: Floats
    s: Floats
    v: Floats
    inverse: Floats | None

    def factors(self, rank: int) -> tuple[Floats, Floats]:
        """Return [m, rank] and [rank, k], singular values shared evenly so that both quantize well."""
        share = np.sqrt(self.s[:rank])
        right = share[:, None] * self.v[:rank]
        return self.u[:, :rank] * share, right if self.inverse is None else right @ self.inverse

    @property
    def tail(self) -> Floats:
        """Share of the squared output that is lost at ranks 0 to n, [n + 1]; 1 first, 0 last."""
        energy = np.square(self.s)
        total = energy.sum()
        if not total > 0:
            return np.zeros(len(energy) + 1)
        kept = np.concatenate([[0.0], np.cumsum(energy)])
        return np.asarray(np.maximum(1 - kept / total, 0))


def svd(matrix: Floats, root: Root = PLAIN) -> Svd:
    """Decompose a weight matrix [m, k] that reads inputs with the given root [k, k]."""
    seen = matrix if root.root is None else matrix @ root.root
    u, s, v = np.linalg.svd(seen, full_matrices=False)
    return Svd(u, s, v, root.inverse)
