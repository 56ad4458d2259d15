"""Quantizes float32 rows to int8, block by block, for products with weights of few bits.

Per block of `block` values x, all in float32, one rounding per operator:

    largest = max |x|; scale = largest / 127
    q = round_half_even(x * (127 / largest)), 0 where largest is below 2^-100
    correction = -zero * sum(q)

`correction` is what an accumulator over the block starts with when weights are stored as `w + zero`.

Tile: one block is read twice, 16 lanes at a time; one task is one row. Bound by reading x: the work is
1/N-th of the product's, which has N outputs per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .....compiler.backend import Verdict

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

LANES = 16
SMALLEST = 2.0**-100


@dataclass(frozen=True)
class QuantizeBlocksSpec:
    """`rows` rows of `depth` values, quantized in blocks of `block`; weights are stored with `zero` added."""

    rows: int
    depth: int
    block: int
    zero: int

    @property
    def blocks(self) -> int:
        """Blocks per row."""
        return self.depth // self.block

    def tasks(self) -> int:
        """Length of the parallel loop: rows."""
        return self.rows

    def bytes(self) -> int:
        """Bytes read and written."""
        return self.rows * (5 * self.depth + 8 * self.blocks)


def supports(spec: QuantizeBlocksSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.block % LANES or spec.block < LANES:
        return Verdict.no(f"blocks of {spec.block}, need a multiple of {LANES}")
    if spec.depth % spec.block:
        return Verdict.no(f"{spec.depth} values are no whole number of blocks of {spec.block}")
    return Verdict.yes()


def build(spec: QuantizeBlocksSpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel: parameters x [rows, depth], q, scale [rows, blocks], correction, begin, end."""
    from .lowbit_tir import quantizer

    verdict = supports(spec, isa)
    assert verdict.ok, verdict.reason
    return quantizer(spec)
