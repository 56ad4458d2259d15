"""Matrix product with weights of 4, 2 or 1 bits and one scale per block; activations become int8 on the fly.

    y[m, n] = sum over blocks g of dot[m, n, g] * (w_scale[n, g] * x_scale[m, g]) [+ bias[n]]
    dot[m, n, g] = sum over k in g of w[n, k] * q[m, k]

with w = stored - zero. Signs of one bit are stored as 0 and 2 with zero 1, so that all widths share one
form. The sums are exact in int32; scales are multiplied in float32 and added by fused multiply-adds in
ascending g. q and x_scale come from `quantize_blocks`.

Layout: one stream in reading order, [N/16, blocks, words]: `block * bits / 32` vectors of 16 lanes with 32
bits, then the 16 float32 scales. Lane l belongs to output 16 i + l; each of its bytes holds values of 8 /
bits quads of k: quad j of vector v is k = 4 * (v * 8 / bits + j) .. + 3, one k per byte, quad 0 in the
lowest bits.

Tile: 16 outputs x up to 8 rows. A vector of weights is unpacked once (shift, mask) for all rows, then one
vpdpbusd per quad and row, the quad of q broadcast; several chains of sums hide the latency. For one row the
kernel is bound by reading weights from memory; the hardware prefetches one stream as fast as it reads it
(software prefetches 1 to 8 KiB ahead made it 5 to 20 % slower). One task is one block of 16 outputs.

Share of the memory bandwidth: docs/results/cpu_lowbit_gemv.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]
Bits = Literal[4, 2, 1]

LANES = 16
MAX_ROWS = 8


@dataclass(frozen=True)
class LowbitGemvSpec:
    """`[rows, depth] x [outputs, depth]` with blocks of `block` weights along depth.

    Attributes:
        zero: what is added to a weight when it is stored: `bits` 4: 0..15, 2: 0..3, 1: always 1 (-1 and +1).
        bias: one float32 per output is added at the end.
    """

    rows: int
    depth: int
    outputs: int
    bits: Bits
    block: int
    zero: int
    bias: bool = False

    @property
    def stored_outputs(self) -> int:
        """Outputs in memory: a multiple of 16."""
        return -(-self.outputs // LANES) * LANES

    @property
    def blocks(self) -> int:
        """Blocks per output."""
        return self.depth // self.block

    @property
    def vectors(self) -> int:
        """Vectors of weights per block and 16 outputs."""
        return self.block * self.bits // 32

    @property
    def words(self) -> int:
        """32-bit words per block and 16 outputs, scales included."""
        return LANES * (self.vectors + 1)

    def tasks(self) -> int:
        """Length of the parallel loop: blocks of 16 outputs."""
        return self.stored_outputs // LANES

    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.depth * self.outputs

    def bytes(self) -> int:
        """Bytes of weights, scales, quantized activations and result."""
        stream = 4 * self.tasks() * self.blocks * self.words
        return stream + self.rows * (self.depth + 8 * self.blocks + 4 * self.stored_outputs)


def supports(spec: LowbitGemvSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.block % 32 or not 32 <= spec.block <= 256:
        return Verdict.no(f"blocks of {spec.block} weights, need 32, 64, ... 256")
    if spec.depth % spec.block:
        return Verdict.no(f"depth {spec.depth} is no whole number of blocks of {spec.block}")
    if spec.bits == 1 and spec.zero != 1:
        return Verdict.no(f"weights of one bit are -1 and +1, so zero is 1, not {spec.zero}")
    if not 0 <= spec.zero < 2**spec.bits and spec.bits > 1:
        return Verdict.no(f"zero {spec.zero} is outside 0..{2**spec.bits - 1}")
    return Verdict.yes()


def pack(
    spec: LowbitGemvSpec, weight: Integers, scale: Floats, bias: Floats | None = None
) -> list[npt.NDArray[np.generic]]:
    """Lay out weights and scales as one stream; the bias follows by itself.

    Args:
        spec: the product.
        weight: [outputs, depth] integers, `-zero .. 2^bits - 1 - zero`; for one bit -1 and +1.
        scale: [outputs, blocks] float32.
        bias: [outputs] float32, where the product has one.

    Raises:
        ValueError: a weight is out of range.
    """
    stored = weight.astype(np.int64) + spec.zero
    allowed = (0, 2) if spec.bits == 1 else range(2**spec.bits)
    if not np.isin(stored, allowed).all():
        found = f"{weight.min()}..{weight.max()}"
        raise ValueError(f"weights of {spec.bits} bits with zero {spec.zero} cannot hold {found}")
    spare = spec.stored_outputs - spec.outputs
    codes = np.pad((stored >> (spec.bits == 1)).astype(np.uint32), ((0, spare), (0, 0)))
    scales = np.pad(np.ascontiguousarray(scale, np.float32), ((0, spare), (0, 0)))
    quads = 8 // spec.bits
    # [tasks, lane, blocks, vector, quad, byte] -> a word per [tasks, blocks, vector, lane]
    split = codes.reshape(spec.tasks(), LANES, spec.blocks, spec.vectors, quads, 4)
    shifts = np.arange(quads)[:, None] * spec.bits + 8 * np.arange(4)[None]
    words = np.bitwise_or.reduce(split << shifts.astype(np.uint32), axis=(4, 5)).transpose(0, 2, 3, 1)
    last = scales.reshape(spec.tasks(), LANES, spec.blocks).transpose(0, 2, 1).copy().view(np.uint32)
    stream = np.concatenate([words, last[:, :, None]], axis=2)
    flat = np.ascontiguousarray(stream.reshape(spec.tasks(), spec.blocks, spec.words), np.uint32)
    return [flat] if bias is None else [flat, np.pad(np.asarray(bias, np.float32), (0, spare))]


def build(spec: LowbitGemvSpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel: q, x_scale, correction (of quantize_blocks), stream[, bias], y, begin, end."""
    from .lowbit_tir import GemvWriter

    verdict = supports(spec, isa)
    assert verdict.ok, verdict.reason
    return GemvWriter(spec, isa).module()
