"""Sums of two quantized tensors with any scales, made exact by trying every pair of codes.

`f1 * a + f2 * b` with whole factors orders the pairs almost as their real sum does. What counts is what the
quantizer behind the sum makes of them: factors are taken when no two pairs are ordered against their
quantized results. With at most 2^17 pairs that is tried, not argued.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.walk import only_user
from .graph import Ints, Wire
from .requant import is_monotone
from .submodel import Function
from .weights import Grid, grid_of

Singles = npt.NDArray[np.float32]

_MOST_PAIRS = 1 << 17
_MOST_SHIFT = 16


def quantizer_behind(value: ir.Value) -> tuple[ir.Node, Grid] | None:
    """Return the quantizer that alone reads `value`, directly or through monotone operators."""
    node = only_user(value)
    while node is not None:
        grid = grid_of(node)
        if grid is not None:
            return node, grid
        if not is_monotone(node, value):
            return None
        value = node.outputs[0]
        node = only_user(value)
    return None


def find_factors(
    left: Wire, right: Wire, total: ir.Value
) -> tuple[tuple[int, int], tuple[Ints, Singles]] | None:
    """Return factors of both operands, and for every sum of theirs a real that stands for it.

    None where too many pairs, no quantizer behind the sum or one of each channel, or no factors keep the
    order.
    """
    behind = quantizer_behind(total)
    a, b = (np.arange(w.least, w.most + 1, w.step, dtype=np.int64) - w.zero for w in (left, right))
    if behind is None or a.size * b.size > _MOST_PAIRS:
        return None
    units = np.float32(left.unit), np.float32(right.unit)
    reals = np.add.outer(a.astype(np.float32) * units[0], b.astype(np.float32) * units[1]).reshape(-1)
    codes = _codes(reals, total, *behind)
    if codes is None:
        return None
    for shift in range(_MOST_SHIFT + 1):
        scale = 2.0**shift / float(min(units))
        factors = round(float(units[0]) * scale), round(float(units[1]) * scale)
        sums = np.add.outer(factors[0] * a, factors[1] * b).reshape(-1)
        order = np.lexsort((codes, sums))
        if _keeps_order(sums[order], codes[order]):
            values, first = np.unique(sums[order], return_index=True)
            return factors, (values, reals[order][first])
    return None


def _codes(reals: Singles, total: ir.Value, quantizer: ir.Node, grid: Grid) -> Ints | None:
    """Return a code for each real; None where they depend on the channel."""
    rank = 1 if total.shape is None else len(total.shape)
    data = np.ascontiguousarray(reals.reshape(-1, *[1] * (rank - 1)))
    got = Function(total, quantizer.outputs[0])(data)
    return grid.codes(got).reshape(-1) if got.size == reals.size else None


def _keeps_order(sums: Ints, codes: Ints) -> bool:
    """Say whether codes never fall, and equal sums have equal codes."""
    steps = np.diff(codes)
    return bool((steps >= 0).all()) and not bool(((np.diff(sums) == 0) & (steps != 0)).any())
