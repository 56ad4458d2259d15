"""Convolution and matrix product in float32 with weights of which most are zero, wherever the zeros are.

    out[n, y, x, o] = after(sum over nonzero weights w(o, c, r, s) of w * data[n, iy, ix, c])

Layouts: data and out as conv_f32. Weights are rows of nonzeros as in CSR, one row per block of input channels
and output channel: values float32, places uint16 (in units of 8 bytes within the tile of data), pointers.

A nonzero is multiplied with a vector over pixels, so a tile of data is turned first: `lines` x `across`
output pixels of `block` channels lie on the stack as [c, s, input line, across], with one copy per kernel
column `s`, so that every tap of every pixel is found at one distance. All accumulators of the tile, up to 8
vectors, stay in registers over one row of nonzeros. Sums of 16 output channels are turned back and stored
with the epilogue. With several blocks of channels, sums wait in scratch memory between them: the tile of data
then stays in the first-level cache, which is worth more, for an FMA reads a vector from there.

An FMA needs a vector of data, and Zen 4 loads one per cycle: with a place and a value per 4 to 8 vectors 75
to 85 % of the peak (58 GMAC/s) is the bound, turning left out. Measured on one core with 90 % zeros, GMAC/s
of nonzeros: 512x512x512 30, 3x3 128->256 at 16x16 39, 64->64 at 56x56 32, 512->512 at 7x7 30; 5.1 to 6.5
times as fast as dense code of onnxruntime 1.31.1. A product of 576 columns into 64 turns as long as it
multiplies: 20, 3.5 times (docs/results/cpu_sparse_layers.md). Turning takes 115 cycles for 16 x 16 values.
Tried instead of its 64 shuffles: quarter vectors inserted from memory and 32 shuffles (no faster), and data
fetched ahead (same).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .gemm_f32 import accumulators
from .window import LANES, Window, groups_of, padded, padded_vector

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

# Nonzeros per turn of the innermost loop; rows are filled up with zeros.
UNROLLED = 2
STACK_BYTES = 160 << 10
HALF = 8


@dataclass(frozen=True)
class Tile:
    """What one task computes at a time.

    Attributes:
        lines: output rows.
        across: output columns, 8 or a multiple of 16.
        block: input channels, a multiple of 16.
    """

    lines: int
    across: int
    block: int

    @property
    def vectors(self) -> int:
        """Vectors of pixels."""
        return self.lines * self.across // LANES


@dataclass(frozen=True)
class Phase:
    """Input lines that lie one behind the other in the tile: every `strides[0]`-th one.

    Attributes:
        first: offset of its first input line from the first that the tile reads.
        start: its first line in the tile.
        count: its lines.
    """

    first: int
    start: int
    count: int


@dataclass(frozen=True)
class SparseF32Spec:
    """Static shape; parameters: data, residual?, values, places, pointers, bias?, out, scratch?.

    Attributes:
        entries: nonzeros, filled up, as `pack` makes them.
    """

    window: Window
    channels: int
    out_channels: int
    entries: int
    tile: Tile
    after: After = field(default_factory=After)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output in memory."""
        window = self.window
        return window.batch, window.out_height, window.out_width, padded(self.out_channels)

    @property
    def blocks(self) -> int:
        """Blocks of input channels."""
        return -(-padded(self.channels) // self.tile.block)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles per column and row of an image."""
        window, tile = self.window, self.tile
        return -(-window.out_height // tile.lines), -(-window.out_width // tile.across)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Input lines by their remainder, of those remainders that some kernel row reads."""
        stride, dilation = self.window.strides[0], self.window.dilations[0]
        rows = [r * dilation for r in range(self.window.kernel[0])]
        found: list[Phase] = []
        whole = max(1, LANES // self.tile.across)
        for first in sorted({row % stride for row in rows}):
            count = max(row // stride for row in rows if row % stride == first) + self.tile.lines
            start = found[-1].start + found[-1].count if found else 0
            found.append(Phase(first, start, -(-count // whole) * whole))
        return tuple(found)

    @property
    def plane(self) -> int:
        """Values of one channel and kernel column in the tile."""
        return sum(phase.count for phase in self.phases) * self.tile.across

    @property
    def turned(self) -> int:
        """Values of the tile of data."""
        return min(self.tile.block, padded(self.channels)) * self.window.kernel[1] * self.plane

    @property
    def slot(self) -> int:
        """Values that wait for the next block of channels, of one task."""
        return padded(self.out_channels) * self.tile.vectors * LANES

    @property
    def scratch(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the float32 scratch buffers behind the output."""
        return ((self.tasks() * self.slot,),) if self.blocks > 1 else ()

    def tasks(self) -> int:
        """Length of the parallel loop: tiles of pixels."""
        down, across = self.grid
        return self.window.batch * down * across

    def macs(self) -> int:
        """Multiply-accumulates with weights that are not zero."""
        return self.entries * self.window.batch * self.window.out_height * self.window.out_width

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        window = self.window
        data = window.batch * window.height * window.width * padded(self.channels)
        out = int(np.prod(self.out_shape)) * (1 + self.after.residual)
        return 4 * (data + out) + 6 * self.entries


def flattened(window: Window) -> Window:
    """Return a pointwise window as one long row of pixels: the memory is the same."""
    if not window.pointwise:
        return window
    return Window(1, 1, window.batch * window.height * window.width, (1, 1))


def spec_of(window: Window, weight: Floats, after: After, tile: Tile) -> SparseF32Spec:
    """Return the spec of a layer with weights [OC, C, kh, kw]."""
    out_channels, channels = weight.shape[:2]
    spec = SparseF32Spec(flattened(window), channels, out_channels, 0, tile, after)
    turns = -(-_counts(spec, weight) // UNROLLED)
    return replace(spec, entries=max(1, int(turns.sum())) * UNROLLED)


def supports(spec: SparseF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if reason := spec.window.refusal():
        return Verdict.no(reason)
    tile = spec.tile
    if (
        (tile.across % LANES and tile.across != HALF)
        or tile.lines * tile.across % LANES
        or tile.block % LANES
    ):
        return Verdict.no(f"tiles of {tile.lines} x {tile.across} pixels and {tile.block} channels")
    if tile.vectors > accumulators(isa):
        return Verdict.no(f"{tile.vectors} vectors of pixels, at most {accumulators(isa)}")
    if spec.turned * 4 > STACK_BYTES:
        return Verdict.no(f"a tile of {spec.turned * 4} bytes, at most {STACK_BYTES}")
    return Verdict.yes()


def pack(spec: SparseF32Spec, weight: Floats, bias: Floats | None = None) -> list[Array]:
    """Return the constants of weights [OC, C, kh, kw]: values, places, pointers, and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    counts = _counts(spec, weight)
    ends = np.concatenate([[0], np.cumsum(-(-counts // UNROLLED))])
    o, c, r, s = np.nonzero(weight)
    row = c // spec.tile.block * padded(spec.out_channels) + o
    places = _places(spec, c % spec.tile.block, r, s)
    order = np.lexsort((places, row))
    inside = np.arange(len(order)) - np.concatenate([[0], np.cumsum(counts)])[row[order]]
    at = ends[row[order]] * UNROLLED + inside
    values, where = np.zeros(spec.entries, np.float32), np.zeros(spec.entries, np.uint16)
    values[at], where[at] = weight[o, c, r, s][order], places[order]
    constants: list[Array] = [values, where, ends.astype(np.int32)]
    return constants if bias is None else [*constants, padded_vector(bias)]


def _counts(spec: SparseF32Spec, weight: Floats) -> npt.NDArray[np.int64]:
    """Return the nonzeros by block of channels and output channel, padding channels included."""
    counts = np.zeros((spec.blocks, padded(spec.out_channels)), np.int64)
    o, c = np.nonzero(weight)[:2]
    np.add.at(counts, (c // spec.tile.block, o), 1)
    return counts.reshape(-1)


def _places(
    spec: SparseF32Spec, c: npt.NDArray[np.int64], r: npt.NDArray[np.int64], s: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return where taps lie in the tile of data, in units of two values."""
    stride, dilation = spec.window.strides[0], spec.window.dilations[0]
    start = {phase.first: phase.start for phase in spec.phases}
    lines = np.array(
        [start[k * dilation % stride] + k * dilation // stride for k in range(spec.window.kernel[0])]
    )
    planes = (c * spec.window.kernel[1] + s) * spec.plane
    found: npt.NDArray[np.int64] = (planes + lines[r] * spec.tile.across) // 2
    return found


def build(spec: SparseF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `SparseF32Spec`, then `begin` and `end`."""
    from .sparse_f32_tir import Writer

    return Writer(spec).module()


def groups(spec: SparseF32Spec, last: bool) -> int:
    """Return the vectors of channels of a block."""
    whole = spec.tile.block // LANES
    return groups_of(spec.channels) - (spec.blocks - 1) * whole if last else whole
