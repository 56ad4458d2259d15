"""Moves images between the caller's layout and ours: copies, transposes, quantizes or dequantizes on the way.

Used where a model begins and ends, and between float and quantized layers. Both sides are flat buffers with
strides; the target may have a border and padding lanes, which the kernel fills.

    target[n, h, w, c] = how(source[n, h, w, c])

`quantize` is `saturate(rint(x / scale) + zero)` with float32 division (NaN gives the zero point),
`dequantize` `float32(q - zero) * scale`, `requantize` the one after the other, `shift` turns int8 into uint8
and back.

Tile: 16 elements of the longest run that is contiguous on both sides (a whole row where pixels are packed
alike, else the channels of a pixel), the last vector moved back over the one before. Channels-first sources
are read along the row and stored with a stride. One task is one row of the target. Bound by memory when
contiguous, by one store per element when transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .....compiler.backend import Verdict

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

How = Literal["copy", "shift", "quantize", "dequantize", "requantize"]
Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Side:
    """A flat buffer and where the element [n, h, w, c] lies in it: `offset` + strides, in elements."""

    dtype: str
    size: int
    strides: Strides
    offset: int = 0


@dataclass(frozen=True)
class MoveSpec:
    """One move; parameters: source, target.

    Attributes:
        sizes: N, H, W, C.
        source, target: the two sides. With a border, the target's strides are those of the whole image.
        how: what happens to each element.
        source_quant, target_quant: (scale, zero) where the source or target is quantized and it matters.
        border: top, left, bottom, right of the target, filled with `fill`.
        lanes: elements per pixel of the target; those beyond C are filled too.
        fill: the zero point, or 0.
    """

    sizes: tuple[int, int, int, int]
    source: Side
    target: Side
    how: How = "copy"
    source_quant: tuple[float, int] = (1.0, 0)
    target_quant: tuple[float, int] = (1.0, 0)
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    lanes: int = 0
    fill: int = 0

    def tasks(self) -> int:
        """Return the rows of the target, border included."""
        return self.sizes[0] * (self.sizes[1] + self.border[0] + self.border[2])

    def bytes(self) -> int:
        """Bytes read and written."""
        sides = (self.source, self.target)
        return sum(int(np.prod(self.sizes)) * np.dtype(side.dtype).itemsize for side in sides)

    @property
    def run(self) -> int:
        """Elements that are contiguous on both sides: a row, a pixel, or 1."""
        _, _, width, channels = self.sizes
        both = (self.source.strides, self.target.strides)
        if any(s[3] != 1 for s in both) and channels > 1:
            return 1
        return width * channels if all(s[2] == channels for s in both) else channels


def supports(spec: MoveSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`; it does everywhere."""
    return Verdict.yes()


def build(spec: MoveSpec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: parameters source, target, begin, end."""
    from .move_tir import build_move

    return build_move(spec)
