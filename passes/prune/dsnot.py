"""Training-free prune and grow: Dynamic Sparse No Training (Zhang et al. 2023, arXiv 2310.08915).

A mask leaves each output with the expected reconstruction error `e = sum over gone j of w_j E[x_j]`. Each
cycle grows the weight back that reduces |e| most for its variance, `argmax sign(e) w_j E[x_j] / Var[x_j]`
over what is gone (eq. 4), and prunes instead the one with the smallest Wanda score `|w_j| ||x_j||` among
those whose removal also moves e towards zero, `sign(e) w_j E[x_j] < 0` (eq. 5). It ends where |e| is below
the threshold, or where a swap would not lower the expected squared error with independent inputs,
`e^2 + sum over gone j of w_j^2 Var[x_j]`. The
paper has no such guard: it swaps on until the threshold; on four small nets the guard was worth between
-0.5 and 5 points, and did not make up for what swapping cost (docs/results/prune_accuracy.md).

The paper's threshold of 0.1 is in units of its models' hidden states; here it is a share of the output's
own root mean square, `sqrt(sum w_j^2 E[x_j^2])`, so that it means the same for every layer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

CYCLES = 50
THRESHOLD = 0.1
_LEAST_VARIANCE = 1e-12


def refine(
    weight: Floats, gone: Mask, mean: Floats, power: Floats, *, step: int = 1, cycles: int = CYCLES,
    threshold: float = THRESHOLD,
) -> Mask:  # fmt: skip
    """Return a better mask with as many zeros per row (per group of `step` inputs where step > 1).

    Args:
        weight: `[rows, k]` before pruning.
        gone: `[rows, k]`, from Wanda or magnitude.
        mean: `E[x]`, `[k]`.
        power: `E[x^2]`, `[k]`.
        step: M of N:M: what grows and what goes then lie in the same group.
        cycles: swaps per row at most.
        threshold: see above.
    """
    rows = np.arange(len(weight))
    gone = gone.copy()
    moves = weight * mean
    variance = np.maximum(power - mean**2, _LEAST_VARIANCE * max(float(power.max(initial=0.0)), 1e-30))
    wanda = np.abs(weight) * np.sqrt(power)
    limit = threshold * np.sqrt((weight**2 * power).sum(axis=1))
    error = (moves * gone).sum(axis=1)
    active = np.abs(error) > limit
    fixed = np.zeros_like(gone)  # what was swapped stays: no cycles
    for _ in range(cycles):
        sign = np.sign(error)[:, None]
        gain = np.where(gone & ~fixed & (sign * moves > 0), sign * moves / variance, -np.inf)
        grow = gain.argmax(axis=1)
        group = np.arange(weight.shape[1]) // step == (grow // step)[:, None] if step > 1 else True
        cost = np.where(~gone & ~fixed & (sign * moves < 0) & group, wanda, np.inf)
        prune = cost.argmin(axis=1)
        after = error - moves[rows, grow] + moves[rows, prune]
        spread = (weight[rows, prune] ** 2 * variance[prune]) - (weight[rows, grow] ** 2 * variance[grow])
        possible = np.isfinite(gain[rows, grow]) & np.isfinite(cost[rows, prune])
        active &= possible & (after**2 + spread < error**2)
        if not active.any():
            break
        gone[rows[active], grow[active]] = False
        gone[rows[active], prune[active]] = True
        fixed[rows[active], grow[active]] = fixed[rows[active], prune[active]] = True
        error = np.where(active, after, error)
        active &= np.abs(error) > limit
    return gone
