"""Operands that lie anywhere in a buffer: offset and one stride per axis of a loop nest. Needs no TVM.

Rank-N tensors ([batch, sequence, hidden] and the like) are read and written through such operands, so that
transposes, slices and broadcasts cost nothing of their own: they only change strides (0 where an operand is
broadcast).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LANES = 16
DTYPES = ("float32", "uint8", "int8", "int32", "int64")


@dataclass(frozen=True)
class Operand:
    """A flat buffer and where the element of a loop nest lies in it.

    Attributes:
        size: elements of the buffer.
        strides: elements per axis, outermost first.
        offset: of the first element.
        dtype: of the buffer; integers become floats on the way in.
        quant: (scale, zero) of quantized bytes, as docs/semantics.md has it; None: plain numbers.
    """

    size: int
    strides: tuple[int, ...]
    offset: int = 0
    dtype: str = "float32"
    quant: tuple[float, int] | None = None

    @property
    def last(self) -> int:
        """Stride of the innermost axis, 0 without axes."""
        return self.strides[-1] if self.strides else 0

    def inside(self, sizes: Sequence[int]) -> bool:
        """Say whether every element of the nest lies in the buffer."""
        steps = [stride * (size - 1) for stride, size in zip(self.strides, sizes, strict=True)]
        low = self.offset + sum(min(0, step) for step in steps)
        high = self.offset + sum(max(0, step) for step in steps)
        return low >= 0 and high < self.size

    def axes(self, order: Sequence[int]) -> Operand:
        """Return the operand with its axes in another order, or only some of them."""
        return replace(self, strides=tuple(self.strides[axis] for axis in order))


def merged(sizes: Sequence[int], operands: Sequence[Operand]) -> tuple[tuple[int, ...], tuple[Operand, ...]]:
    """Return the same nest with as few axes as possible: sizes of 1 go, axes that run on are joined.

    >>> merged((2, 1, 8), [Operand(16, (8, 8, 1))])[0]
    (16,)
    """
    kept = [axis for axis, size in enumerate(sizes) if size != 1]
    lengths = [sizes[axis] for axis in kept]
    rows = [[operand.strides[axis] for axis in kept] for operand in operands]
    at = len(lengths) - 2
    while at >= 0:
        if all(row[at] == row[at + 1] * lengths[at + 1] for row in rows):
            lengths[at : at + 2] = [lengths[at] * lengths[at + 1]]
            for row in rows:
                del row[at]
        at -= 1
    changed = (replace(operand, strides=tuple(row)) for operand, row in zip(operands, rows, strict=True))
    return tuple(lengths), tuple(changed)


def bytes_of(sizes: Sequence[int], operand: Operand) -> int:
    """Return the bytes of an operand that a nest touches."""
    count = np.prod([n for n, s in zip(sizes, operand.strides, strict=True) if s], dtype=np.int64)
    return int(count) * np.dtype(operand.dtype).itemsize
