"""Tile sizes for products on tensor cores: a table of shapes that fit, and the rule that picks one.

The rule counts, it does not measure. Per block of threads and per step along k it takes the slowest of three:
tensor cores, shared memory (each warp reads its rows of A and columns of B once per step) and what comes from
L2; times the number of rounds in which the chip works the blocks off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .base import Chip

# Batch, i, j, k.
Size: TypeAlias = tuple[int, int, int, int]

# Per SM and clock of an A100 (NVIDIA's whitepaper): multiply-adds of 16-bit operands on tensor cores, bytes
# of shared memory, and bytes of L2 (5120 per clock for 108 SMs).
_MACS_16BIT, _SHARED_BYTES, _L2_BYTES = 1024, 128, 47
# Clocks before a block's first product and behind its last: launch, pipeline, epilogue. A guess of ours.
_OVERHEAD = 1500


@dataclass(frozen=True)
class Tile:
    """What one block of threads works on.

    Attributes:
        i, j: rows and columns of its result.
        k: depth of one step through shared memory.
        warps_i, warps_j: warps along them.
    """

    i: int
    j: int
    k: int
    warps_i: int
    warps_j: int

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.warps_i * self.warps_j


# Bytes of one step along k.
DEPTH_BYTES = 64
# i, j, warps along i, warps along j.
_SHAPES = (
    (128, 128, 4, 2),
    (128, 64, 4, 2),
    (64, 128, 2, 4),
    (64, 64, 2, 2),
    (32, 64, 2, 2),
    (64, 32, 2, 2),
    (32, 32, 2, 2),
    (16, 64, 1, 4),
    (16, 32, 1, 2),
)


def blocks(tile: Tile, size: Size) -> int:
    """Return how many tiles a product's results take; `size` as in `clocks`."""
    s, i, j, _ = size
    return s * -(-i // tile.i) * -(-j // tile.j)


def exchanged(count: int, chip: Chip) -> float:
    """Return the estimated clocks of a second kernel, and of `count` sums of 32 bits on the way to it."""
    return _OVERHEAD + 2 * 4 * count / (chip.sms * _L2_BYTES)


def clocks(tile: Tile, size: Size, width: int, chip: Chip) -> float:
    """Return the estimated clocks of a product.

    Args:
        tile: of one block.
        size: batch, i, j, k.
        width: bytes of an operand's element.
        chip: number of SMs.
    """
    steps = -(-size[3] // tile.k)
    macs = tile.i * tile.j * tile.k * width / 2 / _MACS_16BIT
    warp_rows, warp_columns = tile.i // tile.warps_i, tile.j // tile.warps_j
    shared = tile.warps * (warp_rows + warp_columns) * tile.k * width / _SHARED_BYTES
    fetched = (tile.i + tile.j) * tile.k * width / _L2_BYTES
    # Fewer than four warps do not keep the four tensor cores of an SM busy.
    step = max(macs * max(1.0, 4 / tile.warps), shared, fetched)
    return -(-blocks(tile, size) // chip.sms) * (steps * step + _OVERHEAD)


def ranked(size: Size, width: int, chip: Chip) -> list[Tile]:
    """Return all tiles, those with the fewest estimated clocks first; of equals the largest."""
    depth = DEPTH_BYTES // width
    tiles = [Tile(i, j, depth, wi, wj) for i, j, wi, wj in _SHAPES]
    return sorted(tiles, key=lambda tile: clocks(tile, size, width, chip))
