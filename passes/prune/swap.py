"""Prune and grow with the exact error: single swaps that lower `l G l'`, the squared error of an output.

`l` holds the weights of a row that are gone, `G` the second moments of its inputs. Growing j back changes
the error by `w_j (w_j G_jj - 2 (G l)_j)`, pruning i after that by `w_i (w_i G_ii + 2 (G l)_i)`; each cycle
takes the best j, then the best i for it, and stops where that does not pay. DSnoT (`dsnot.py`) needs only
means and variances, but takes inputs to be independent, which the patches of an image are not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

CYCLES = 200


def refine(weight: Floats, gone: Mask, gram: Floats, *, step: int = 1, cycles: int = CYCLES) -> Mask:
    """Return a better mask with as many zeros per row (per group of `step` inputs where step > 1).

    Args:
        weight: `[rows, k]` before pruning.
        gone: `[rows, k]`.
        gram: `[k, k]`, second moments of the inputs.
        step: M of N:M: what grows and what goes then lie in the same group.
        cycles: swaps per row at most.
    """
    gone = gone.copy()
    group = np.arange(weight.shape[1]) // step
    power = np.diag(gram)
    field = (weight * gone) @ gram  # G l
    active = np.flatnonzero((gone & (weight != 0)).any(axis=1) & (~gone).any(axis=1))
    for _ in range(cycles):
        if not len(active):
            break
        w, out, pull = weight[active], gone[active], field[active]
        at = np.arange(len(active))
        gain = np.where(out, w * (w * power - 2 * pull), np.inf)
        grow = gain.argmin(axis=1)
        moved = pull - w[at, grow][:, None] * gram[grow]
        inside = group == group[grow][:, None] if step > 1 else True
        cost = np.where(~out & inside, w * (w * power + 2 * moved), np.inf)
        prune = cost.argmin(axis=1)
        change = gain[at, grow] + cost[at, prune]
        # Rounding must not keep two weights changing places for ever.
        pays = change < -1e-9 * np.abs(w * w * power).sum(axis=1)
        rows = active[pays]
        gone[rows, grow[pays]], gone[rows, prune[pays]] = False, True
        field[rows] = moved[pays] + w[at, prune][pays][:, None] * gram[prune[pays]]
        active = rows
    return gone
