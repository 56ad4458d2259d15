"""The account of pruning: zeros per weight, bytes as they are and as a sparse format would store them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from ...compiler.ir import walk
from ...compiler.pass_api import PassStats
from .pattern import Pattern
from .weights import Weight

Floats = npt.NDArray[np.floating]

FILE = "sparsity.json"


class Row(TypedDict):
    """One weight: `stored_bytes` is an estimate of the smallest sparse format, the file stays dense."""

    node: str
    weight: str
    elements: int
    nonzeros: int
    sparsity: float
    dense_bytes: int
    stored_bytes: int


@dataclass
class Report:
    """Rows so far.

    Attributes:
        pattern: what `stored_bytes` stores together.
    """

    pattern: Pattern
    rows: list[Row] = field(default_factory=list)

    def add(self, weight: Weight, matrix: Floats) -> None:
        """Add a weight and what became of it."""
        array = walk.constant(weight.value)
        assert array is not None, weight
        nonzeros = int(np.count_nonzero(matrix))
        self.rows.append(
            Row(
                node=weight.name,
                weight=str(weight.value.name),
                elements=matrix.size,
                nonzeros=nonzeros,
                sparsity=round(1.0 - nonzeros / max(matrix.size, 1), 6),
                dense_bytes=array.nbytes,
                stored_bytes=stored_bytes(matrix, array.itemsize, self.pattern.on(matrix.shape[-1])),
            )
        )

    def finish(self, stats: PassStats) -> None:
        """Write details and the attachment."""
        elements, left = sum(r["elements"] for r in self.rows), sum(r["nonzeros"] for r in self.rows)
        stats.attachments[FILE] = json.dumps(self.rows, indent=1)
        stats.details |= {
            "weights": len(self.rows),
            "elements": elements,
            "nonzeros": left,
            "sparsity": round(1.0 - left / max(elements, 1), 6),
            "dense_bytes": sum(r["dense_bytes"] for r in self.rows),
            "stored_bytes": sum(r["stored_bytes"] for r in self.rows),
        }


def stored_bytes(matrix: Floats, itemsize: int, pattern: Pattern) -> int:
    """Return the bytes of the smallest of: dense, a bit per block, an index per block that is not zero.

    Args:
        matrix: `[groups, rows, k]`.
        itemsize: bytes of one weight.
        pattern: blocks are those of the pattern; N:M has `ceil(log2 M)` bits per kept weight and tile.
    """
    g, rows, k = (int(size) for size in matrix.shape)
    r, c = pattern.rows, pattern.columns
    tiles, steps = -(-rows // r), -(-k // c)
    dense = int(matrix.size) * itemsize
    if pattern.of is not None and pattern.keep is not None:
        kept = g * tiles * -(-k // pattern.of) * pattern.keep
        bits = max((pattern.of - 1).bit_length(), 1)
        return min(dense, kept * r * itemsize + (kept * bits + 7) // 8)
    padded = np.zeros((g, tiles * r, steps * c), np.bool_)
    padded[:, :rows, :k] = matrix != 0
    held = int(padded.reshape(g, tiles, r, steps, c).any(axis=(2, 4)).sum())
    values = held * r * c * itemsize
    index = 2 if steps < 1 << 16 else 4
    return min(dense, values + (g * tiles * steps + 7) // 8, values + held * index + 4 * (g * tiles + 1))
