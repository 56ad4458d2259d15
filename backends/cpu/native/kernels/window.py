"""Sliding windows over [N, H, W, C]: output sizes, tiles of a row, and which taps fall into padding.

Shared by the float32 convolutions and poolings. Needs no TVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict

LANES = 16
# Tiles that touch padding get code of their own; beyond this many taps the caller pads first.
MAX_EDGE_TAPS = 96


def groups_of(channels: int) -> int:
    """Return the vectors of 16 lanes that hold `channels`."""
    return -(-channels // LANES)


def padded(channels: int) -> int:
    """Return `channels` rounded up to whole vectors."""
    return groups_of(channels) * LANES


@dataclass(frozen=True)
class Window:
    """Where windows lie; `pads` is (top, left, bottom, right).

    Attributes:
        ceil: count a last window that reaches beyond the padded input (pooling's `ceil_mode`).
    """

    batch: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    ceil: bool = False

    def _out(self, axis: int) -> int:
        size = (self.height, self.width)[axis]
        room = (
            size + self.pads[axis] + self.pads[axis + 2] - (self.kernel[axis] - 1) * self.dilations[axis] - 1
        )
        stride = self.strides[axis]
        count = (-(-room // stride) if self.ceil else room // stride) + 1
        # A window that starts in the padding behind the data does not count.
        if self.ceil and (count - 1) * stride >= size + self.pads[axis]:
            count -= 1
        return count

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self._out(0)

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return self._out(1)

    @property
    def pointwise(self) -> bool:
        """Whether every output pixel reads the input pixel of the same place, and nothing else."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)

    @property
    def rows_inside(self) -> bool:
        """Whether no window reaches above or below the data."""
        last = (self.out_height - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0]
        return self.pads[0] == 0 and last < self.height

    def column(self, x: int, tap: int) -> int:
        """Return the input column that tap `tap` of output column `x` reads; outside for padding."""
        return x * self.strides[1] - self.pads[1] + tap * self.dilations[1]

    def refusal(self) -> str:
        """Return why the window makes no sense for a kernel, or an empty string."""
        if min(self.batch, self.height, self.width) < 1 or min(self.out_height, self.out_width) < 1:
            return f"the output is empty: {self.batch} x {self.out_height} x {self.out_width}"
        if min(self.pads) < 0:
            return f"negative padding {self.pads}; a Slice crops"
        return ""


@dataclass(frozen=True)
class Piece:
    """Tiles of one output row that share code.

    Attributes:
        start: first output column.
        count: tiles, one behind the other.
        size: output columns of each.
        taps: for each tap of a kernel row, the columns of the tile that read data; None: all of them.
    """

    start: int
    count: int
    size: int
    taps: tuple[tuple[int, ...], ...] | None = None


def tile_size(width: int, most: int) -> int:
    """Return the tile of at most `most` columns that covers `width` in the fewest and most equal tiles."""
    return -(-width // -(-width // most))


def pieces(window: Window, size: int) -> list[Piece]:
    """Cut an output row into tiles of `size` columns, the last one maybe narrower."""
    found: list[Piece] = []
    for start in range(0, window.out_width, size):
        piece = _piece(window, start, min(size, window.out_width - start))
        if found and _joins(found[-1], piece):
            found[-1] = Piece(found[-1].start, found[-1].count + 1, piece.size)
        else:
            found.append(piece)
    return found


def _piece(window: Window, start: int, size: int) -> Piece:
    taps = tuple(
        tuple(i for i in range(size) if 0 <= window.column(start + i, s) < window.width)
        for s in range(window.kernel[1])
    )
    full = all(len(inside) == size for inside in taps)
    return Piece(start, 1, size, None if full else taps)


def _joins(left: Piece, right: Piece) -> bool:
    return left.taps is None and right.taps is None and left.size == right.size


def edge_verdict(window: Window, size: int) -> Verdict:
    """Refuse windows whose rows would need too much code for tiles at the edges."""
    taps = sum(window.kernel[1] for piece in pieces(window, size) if piece.taps is not None)
    if taps > MAX_EDGE_TAPS:
        return Verdict.no(f"{taps} taps in tiles at the edges, at most {MAX_EDGE_TAPS}; pad the input first")
    return Verdict.yes()


def split_groups(total: int, wide: Sequence[int] = (2, 3)) -> tuple[int, int, int]:
    """Return (vectors per block, whole blocks, vectors of the last block or 0) for `total` vectors.

    The first of `wide` that divides `total` wins, else the first with a remainder.

    >>> split_groups(4), split_groups(9), split_groups(5), split_groups(1)
    ((2, 2, 0), (3, 3, 0), (2, 2, 1), (1, 1, 0))
    """
    if total < wide[0]:
        return total, 1, 0
    width = next((w for w in wide if total % w == 0), wide[0])
    return width, total // width, total % width


def padded_vector(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return `values` with zeros up to a whole number of vectors."""
    return np.pad(values.astype(np.float32), (0, padded(len(values)) - len(values)))


def interleave(packed: npt.NDArray[np.float32], blocks: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Return weights [vectors, steps, 16] as one stream [steps, vectors of the block, 16] per block.

    A block is read in order; separate streams, powers of two apart, would share cache sets.
    """
    wide, whole, rest = blocks
    head = packed[: wide * whole].reshape(whole, wide, -1, LANES).transpose(0, 2, 1, 3)
    tail = packed[wide * whole :].reshape(rest, -1, LANES).transpose(1, 0, 2) if rest else packed[:0]
    return np.concatenate([head.reshape(-1), tail.reshape(-1)])
