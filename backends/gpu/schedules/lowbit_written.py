"""What a kernel written by hand consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..program import Dims

# A warp multiplies tiles of 16 rows of weights with tiles of 8 rows of data, 32 columns at least.
ROWS, ROWS_OF_DATA, CHUNK = 16, 8, 32
LANES = 32
_MOST_TILES = 4
# Warps of a block.
MOST_WARPS = 8
# Warps that keep a chip's memory busy: 16 per multiprocessor on a hundred of them.
BUSY_WARPS = 1600
# Types in C++.
CPP = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}


@dataclass(frozen=True)
class Written:
    """A kernel's text and its launch.

    Attributes:
        template: file in `cuda/` with what kernels of the kind share.
        types: of the parameters, in C++.
        call: the statement in the kernel's body; `{0}` to `{n}` are its parameters.
        grid, block: launch sizes.
        exact: products and sums must round once each.
        schedule: name in the artifact's report.
    """

    template: str
    types: Sequence[str]
    call: str
    grid: Dims
    block: Dims
    exact: bool
    schedule: str


def tiles_of(rows: int) -> int:
    """Return how many tiles of 8 rows of data a warp takes: 1, 2 or 4."""
    return min(1 << (-(-rows // ROWS_OF_DATA) - 1).bit_length(), _MOST_TILES)


def warps_along_depth(sums: int, steps: int) -> int:
    """Return how many warps share each of `sums` of `steps`: a power of two, enough to keep memory busy."""
    warps = 1
    while warps < MOST_WARPS and 2 * warps <= steps and sums * warps < BUSY_WARPS:
        warps *= 2
    return warps


def warps_along_rows(along_depth: int, tiles: int) -> int:
    """Return how many of `tiles` of weights a block of half the most warps takes, at least one."""
    return min(max(MOST_WARPS // 2 // along_depth, 1), tiles)
