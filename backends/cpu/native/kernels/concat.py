"""Joins images along the channels: each part is moved into its lanes of the target, requantized if need be.

Tile and bound are those of `move.py`: rows of channels, limited by memory. One task is one row of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .....compiler.backend import Verdict
from .move import MoveSpec

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


@dataclass(frozen=True)
class ConcatSpec:
    """One concatenation; parameters: the sources, target.

    Attributes:
        parts: moves of equal N, H, W into one target. The first has the border; `lanes` of the last, less its
            channels, are the padding lanes that it fills; the others have 0.
    """

    parts: tuple[MoveSpec, ...]

    def tasks(self) -> int:
        """Return the rows of the target, border included."""
        return self.parts[0].tasks()

    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(part.bytes() for part in self.parts)


def supports(spec: ConcatSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`; it does everywhere."""
    return Verdict.yes()


def build(spec: ConcatSpec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: parameters sources, target, begin, end."""
    from .move_tir import build_concat

    return build_concat(spec)
