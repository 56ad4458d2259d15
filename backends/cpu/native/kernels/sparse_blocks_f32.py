"""Convolution and matrix product in float32 where 16 or 32 output channels have their zeros in common.

    out[n, y, x, o] = after(sum over taps (c, r, s) of o's block of w(o, c, r, s) * data[n, iy, ix, c])

That is what the pruning patterns 16x1 (blocks of 16 outputs, one input) and 2:4/32 (two of four inputs,
chosen for 32 outputs at once) leave. Layouts: data and out as conv_f32; weights by blocks of outputs, for
each tap that the block keeps one vector of 16 or two; beside them the place of the tap in a tile of data
(uint16).

Tile: up to 8 pixels x 32 channels, with one more load, of a place, for a tap than dense code has: there is
nothing to turn, skip or gather, so time is proportional to what is left. 16 accumulators hide the latency of
the FMA, and the data of 8 pixels stays in the first-level cache, through which every block of outputs goes
anew (14 pixels of 1152 values: 25 % slower). Pixels may come from several rows. Windows larger than a pixel
and strides are copied to the stack, padding as zeros. A vector or a few (M <= 4) are read as they lie; there
each block of outputs is a task, and interleaved sums hide the latency.

Measured on one core of Zen 4 (peak 58 GMAC/s; predicted 90-95 %): 2:4/32 gives 55-57 GMAC/s of what is kept,
1.9-2.1 times as fast as dense code of onnxruntime 1.31.1, 1:4/32 3.5-4.1 times; one row 512x512 with 50 %
zeros 93 GB/s from the second-level cache (docs/results/cpu_sparse_layers.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .gemm_f32 import FEW_ROWS, accumulators
from .sparse_f32 import flattened
from .window import LANES, Window, groups_of, padded, padded_vector, tile_size

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

STACK_BYTES = 160 << 10
# Taps of a block are filled up to a multiple, so that constants are the same for batches of one and two.
UNIT = 4
MOST_PIXELS = 8


@dataclass(frozen=True)
class SparseBlocksF32Spec:
    """Static shape; parameters: data, residual?, weights, places, pointers, bias?, out.

    Attributes:
        entries: kept taps of all blocks, filled up, as `pack` makes them.
        vectors: vectors of 16 output channels of a block, 1 or 2.
        pixels: most pixels of a tile.
    """

    window: Window
    channels: int
    out_channels: int
    entries: int
    vectors: int
    pixels: int
    after: After = field(default_factory=After)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output in memory."""
        window = self.window
        return window.batch, window.out_height, window.out_width, padded(self.out_channels)

    @property
    def blocks(self) -> int:
        """Blocks of output channels."""
        return groups_of(self.out_channels) // self.vectors

    @property
    def across(self) -> int:
        """Output columns of a tile."""
        return tile_size(self.window.out_width, self.pixels)

    @property
    def lines(self) -> int:
        """Output rows of a tile."""
        return tile_size(self.window.out_height, max(1, self.pixels // self.across))

    @property
    def splits(self) -> int:
        """Interleaved sums of one output."""
        return max(1, UNIT // (self.lines * self.across * self.vectors))

    @property
    def copies(self) -> bool:
        """Whether a tile's data is copied to the stack."""
        return not self.window.pointwise

    @property
    def pitch(self) -> int:
        """Values from one pixel of the tile's data to the next."""
        return padded(self.channels) + (LANES if self.copies else 0)

    @property
    def taken(self) -> tuple[int, int]:
        """Rows and columns of data that a tile reads."""
        window = self.window
        sizes = (self.lines, self.across)
        down, across = (
            (sizes[i] - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1
            for i in (0, 1)
        )
        return down, across

    @property
    def copied(self) -> int:
        """Values of a tile's data."""
        return self.taken[0] * self.taken[1] * self.pitch

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles per column and row of an image."""
        return -(-self.window.out_height // self.lines), -(-self.window.out_width // self.across)

    @property
    def apart(self) -> bool:
        """Whether every block of output channels is a task of its own: few pixels."""
        window = self.window
        return window.batch * window.out_height * window.out_width <= FEW_ROWS

    def tasks(self) -> int:
        """Length of the parallel loop: tiles of pixels, times blocks where these are tasks."""
        down, across = self.grid
        return self.window.batch * down * across * (self.blocks if self.apart else 1)

    def macs(self) -> int:
        """Multiply-accumulates with weights that are kept."""
        pixels = self.window.batch * self.window.out_height * self.window.out_width
        return self.entries * self.vectors * LANES * pixels

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        window = self.window
        data = window.batch * window.height * window.width * padded(self.channels)
        out = int(np.prod(self.out_shape)) * (1 + self.after.residual)
        return 4 * (data + out + self.entries * self.vectors * LANES) + 2 * self.entries


def spec_of(window: Window, weight: Floats, after: After, vectors: int, isa: Isa) -> SparseBlocksF32Spec:
    """Return the spec of a layer with weights [OC, C, kh, kw]."""
    out_channels, channels = weight.shape[:2]
    pixels = min(MOST_PIXELS, max(1, accumulators(isa) // vectors))
    spec = SparseBlocksF32Spec(flattened(window), channels, out_channels, 0, vectors, pixels, after)
    turns = -(-kept(weight, vectors).reshape(spec.blocks, -1).sum(axis=1) // UNIT)
    return replace(spec, entries=max(1, int(turns.sum())) * UNIT)


def kept(weight: Floats, vectors: int) -> npt.NDArray[np.bool_]:
    """Return [blocks, C, kh, kw]: the taps that some output of a block has; the last block may be smaller."""
    wide = vectors * LANES
    starts = np.arange(0, len(weight), wide)
    found: npt.NDArray[np.bool_] = np.logical_or.reduceat(weight != 0, starts, axis=0)
    return found


def supports(spec: SparseBlocksF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if reason := spec.window.refusal():
        return Verdict.no(reason)
    if groups_of(spec.out_channels) % spec.vectors:
        return Verdict.no(f"{groups_of(spec.out_channels)} vectors of channels in blocks of {spec.vectors}")
    if spec.copies and spec.copied * 4 > STACK_BYTES:
        return Verdict.no(f"a tile of {spec.copied * 4} bytes, at most {STACK_BYTES}")
    if spec.channels > 1 << 16:
        return Verdict.no(f"{spec.channels} channels, at most {1 << 16}")
    return Verdict.yes()


def pack(spec: SparseBlocksF32Spec, weight: Floats, bias: Floats | None = None) -> list[Array]:
    """Return the constants of weights [OC, C, kh, kw]: weights, places, pointers, and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    block, c, r, s = np.nonzero(kept(weight, spec.vectors))
    counts = np.bincount(block, minlength=spec.blocks)
    ends = np.concatenate([[0], np.cumsum(-(-counts // UNIT))])
    dilations = spec.window.dilations
    places = (r * dilations[0] * spec.taken[1] + s * dilations[1]) * spec.pitch + c
    order = np.lexsort((places, block))
    inside = np.arange(len(order)) - np.concatenate([[0], np.cumsum(counts)])[block[order]]
    at = ends[block[order]] * UNIT + inside
    where, values = (
        np.zeros(spec.entries, np.uint16),
        np.zeros((spec.entries, spec.vectors * LANES), np.float32),
    )
    wide = np.zeros((padded(spec.out_channels), *weight.shape[1:]), np.float32)
    wide[: len(weight)] = weight
    rows = wide.reshape(spec.blocks, -1, *weight.shape[1:]).transpose(0, 2, 3, 4, 1)
    where[at], values[at] = places[order], rows[block, c, r, s][order]
    constants: list[Array] = [values.reshape(-1), where, ends.astype(np.int32)]
    return constants if bias is None else [*constants, padded_vector(bias)]


def build(spec: SparseBlocksF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `SparseBlocksF32Spec`, then `begin` and `end`."""
    from .sparse_blocks_f32_tir import Writer

    return Writer(spec).module()
