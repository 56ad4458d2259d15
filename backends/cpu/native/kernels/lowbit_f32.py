"""Matrix product of float32 rows with weights of 8, 4, 2 or 1 bits and one scale per block of weights.

    y[m, n] = after(sum over blocks g of scale[n, g] * sum over k in g of x[m, k] * (code[n, k] - zero))

Weights only are integers: x stays float32, so the result differs from that of dequantized weights by
rounding alone. Weights of one bit are -1 and +1, stored as 0 and 1.

Layout: one stream in reading order, [N / 16, blocks, words]: vectors of 16 lanes with 32 bits, then 16
scales, then 16 zeros where each block has its own. Lane l belongs to output 16 i + l; its word holds 32 /
bits consecutive k, the first in the lowest bits. A last block that is not full is stored full, read in part.

Tile: 16 outputs x up to 8 rows. With AVX-512 a code of up to four bits becomes a float by one permutation of
a table: `vpermps` looks at the lowest four bits of each lane, so shifting the word is all there is to do
before. x is broadcast from memory by the multiply-add. That is three instructions for 16 weights and a row; 8
rows share two of them. Otherwise codes are masked, converted and moved by their zero.

Predicted for one row: 2 cycles for 16 weights, because shifts and permutations share two pipes of Zen 4: 570
us for 4096 x 4096, where reading 4 bits takes 370 us. Masking codes into a float's mantissa and subtracting
needs neither pipe, but four constants per code: 690 us.
Measured: docs/results/cpu_lowbit_float.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .window import LANES, padded, padded_vector

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Bits = Literal[8, 4, 2, 1]


@dataclass(frozen=True)
class LowbitF32Spec:
    """Static shape; parameters: x, residual?, stream, table?, bias?, y.

    Attributes:
        block: weights along depth that share a scale.
        zero: the code of a weight of 0; None: each block has its own.
        bipolar: codes 0 and 1 are -1 and +1.
    """

    rows: int
    depth: int
    outputs: int
    bits: Bits
    block: int
    zero: int | None
    bipolar: bool = False
    after: After = field(default_factory=After)

    @property
    def blocks(self) -> int:
        """Blocks per output, the last one maybe not full."""
        return -(-self.depth // self.block)

    @property
    def per_word(self) -> int:
        """Codes in 32 bits."""
        return 32 // self.bits

    @property
    def vectors(self) -> int:
        """Vectors of codes per block and 16 outputs."""
        return self.block // self.per_word

    @property
    def words(self) -> int:
        """32-bit words per block and 16 outputs, scales and zeros included."""
        return LANES * (self.vectors + 1 + (self.zero is None))

    def tasks(self) -> int:
        """Length of the parallel loop: groups of 16 outputs."""
        return padded(self.outputs) // LANES

    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.depth * self.outputs

    def bytes(self) -> int:
        """Bytes of weights, rows and result, each counted once."""
        rows = self.rows * (padded(self.depth) + padded(self.outputs))
        return 4 * (self.tasks() * self.blocks * self.words + rows)


def supports(spec: LowbitF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min(spec.rows, spec.depth, spec.outputs) < 1:
        return Verdict.no(f"an empty product: {spec.rows} x {spec.depth} x {spec.outputs}")
    if spec.block < 1 or spec.block % spec.per_word:
        return Verdict.no(f"blocks of {spec.block}, need a multiple of {spec.per_word} for {spec.bits} bits")
    if spec.bipolar and spec.bits != 1:
        return Verdict.no(f"-1 and +1 in {spec.bits} bits")
    return Verdict.yes()


def pack(
    spec: LowbitF32Spec,
    codes: Codes,
    scale: Floats,
    zero: Codes | None = None,
    bias: Floats | None = None,
    *,
    table: bool = False,
) -> list[Array]:
    """Lay out the stream, then the table, if the kernel has one, and the bias.

    Args:
        spec: the product.
        codes: [N, depth].
        scale: [N, blocks].
        zero: [N, blocks] where each block has its own.
        bias: [N].
        table: what `uses_table` says about the kernel.
    """
    assert int(codes.max(initial=0)) < 1 << spec.bits, "codes out of range"
    assert (zero is None) == (spec.zero is not None), "the spec says where zeros are"
    tasks, full = spec.tasks(), spec.blocks * spec.block
    wide = np.zeros((tasks * LANES, full), np.uint32)
    wide[: spec.outputs, : spec.depth] = codes
    split = wide.reshape(tasks, LANES, spec.blocks, spec.vectors, spec.per_word)
    shifts = (np.arange(spec.per_word) * spec.bits).astype(np.uint32)
    words = np.bitwise_or.reduce(split << shifts, axis=-1).transpose(0, 2, 3, 1)
    parts = [words, _by_block(spec, scale)]
    if zero is not None:
        parts.append(_by_block(spec, zero.astype(np.float32)))
    constants: list[Array] = [np.ascontiguousarray(np.concatenate(parts, axis=2))]
    if table:
        constants.append(_table(spec))
    return constants if bias is None else [*constants, padded_vector(bias)]


def uses_table(spec: LowbitF32Spec, isa: Isa) -> bool:
    """Say whether codes become floats by a permutation."""
    return spec.bits <= 4 and "avx512f" in isa.features


def _table(spec: LowbitF32Spec) -> Floats:
    code = np.arange(LANES) % (1 << spec.bits)
    values = 2 * code - 1 if spec.bipolar else code - (spec.zero or 0)
    return values.astype(np.float32)


def _by_block(spec: LowbitF32Spec, values: Floats) -> npt.NDArray[np.uint32]:
    full = np.zeros((spec.tasks() * LANES, spec.blocks), np.float32)
    full[: spec.outputs] = values
    return full.reshape(-1, LANES, spec.blocks).transpose(0, 2, 1).copy().view(np.uint32)[:, :, None]


def build(spec: LowbitF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `LowbitF32Spec`, then `begin` and `end`."""
    from .lowbit_f32_tir import LowbitWriter

    verdict = supports(spec, isa)
    assert verdict.ok, verdict.reason
    return LowbitWriter(spec, isa).module()
