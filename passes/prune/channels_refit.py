"""What a layer loses when an input channel goes and the others take its part over: backward elimination.

With second moments `G` of a layer's inputs (about their means, which the bias takes) and `P = (G + d I)^-1`,
the least squared error of outputs without the columns `c` is higher by `tr(W_c P_cc^-1 W_c')`, for weights
`W` that are fitted to what is left already (Hassibi and Stork 1993, for blocks of columns). The channel that
costs least goes, `W -= W_c P_cc^-1 P_c:`, `P -= P_:c P_cc^-1 P_c:`, and so on: of two channels that say the
same, one gets a low score and the other a high one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

MAX_COLUMNS = 2560
"""Longest input: an elimination takes up to `2 k^3` operations."""
_DAMPING = 0.01


def eliminate(weight: Floats, gram: Floats, unit_of: Labels) -> dict[int, float]:
    """Return what every unit costs at its turn, as a share of the variance of the outputs.

    Args:
        weight: `[rows, k]`.
        gram: `[k, k]`, covariance of the inputs.
        unit_of: `[k]`, unit of each column; -1 stays.
    """
    k = len(gram)
    total = max(float(np.einsum("rk,kl,rl->", weight, gram, weight)), 1e-30)
    damping = _DAMPING * max(float(np.diag(gram).mean()), 1e-30)
    inverse: Floats = np.linalg.inv(gram + damping * np.eye(k))
    current = weight.astype(np.float64)
    blocks = {int(unit): np.flatnonzero(unit_of == unit) for unit in np.unique(unit_of[unit_of >= 0])}
    found: dict[int, float] = {}
    worst = 0.0
    while len(blocks) > 1:
        losses = _losses(current, inverse, blocks)
        unit = min(losses, key=losses.__getitem__)
        # What goes later is worth more, even where rounding says otherwise.
        worst = found[unit] = max(worst * (1 + 1e-9), losses[unit] / total)
        at = blocks.pop(unit)
        step = np.linalg.solve(inverse[np.ix_(at, at)], inverse[at])
        current -= current[:, at] @ step
        inverse -= inverse[:, at] @ step
        current[:, at] = 0.0
    for unit in blocks:
        found[unit] = max(2 * worst, 1e-30)
    return found


def _losses(weight: Floats, inverse: Floats, blocks: dict[int, Labels]) -> dict[int, float]:
    """Return the added squared error of each block, those of equal size at once."""
    sizes: dict[int, list[int]] = {}
    for unit, at in blocks.items():
        sizes.setdefault(len(at), []).append(unit)
    found: dict[int, float] = {}
    for members in sizes.values():
        at = np.stack([blocks[unit] for unit in members])  # units, b
        squares = inverse[at[:, :, None], at[:, None, :]]
        parts = weight[:, at].transpose(1, 2, 0)  # units, b, rows
        losses = np.einsum("ubr,ubr->u", parts, np.linalg.solve(squares, parts))
        found |= {unit: max(float(loss), 0.0) for unit, loss in zip(members, losses, strict=True)}
    return found
