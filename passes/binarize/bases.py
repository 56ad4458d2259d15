"""Rows of weights as sums of bases: `w ~ sum_k alpha_k s_k` with `s_k` in {-1, 1} or {-1, 0, 1}.

One basis with the squared error of the weights has a closed form: `alpha = mean |w|`, `s = sign w` (BWN,
Rastegari et al. 2016, arXiv 1603.05279, eq. 6), and for three values the m largest magnitudes, with the m
that makes `(sum |w|)^2 / m` largest (TWN, Li et al. 2016, arXiv 1605.04711, eq. 5, solved exactly by sorting
instead of by the threshold 0.7 E|w|). Several bases: each on the residual of those before, or alternating
least squares: given signs, scales by least squares; given scales, the nearest of the 2^K (3^K) sums.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int8]

_ROUNDS = 30
_LEAST = 1e-12
"""Scales are positive: that of a row of zeros is this share of the largest."""


@dataclass(frozen=True, eq=False)
class Bases:
    """A matrix `[rows, k]` as a sum.

    Attributes:
        codes: `[K, rows, k]`, each -1, 0 or 1.
        scales: `[K, rows]`, positive.
    """

    codes: Ints
    scales: Floats

    def matrix(self) -> Floats:
        """The sum, float64."""
        total: Floats = np.einsum("krc,kr->rc", self.codes, self.scales)
        return total

    def positive(self) -> Bases:
        """The same sum with positive scales; those of unused bases become tiny."""
        flipped = np.where(self.scales < 0, -1, 1).astype(np.int8)
        sizes = np.abs(self.scales)
        least = max(float(sizes.max(initial=0.0)), 1e-6) * _LEAST
        return Bases(self.codes * flipped[:, :, None], np.maximum(sizes, least))

    def rows(self, better: npt.NDArray[np.bool_], other: Bases) -> Bases:
        """Rows of `other` where `better` `[rows]` says so."""
        return Bases(
            np.where(better[None, :, None], other.codes, self.codes),
            np.where(better[None], other.scales, self.scales),
        )


def alphabet(count: int, ternary: bool) -> Floats:
    """Return all combinations of codes, `[V, K]`."""
    return np.array(list(itertools.product((-1, 0, 1) if ternary else (-1, 1), repeat=count)), np.float64)


def one_basis(w: Floats, ternary: bool) -> Bases:
    """Return the closest single basis; exact."""
    sizes = np.abs(w)
    signs = np.where(w >= 0, 1, -1).astype(np.int8)
    if not ternary:
        return Bases(signs[None], sizes.mean(axis=1)[None])
    falling = -np.sort(-sizes, axis=1)
    sums, counts = np.cumsum(falling, axis=1), np.arange(1, w.shape[1] + 1)
    best = np.argmax(sums**2 / counts, axis=1)
    rows = np.arange(len(w))
    least = falling[rows, best]
    kept = (sizes >= least[:, None]) & (sizes > 0)
    scale = (sizes * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return Bases(np.where(kept, signs, 0).astype(np.int8)[None], scale[None])


def residual(w: Floats, count: int, ternary: bool = False) -> Bases:
    """Return bases one after the other, each the closest to what is left."""
    left, found = w.astype(np.float64), list[Bases]()
    for _ in range(count):
        found.append(one_basis(left, ternary))
        left = left - found[-1].matrix()
    return _joined(found)


def _joined(parts: list[Bases]) -> Bases:
    return Bases(np.concatenate([p.codes for p in parts]), np.concatenate([p.scales for p in parts]))


def even(w: Floats, count: int, ternary: bool = False) -> Bases:
    """Return bases whose sums are evenly spaced from -max |w| to max |w|, as a uniform quantizer's."""
    base = 3.0 if ternary else 2.0
    steps = base ** np.arange(count)[::-1]
    scales = np.abs(w).max(axis=1, initial=0.0)[None] * (steps / steps.sum())[:, None]
    return nearest(w, scales, alphabet(count, ternary))


def nearest(w: Floats, scales: Floats, words: Floats) -> Bases:
    """Return the bases of given scales `[K, rows]` whose sum is closest, weight by weight."""
    best = np.full(w.shape, np.inf)
    index = np.zeros(w.shape, np.int64)
    for number, level in enumerate((words @ scales)[:, :, None]):
        distance = np.abs(w - level)
        closer = distance < best
        best[closer] = distance[closer]
        index[closer] = number
    return Bases(np.moveaxis(words[index], -1, 0).astype(np.int8), scales)


def refit(w: Floats, codes: Ints) -> Bases:
    """Return the scales that are best for given codes, by least squares; equal bases share theirs."""
    s = codes.astype(np.float64)
    normal = np.einsum("irc,jrc->rij", s, s)
    right = np.einsum("irc,rc->ri", s, w)
    return Bases(codes, solve(normal, right))


def solve(normal: Floats, right: Floats) -> Floats:
    """Return `[K, rows]` from normal equations `[rows, K, K]`, `[rows, K]`; singular ones too."""
    solution: Floats = np.einsum("rij,rj->ir", np.linalg.pinv(normal, rcond=1e-10, hermitian=True), right)
    return solution


def square_error(w: Floats, bases: Bases) -> Floats:
    """Sum of squared errors of each row."""
    error: Floats = np.square(w - bases.matrix()).sum(axis=1)
    return error


def alternating(w: Floats, count: int, ternary: bool = False) -> Bases:
    """Alternate between scales and codes until nothing gets better; never worse than `residual`.

    Starts from the residual's bases and from evenly spaced sums, and keeps the better for each row.
    """
    best = residual(w, count, ternary)
    if count == 1:
        return best
    error = square_error(w, best)
    for start in (best, even(w, count, ternary)):
        found = _alternate(w, start, alphabet(count, ternary))
        new = square_error(w, found)
        best, error = best.rows(new < error, found), np.minimum(new, error)
    return best


def _alternate(w: Floats, bases: Bases, words: Floats) -> Bases:
    error = square_error(w, bases)
    for _ in range(_ROUNDS):
        found = nearest(w, refit(w, bases.codes).scales, words)
        new = square_error(w, found)
        if not (new < error * (1 - 1e-6)).any():
            break
        bases, error = bases.rows(new < error, found), np.minimum(new, error)
    return bases


def in_bytes(bases: Bases) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return integers `[rows, k]` and scales `[rows]` whose product is the sum, scales rounded to fit.

    Every scale becomes a whole number of steps; they add up to 127 at most, so no step is off by more than
    half of the scales' sum over 127.
    """
    total = bases.scales.sum(axis=0)
    steps = np.maximum(np.floor(bases.scales / total * 127), 1)
    spare = 127 - steps.sum(axis=0)
    # What rounding down left over goes to those that lost most of a step.
    lost = bases.scales / total * 127 - steps
    order = np.argsort(np.argsort(-lost, axis=0, kind="stable"), axis=0, kind="stable")
    steps += order < spare
    integers = np.einsum("krc,kr->rc", bases.codes.astype(np.float64), steps)
    fitted = (bases.scales * steps).sum(axis=0) / np.square(steps).sum(axis=0)
    return integers.astype(np.int8), fitted
