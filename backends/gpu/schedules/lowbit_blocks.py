"""Products of int8 activations and weights of 4 bits, both in blocks: layout of weights and launch.

As in lowbit_product.py a warp has 16 rows of weights and tiles of 8 rows of data, here by `mma.sync.m16n8k32`
of bytes; the lane with t = lane % 4 has columns 8t to 8t + 7 of a chunk of 32 columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .lowbit_written import (
    CHUNK,
    LANES,
    ROWS,
    ROWS_OF_DATA,
    Written,
    tiles_of,
    warps_along_depth,
    warps_along_rows,
)


@dataclass(frozen=True)
class Shape:
    """Rows of data, rows of weights, columns, columns per scale, and whether numbers are added at the end."""

    m: int
    n: int
    k: int
    block: int
    bias: bool


def pack(weights: npt.NDArray[np.int8]) -> npt.NDArray[np.uint32]:
    """Lay weights [N, K] from -8 to 7 out for the kernel: [tiles of 16 rows, loads, 32 lanes, 4 words].

    A word has the four columns of row g in the lower halves of its bytes, of row g + 8 in the upper halves;
    the words of a chunk are columns 8t to 8t + 3 and the next four. A load is two chunks.
    """
    rows, columns = (
        -(-size // unit) * unit for size, unit in zip(weights.shape, (ROWS, 2 * CHUNK), strict=True)
    )
    full = np.zeros((rows, columns), np.uint32)
    full[: weights.shape[0], : weights.shape[1]] = weights.astype(np.int64) & 15
    # tile, half of it, g, load, chunk, t, four columns, which of them
    apart = full.reshape(rows // 16, 2, 8, columns // 64, 2, 4, 2, 4).transpose(0, 3, 2, 5, 4, 6, 7, 1)
    words = np.bitwise_or.reduce(
        apart << (np.arange(4, dtype=np.uint32)[:, None] * 8 + np.array([0, 4], np.uint32)), axis=(-2, -1)
    )
    return np.ascontiguousarray(words.reshape(rows // 16, columns // 64, 32, 4).astype(np.uint32))


def write(sizes: Mapping[str, object]) -> Written:
    """Return the kernel of a `Shape`."""
    shape = Shape(**sizes)  # type: ignore[arg-type]
    tiles = tiles_of(shape.m)
    rows, across = -(-shape.n // ROWS), -(-shape.m // (ROWS_OF_DATA * tiles))
    wk = warps_along_depth(rows * across, -(-shape.k // max(shape.block, 2 * CHUNK)))
    wr = warps_along_rows(wk, rows)
    numbers = (shape.m, shape.n, shape.k, shape.block, tiles, wk, wr, str(shape.bias).lower())
    places = "{4}, {5}" if shape.bias else "nullptr, {4}"
    call = (
        f"pared::block_product<{', '.join(map(str, numbers))}>({{0}}, {{1}}, "
        f"reinterpret_cast<const uint4*>({{2}}), {{3}}, {places});"
    )
    kinds = ("const signed char*", "const float*", "const unsigned*", "const float*")
    types = [f"{kind} __restrict__" for kind in (*kinds, *(("const float*",) * shape.bias), "float*")]
    grid = (-(-rows // wr), across, 1)
    return Written(
        "blocks", types, call, grid, (LANES * wk * wr, 1, 1), False, f"w4a8-product-{tiles}-k{wk}-n{wr}"
    )
