"""What a constant matrix costs as shared additions, without asking the optimizer.

The unit is da4ml's cost: bits of adders. A block of at most 64 x 64 weights with D non-zero signed digits in
U rows that differ needs at most D - U additions; how many of them sharing saves follows a power law in rows,
columns and density, fitted to random blocks by `python -m pared.bench.fpga.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .graph import Ints

BLOCK = 64
# bench/fpga/blocks.py on da4ml 0.6.0 (120 blocks, median error 4.0 %, 9 of 10 below 9.0 %): factor, then
# exponents of rows, columns, digits per weight, and growth of width; factor and exponent of rows where all
# weights are -1 or +1.
_FACTOR, _ROWS, _COLUMNS, _DENSITY, _GROWTH = 1.063, -0.051, -0.127, -0.254, -0.040
_BIPOLAR, _BIPOLAR_ROWS = 0.515, -0.048


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a matrix: [rows, columns], no column is zero."""

    rows: Ints

    @property
    def digits(self) -> int:
        """Non-zero signed digits of all weights."""
        return int(signed_digits(self.rows).sum())


def signed_digits(weights: Ints) -> Ints:
    """Return the non-zero digits of the shortest signed-digit form of each weight."""
    magnitude = np.abs(weights)
    return np.bitwise_count((3 * magnitude) ^ magnitude).astype(np.int64)


def blocks(matrix: Ints) -> Iterator[Block]:
    """Yield the blocks that the circuit optimizes one by one; see circuit.py."""
    used = np.flatnonzero(matrix.any(axis=0))
    for first in range(0, len(matrix), BLOCK):
        for column in range(0, used.size, BLOCK):
            yield Block(matrix[first : first + BLOCK, used[column : column + BLOCK]])


def block_cost(block: Block, top: int) -> float:
    """Return the cost of a block whose inputs are 0 to `top`."""
    rows = distinct(block.rows)
    digits = int(signed_digits(rows).sum())
    additions = digits - len(rows)
    if additions <= 0:
        return 0.0
    columns, narrow = rows.shape[1], np.log2(top + 1)
    wide = float(np.log2(np.abs(rows).sum(axis=1) * top + 1).mean())
    shared = _FACTOR * len(rows) ** _ROWS * columns**_COLUMNS * (digits / rows.size) ** _DENSITY
    if np.all(np.abs(rows) == abs(rows.flat[0])):
        shared *= _BIPOLAR * len(rows) ** _BIPOLAR_ROWS
    return float(additions * (wide + narrow) / 2 * shared * (wide / narrow) ** _GROWTH)


def block_depth(block: Block) -> int:
    """Return the adders on the longest way through a block."""
    most = int(signed_digits(block.rows).sum(axis=1).max(initial=1))
    return max(most - 1, 0).bit_length()


def joining_cost(matrix: Ints, top: int) -> float:
    """Return the cost of adding up what the blocks of each row give."""
    count = -(-int(matrix.any(axis=0).sum()) // BLOCK)
    if count < 2:
        return 0.0
    return float((count - 1) * np.log2(np.abs(matrix).sum(axis=1) * top + 1).sum())


def distinct(rows: Ints) -> Ints:
    """Return the rows that differ in more than their sign, without zero rows."""
    there = rows[rows.any(axis=1)]
    if not len(there):
        return there
    first = there[np.arange(len(there)), (there != 0).argmax(axis=1)]
    return np.unique(there * np.sign(first)[:, None], axis=0)
