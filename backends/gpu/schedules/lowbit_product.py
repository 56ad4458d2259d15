"""Product by weights of few bits: the kernel, its layout of weights, and how many warps share the work.

A warp multiplies 16 rows of weights with tiles of 8 rows of data on tensor cores. One 128-bit load gives a
lane all it contributes to 16 rows and 32 to 128 columns of weights, already in the order of the registers of
`mma.sync`, so codes go from memory to the product without shared memory: a shift, a mask, a subtraction per
two. Several warps may share the columns (few rows of data) and add up through shared memory.
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


@dataclass(frozen=True)
class Shape:
    """A product's sizes, and what is stored of its weights.

    Attributes:
        m, n, k: rows of data, rows of weights (results), columns.
        bits: of a code, 2, 4 or 8.
        block: columns that share a scale, a multiple of 32; 0: all.
        zero: the zero point of all codes; -1: one per block.
        scale: type of the scales.
        data: type of data and results.
        activation: see `activate` in cuda/machine.cuh.
        bias: whether there is one.
    """

    m: int
    n: int
    k: int
    bits: int
    block: int
    zero: int
    scale: str
    data: str
    activation: int
    bias: bool


@dataclass(frozen=True)
class Shares:
    """How the work is shared.

    Attributes:
        tiles, r: per warp, tiles of 8 rows of data and of 16 rows of weights.
        wk, wr: warps of a block along k and n.
        depth: loads of 16 bytes that a lane has under way for each tile of weights.
    """

    tiles: int
    r: int
    wk: int
    wr: int
    depth: int


def shares_of(shape: Shape) -> Shares:
    """Choose: few rows of data, then enough warps to keep memory busy; many, then reuse."""
    steps = -(-shape.k // (CHUNK * 8 // shape.bits))
    tiles, rows = tiles_of(shape.m), -(-shape.n // ROWS)
    if shape.m > 64:
        return Shares(tiles, 2 if rows > 1 else 1, 1, warps_along_rows(1, max(rows // 2, 1)), 1)
    # Splitting a float32 takes longer than unpacking its weight: two tiles share it.
    r = 2 if shape.data == "float32" and rows > 1 else 1
    wk = warps_along_depth(-(-rows // r) * -(-shape.m // (ROWS_OF_DATA * tiles)), steps)
    wr = warps_along_rows(wk, -(-rows // r))
    return Shares(tiles, r, wk, wr, max(1, min(4, -(-steps // wk))))


def grid_of(shape: Shape, shares: Shares) -> tuple[int, int]:
    """Return the blocks along n and m."""
    return -(-shape.n // (ROWS * shares.r * shares.wr)), -(-shape.m // (ROWS_OF_DATA * shares.tiles))


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """Lay codes [N, K] out for the kernel: [tiles of 16 rows, loads, 32 lanes, 4 words].

    Of a chunk of 32 columns the lane with t = lane % 4 holds columns 8t to 8t + 7 of rows g and g + 8: pairs
    (row, columns), one pair at bits `i` and `16 + i` of a word. Beyond N and K there are zeros.
    """
    chunks, per_word = 8 // bits, 16 // bits
    rows, columns = (
        -(-size // unit) * unit for size, unit in zip(codes.shape, (ROWS, CHUNK * chunks), strict=True)
    )
    full = np.zeros((rows, columns), np.uint32)
    full[: codes.shape[0], : codes.shape[1]] = codes
    # tile, half of it, g, load, chunk, t, step of 16, pair, which of two
    apart = full.reshape(rows // 16, 2, 8, columns // (CHUNK * chunks), chunks, 4, 2, 2, 2)
    pairs = apart.transpose(0, 3, 2, 5, 4, 6, 7, 1, 8).reshape(
        rows // 16, -1, LANES, chunks * 8 // per_word, per_word, 2
    )
    shifts = bits * np.arange(per_word, dtype=np.uint32)[:, None] + np.array([0, 16], np.uint32)
    return np.ascontiguousarray(np.bitwise_or.reduce(pairs << shifts, axis=(-2, -1)).astype(np.uint32))


def write(sizes: Mapping[str, object]) -> Written:
    """Return the kernel of a product; `sizes` are those of a `Shape`."""
    shape = Shape(**sizes)  # type: ignore[arg-type]
    shares = shares_of(shape)
    data, scale = CPP[shape.data], CPP[shape.scale]
    numbers = (
        shape.bits, shape.m, shape.n, shape.k, shape.block, shape.zero, shares.tiles, shares.r, shares.wk,
        shares.wr, shares.depth, shape.activation, str(shape.bias).lower(),
    )  # fmt: skip
    types = [f"const {data}* __restrict__", "const unsigned* __restrict__", f"const {scale}* __restrict__"]
    zero, bias = shape.zero < 0, shape.bias
    types += ["const unsigned char* __restrict__"] * zero + ["const float* __restrict__"] * bias
    places = [3 if zero else None, (4 if zero else 3) if bias else None, 3 + zero + bias]
    optional = ["nullptr" if place is None else f"{{{place}}}" for place in places]
    call = (
        f"pared::product<{data}, {scale}, {', '.join(map(str, numbers))}>({{0}}, "
        f"reinterpret_cast<const uint4*>({{1}}), {{2}}, {', '.join(optional)});"
    )
    grid = grid_of(shape, shares)
    name = f"w{shape.bits}-product-{shares.tiles}x{shares.r}-k{shares.wk}-n{shares.wr}"
    block = LANES * shares.wk * shares.wr
    return Written("product", [*types, f"{data}* __restrict__"], call, (*grid, 1), (block, 1, 1), False, name)
