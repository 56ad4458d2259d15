"""Products by weights of which at most two of four columns are not zero (2:4): only what is kept is read.

Kept weights take half the memory, their places 2 bits each. A warp puts them back in their places in
registers and multiplies on tensor cores as lowbit_product.py does; that saves memory traffic, which is what
few rows of data wait for, and no operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .lowbit_written import (
    CHUNK,
    CPP,
    LANES,
    ROWS,
    ROWS_OF_DATA,
    Written,
    tiles_of,
    warps_along_depth,
    warps_along_rows,
)

# Columns whose places are loaded together.
QUAD = 4 * CHUNK
# More rows of data wait for arithmetic: dense kernels do better.
MOST_ROWS = 32


@dataclass(frozen=True)
class Shape:
    """Rows of data, rows of weights, columns; type of the data (int8: sums are the results); the epilogue."""

    m: int
    n: int
    k: int
    data: str
    activation: int
    bias: bool


def is_sparse(weights: npt.NDArray[np.number]) -> bool:
    """Say whether of every four columns of weights [N, K] at most two are not zero."""
    if weights.ndim != 2 or weights.shape[1] % 8:
        return False
    return bool((np.count_nonzero(weights.reshape(len(weights), -1, 4), axis=2) <= 2).all())


def pack(weights: npt.NDArray[np.number]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Lay weights [N, K] of 2:4 out: numbers [tiles, chunks, 32 lanes, words], places [tiles, quads, 32, 2].

    The lane with t = lane % 4 has columns 8t to 8t + 7 of a chunk, of rows g and g + 8.
    """
    rows, columns = (-(-size // unit) * unit for size, unit in zip(weights.shape, (ROWS, QUAD), strict=True))
    full = np.zeros((rows, columns), weights.dtype)
    full[: weights.shape[0], : weights.shape[1]] = weights
    groups = full.reshape(rows, columns // 4, 4)
    order = np.argsort(groups == 0, axis=2, kind="stable")[..., :2]
    kept = np.take_along_axis(groups, order, axis=2)
    whole = kept.view(f"u{weights.dtype.itemsize}").astype(np.uint32)
    places = (order[..., 0] | order[..., 1] << 2).astype(np.uint32)

    def lanes(array: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return [tile, chunk, lane, row half, group of four, ...]."""
        apart = array.reshape(rows // 16, 2, 8, columns // 32, 4, 2, -1)
        return apart.transpose(0, 3, 2, 4, 1, 5, 6).reshape(rows // 16, columns // 32, 32, -1)

    per_word = 4 // weights.dtype.itemsize
    numbers = lanes(whole).reshape(rows // 16, columns // 32, 32, -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint32) * (32 // per_word)
    words = np.bitwise_or.reduce(numbers << shifts, axis=-1)
    where = np.bitwise_or.reduce(lanes(places) << (np.arange(4, dtype=np.uint32) * 4), axis=-1)
    two = where.reshape(rows // 16, columns // QUAD, 2, 2, 32).transpose(0, 1, 4, 2, 3)
    pairs = two[..., 0] | two[..., 1] << 16
    return np.ascontiguousarray(words.astype(np.uint32)), np.ascontiguousarray(pairs.astype(np.uint32))


def write(sizes: Mapping[str, object]) -> Written:
    """Return the kernel of a `Shape`."""
    shape = Shape(**sizes)  # type: ignore[arg-type]
    tiles = tiles_of(shape.m)
    rows, across = -(-shape.n // ROWS), -(-shape.m // (ROWS_OF_DATA * tiles))
    wk = warps_along_depth(rows * across, -(-shape.k // QUAD))
    wr = warps_along_rows(wk, rows)
    whole = shape.data == "int8"
    data, result = ("signed char", "int") if whole else (CPP[shape.data],) * 2
    numbers = (shape.m, shape.n, shape.k, tiles, wk, wr, shape.activation, str(shape.bias).lower())
    places = "{3}, {4}" if shape.bias else "nullptr, {3}"
    call = (
        f"pared::sparse_product<{data}, {result}, {', '.join(map(str, numbers))}>({{0}}, "
        f"reinterpret_cast<const {'uint2' if whole else 'uint4'}*>({{1}}), "
        f"reinterpret_cast<const uint2*>({{2}}), {places});"
    )
    kinds = (
        f"const {data}*",
        "const unsigned*",
        "const unsigned*",
        *(("const float*",) * shape.bias),
        f"{result}*",
    )
    types = [f"{kind} __restrict__" for kind in kinds]
    name = f"sparse-product-{tiles}-k{wk}-n{wr}"
    return Written("sparse", types, call, (-(-rows // wr), across, 1), (LANES * wk * wr, 1, 1), whole, name)
