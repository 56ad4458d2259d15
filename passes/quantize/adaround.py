"""Rounding of weights by layer reconstruction: AdaRound and GPTQ from a layer's second moments.

Nearest rounding minimises the error of each weight; what matters is the error of the layer's output,
`e G e'` with `e` the weight error of one output channel and `G` the second moment of the layer's input
patches (`moments.Moments.gram`). Both methods here minimise that form, each output channel on its own:

* `adaround` (Nagel et al. 2020, arXiv 2004.10568): learns for each weight whether to round down or up;
  rectified sigmoid, annealed regulariser, Adam.
* `gptq` (Frantar et al. 2022, arXiv 2210.17323): rounds column by column and lets the columns that are
  still open make up for the error; one Cholesky factorisation, no iterations.

A channel keeps its nearest rounding unless its error got strictly smaller, so the result is never worse than
nearest on the moments given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .moments import Layer

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Method = Literal["nearest", "adaround", "gptq"]

MAX_COLUMNS = 4608
"""Longest patch (3 x 3 x 512): its second moments take 162 MiB, and time grows with the cube of it."""

_DAMPING = 0.01  # of the mean diagonal, as in GPTQ: keeps weights near their values where data says nothing
_BLOCK = 128  # columns per lazy batch of GPTQ updates
_ZETA, _GAMMA = 1.1, -0.1  # stretch of the rectified sigmoid, arXiv 2004.10568 eq. 23
_LEARNING_RATE = 0.05
_REGULARISER = 0.3
_WARM_UP = 0.2  # part of the iterations without regulariser
_BETA_START, _BETA_END = 20.0, 2.0


@dataclass(frozen=True)
class Grid:
    """Integer grid of a weight matrix `[out, k]`: `w ~ (q - zero_point) * scale`, `qmin <= q <= qmax`.

    Attributes:
        scale: broadcastable to `[out, k]`; `[out, 1]` per channel, `[1, 1]` per tensor, `[out, k]` in blocks.
        zero_point: broadcastable likewise.
    """

    scale: Floats
    qmin: int
    qmax: int
    zero_point: Floats | float = 0.0

    def steps(self, weight: Floats) -> Floats:
        """Weights in units of integer steps, zero point included, not rounded."""
        return weight.astype(np.float64) / self.scale + self.zero_point

    def clip(self, q: Floats) -> Floats:
        """Saturate to the grid."""
        return np.clip(q, self.qmin, self.qmax)


@dataclass(frozen=True)
class Rounded:
    """Integer weights and their expected squared output error per channel.

    Attributes:
        q: `[out, k]` int64.
        error: `[out]`, of `q`.
        nearest_error: `[out]`, of nearest rounding; `error <= nearest_error` holds for every channel.
    """

    q: Ints
    error: Floats
    nearest_error: Floats


def round_weights(
    weight: Floats, grid: Grid, gram: Floats, method: Method, *, seed: int = 0, iterations: int = 800
) -> Rounded:
    """Round one layer's weights.

    Args:
        weight: `[out, k]`; rows are divided evenly among the groups of `gram`.
        grid: the integer grid.
        gram: `[groups, k, k]`, see `Moments`.
        method: how.
        seed: for the tiny noise that breaks ties of AdaRound's start.
        iterations: of AdaRound's optimiser.
    """
    groups, columns = gram.shape[0], gram.shape[1]
    steps = grid.steps(weight).reshape(groups, -1, columns)
    scale = np.broadcast_to(grid.scale, weight.shape).astype(np.float64).reshape(steps.shape)
    nearest = grid.clip(np.rint(steps))
    before = _error((nearest - steps) * scale, gram)
    if method == "nearest":
        return Rounded(_flat(nearest), before.ravel(), before.ravel())
    damped = _damp(gram)
    problem = _Problem(steps, scale, damped, grid)
    better = _adaround(problem, iterations, seed) if method == "adaround" else _gptq(problem)
    after = _error((better - steps) * scale, gram)
    keep = (after < before)[..., None]
    return Rounded(_flat(np.where(keep, better, nearest)), np.minimum(after, before).ravel(), before.ravel())


def round_layer(
    layer: Layer, weight: Floats, grid: Grid, gram: Floats, method: Method, *, seed: int = 0
) -> tuple[Ints, Rounded]:
    """Round a weight in its stored layout; `grid` arrays must broadcast to that layout.

    Returns:
        Integers of the weight's shape, and the account in matrix form.
    """
    matrix = layer.to_matrix(weight)
    scale = layer.to_matrix(np.broadcast_to(grid.scale, weight.shape))
    zero = layer.to_matrix(np.broadcast_to(np.asarray(grid.zero_point, np.float64), weight.shape))
    done = round_weights(matrix, Grid(scale, grid.qmin, grid.qmax, zero), gram, method, seed=seed)
    return layer.from_matrix(done.q), done


def refuse_reconstruction(layer: Layer) -> str | None:
    """Say why a layer cannot be reconstructed, or None."""
    if layer.columns > MAX_COLUMNS:
        return f"patch length {layer.columns} is above {MAX_COLUMNS}"
    return None


@dataclass(frozen=True)
class _Problem:
    """Minimise `e damped e'` with `e = (q - steps) * scale` over integers; arrays `[groups, rows, k]`."""

    steps: Floats
    scale: Floats
    damped: Floats
    grid: Grid


def _flat(q: Floats) -> Ints:
    return q.reshape(-1, q.shape[-1]).astype(np.int64)


def _error(e: Floats, gram: Floats) -> Floats:
    """`e G e'` for each row of `e` `[groups, rows, k]`."""
    forms: Floats = np.einsum("grk,grk->gr", np.matmul(e, gram), e)
    return forms


def _damp(gram: Floats) -> Floats:
    """Add to the diagonal; a group without any input becomes the identity (nearest rounding)."""
    mean = np.einsum("gkk->gk", gram).mean(axis=1)
    extra = np.where(mean > 0, _DAMPING * mean, 1.0)
    damped: Floats = gram + extra[:, None, None] * np.eye(gram.shape[1])
    return damped


def _gptq(p: _Problem) -> Floats:
    return np.stack([_gptq_group(p, g) for g in range(len(p.steps))])


def _gptq_group(p: _Problem, g: int) -> Floats:
    """Round the columns in order of falling diagonal, in lazy blocks (arXiv 2210.17323, algorithm 1)."""
    order = np.argsort(-np.diag(p.damped[g]), kind="stable")
    hessian = p.damped[g][np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    scale, open_steps = p.scale[g][:, order], p.steps[g][:, order].copy()
    q: Floats = np.empty_like(open_steps)
    for start in range(0, q.shape[1], _BLOCK):
        end = min(start + _BLOCK, q.shape[1])
        errors = np.empty((len(q), end - start))
        for j in range(start, end):
            q[:, j] = p.grid.clip(np.rint(open_steps[:, j]))
            errors[:, j - start] = (open_steps[:, j] - q[:, j]) * scale[:, j] / upper[j, j]
            update = np.outer(errors[:, j - start], upper[j, j + 1 : end])
            open_steps[:, j + 1 : end] -= update / scale[:, j + 1 : end]
        open_steps[:, end:] -= errors @ upper[start:end, end:] / scale[:, end:]
    back: Floats = np.empty_like(q)
    back[:, order] = q
    return back


def _adaround(p: _Problem, iterations: int, seed: int) -> Floats:
    """Learn up or down for each weight; everything is in units of steps, with the moments normalised.

    With `G' = G / mean(diag G)` and `r` the scale relative to its channel's mean, the loss of a channel is
    `(r e) G' (r e)' + lambda * sum(1 - |2 h - 1|^beta)`, which is free of the data's and weights' magnitude.
    """
    relative = (p.scale / p.scale.mean(axis=2, keepdims=True)).astype(np.float32)
    gram = (p.damped / np.einsum("gkk->gk", p.damped).mean(axis=1)[:, None, None]).astype(np.float32)
    floor = np.floor(p.steps)
    fraction = (p.steps - floor).astype(np.float32)
    low, high = p.grid.qmin - floor, p.grid.qmax - floor
    state = _start(fraction, seed)
    first, second = np.zeros_like(state), np.zeros_like(state)
    for t in range(1, iterations + 1):
        sigmoid = 1.0 / (1.0 + np.exp(-state))
        h = np.clip(sigmoid * (_ZETA - _GAMMA) + _GAMMA, 0.0, 1.0)
        inner = np.clip(h, low, high).astype(np.float32)
        by_h = 2.0 * relative * np.matmul((inner - fraction) * relative, gram) * (inner == h)
        by_h += _regulariser_slope(h, t / iterations)
        inside = (h > 0.0) & (h < 1.0)
        slope = by_h * inside * sigmoid * (1.0 - sigmoid) * (_ZETA - _GAMMA)
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        state -= _LEARNING_RATE * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return p.grid.clip(floor + (state >= 0.0))


def _start(fraction: Floats, seed: int) -> Floats:
    """State whose rectified sigmoid equals the fraction, so that learning starts at the float weights."""
    noise = np.random.default_rng(seed).uniform(-1e-4, 1e-4, fraction.shape).astype(np.float32)
    inner = (np.clip(fraction + noise, 1e-3, 1.0 - 1e-3) - _GAMMA) / (_ZETA - _GAMMA)
    state: Floats = np.log(inner / (1.0 - inner))
    return state


def _regulariser_slope(h: Floats, progress: float) -> Floats:
    """Derivative of `lambda * (1 - |2 h - 1|^beta)` by h; beta falls from 20 to 2 after the warm-up."""
    if progress < _WARM_UP:
        return np.zeros_like(h)
    part = (progress - _WARM_UP) / (1.0 - _WARM_UP)
    beta = _BETA_END + 0.5 * (_BETA_START - _BETA_END) * (1.0 + math.cos(math.pi * part))
    centred = 2.0 * h - 1.0
    slope: Floats = -_REGULARISER * 2.0 * beta * np.sign(centred) * np.abs(centred) ** (beta - 1.0)
    return slope
