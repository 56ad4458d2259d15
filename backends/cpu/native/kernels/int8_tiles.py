"""Geometry of int8 images in memory, and the choice of register tiles. No TVM in here.

An image is a flat uint8 buffer [N, top + H + bottom, left + W + right, pitch]. Its border belongs to it and
holds the zero point: the kernel that writes the image writes the border too, so that convolutions need no
special case at edges. `pitch` is the number of bytes per pixel: channels rounded up to 16, or, for images
that only a first convolution reads, anything down to the number of channels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..isa import Isa

REGISTERS = 31
SLACK_BYTES = 64
Border = tuple[int, int, int, int]
NO_BORDER: Border = (0, 0, 0, 0)


@dataclass(frozen=True)
class Image:
    """Where the pixels of a uint8 image lie.

    Attributes:
        batch, height, width, channels: logical sizes, without border.
        pitch: bytes from one pixel to the next.
        border: rows and columns around it: top, left, bottom, right.
    """

    batch: int
    height: int
    width: int
    channels: int
    pitch: int
    border: Border = NO_BORDER

    def __post_init__(self) -> None:
        assert self.pitch >= self.channels, "pixels overlap"

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.width + self.border[1] + self.border[3]) * self.pitch

    @property
    def plane(self) -> int:
        """Bytes from one image to the next."""
        return (self.height + self.border[0] + self.border[2]) * self.row

    @property
    def origin(self) -> int:
        """Offset of the first pixel behind the border."""
        return self.border[0] * self.row + self.border[1] * self.pitch

    @property
    def bytes(self) -> int:
        """Size of the buffer. Kernels may read, never write, `SLACK_BYTES` behind it."""
        return self.batch * self.plane

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape in memory."""
        return self.batch, self.plane // self.row, self.row // self.pitch, self.pitch


def image(
    batch: int, height: int, width: int, channels: int, border: Border = NO_BORDER, pitch: int | None = None
) -> Image:
    """Return an image; `pitch` None rounds the channels up to 16."""
    return Image(batch, height, width, channels, pitch or -(-channels // 16) * 16, border)


@dataclass(frozen=True)
class Tile:
    """Register tile: `rows` x `columns` pixels by `vectors` times 16 channels.

    The last tile in each direction is moved back onto the image, so there are no remainders; pixels under
    two tiles are computed twice, to the same bytes.
    """

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> int:
        """Pixels of the tile."""
        return self.rows * self.columns


def is_small(factor: npt.NDArray[np.float32]) -> bool:
    """Tell whether no int32 times these factors is beyond 2^30; then rounding needs no cap."""
    return float(np.abs(factor).max(initial=0)) < 0.5


def registers_of(isa: Isa) -> int:
    """Return how many vectors of 16 int32 the registers hold, one less where data needs it."""
    if isa.avx512:
        return REGISTERS
    # Sums and one vector of widened weights, in 16 registers of 32 bytes or 32 of 16.
    return 6 if isa.arch == "x86_64" else 7


@functools.cache
def choose_tile(
    height: int, width: int, vectors: int, steps: int, registers: int = REGISTERS, deep: int = 0
) -> tuple[Tile, float]:
    """Return the tile with the least predicted time for `steps` dot steps per output, and that time (cycles).

    Per step: one cycle per dot, one load cycle per vector of weights and per broadcast; whichever is longer.
    The end of a tile costs about 6 cycles per vector of results and 20 for addresses and loops.

    Args:
        height: of the output.
        width: of the output.
        vectors: of 16 output channels.
        steps: of four bytes.
        registers: see `registers_of`.
        deep: vectors of the tile; 0 for any.
    """
    best, least = Tile(1, 1, deep or 1), math.inf
    for nv in (deep,) if deep else range(1, min(vectors, 8) + 1):
        for columns in range(1, min(width, 28) + 1):
            for rows in range(1, min(height, 28) + 1):
                pixels = rows * columns
                if pixels * nv + nv + 1 > registers or (rows > 1 and columns < width):
                    continue
                count = -(-height // rows) * -(-width // columns)
                cycles = count * _tile_cycles(pixels, nv, vectors, steps)
                if cycles < least:
                    best, least = Tile(rows, columns, nv), cycles
    return best, least


def _tile_cycles(pixels: int, nv: int, vectors: int, steps: int) -> float:
    groups = [nv] * (vectors // nv) + ([vectors % nv] if vectors % nv else [])
    total = 0.0
    for n in groups:
        # Four cycles of latency per dot: fewer than four accumulators wait for each other.
        total += steps * (max(pixels * n, pixels + n, 4) + 0.7)
        total += pixels * (4.5 if n % 4 == 0 else 6.5) * n + 20
    return total


def interleaved(vectors: int) -> list[int]:
    """Return which of 16 * `vectors` channels each accumulator lane holds, vector by vector.

    Four vectors at a time are stored as 64 bytes by packs that work within 128-bit lanes: lane 4 L + i of
    vector v holds channel 16 L + 4 v + i, so that the bytes come out in order. A rest is in natural order.
    """
    whole = vectors // 4 * 4
    order = [64 * (v // 4) + 16 * (i // 4) + 4 * (v % 4) + i % 4 for v in range(whole) for i in range(16)]
    return order + list(range(16 * whole, 16 * vectors))
