"""Batches: a request of any number of samples, cut into the sizes that programs were compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A part of a request.

    Attributes:
        start, rows: which samples.
        size: of the program that runs them; above `rows` what is beyond is thrown away.
    """

    start: int
    rows: int
    size: int


def cut(rows: int, sizes: Sequence[int]) -> list[Piece]:
    """Cut a request: the largest sizes first; a rest that fills more than half of a size takes it.

    >>> [(p.rows, p.size) for p in cut(75, [1, 8, 64])]
    [(64, 64), (8, 8), (1, 1), (1, 1), (1, 1)]
    >>> [(p.rows, p.size) for p in cut(5, [1, 8])], [(p.rows, p.size) for p in cut(3, [8])]
    ([(5, 8)], [(3, 8)])
    """
    pieces: list[Piece] = []
    start = 0
    while start < rows:
        size = _size(rows - start, sorted(sizes))
        pieces.append(Piece(start, min(size, rows - start), size))
        start += size
    return pieces


def _size(left: int, sizes: Sequence[int]) -> int:
    above = [size for size in sizes if size >= left]
    if above and (2 * left > above[0] or above[0] == sizes[0]):
        return above[0]
    return max(size for size in sizes if size <= left)
