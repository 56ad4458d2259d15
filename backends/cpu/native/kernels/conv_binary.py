"""Convolution of one- and two-bit values by popcount: bit planes in, bit planes, int32 or float32 out.

Parameters: data, [residuals], weights, [counts], [thresholds | constants of the operations, [limits, signs]],
[out], [bits], begin, end.

    dot[n, y, x, o] = sum over r, s, c of
        data[n, y*sh + r*dh - top, x*sw + s*dw - left, c] * weight[o, c, r, s]

Output codes count thresholds: value = least value + #{i : dot >= thresholds[i, o]}. A negative BatchNorm
scale costs nothing: `thresholds.fold` negates the channel's weights instead. A real output is a list of
operations on the sum (real_end.py), residual adds among them; its bits, compared with float32 thresholds,
may be a second output or the only one.

Padding is exact zero padding: taps outside the data are left out, and the constant that turns mismatches
into a dot product (K - 2 * mismatches) counts only the taps inside. Models that pad with -1 or +1 pad their
bits first.

Popcounts per word of 32 channels: 1 for binary x binary, popcount(a ^ w), and for binary data x ternary
weights, popcount(m & (a ^ w)) with m = the weight is not zero: how many of a tap's weights are not zero is a
constant (`counts` [OC/32, kh, kw, 32] int32), added once per tile; 2 with ternary data,
popcount(m) - 2 * popcount(m & (a ^ w)) with m = both are not zero; 4 for two-bit x two-bit, the AND of all
pairs of planes.

Layouts: data [N, H, W, words * planes] uint32 (plane innermost, see bits.py); weights [OC/32, kh, kw, words,
planes, 32] uint32, one stream that is read in order; codes out [N, OH, OW, words * planes]; int32 and float32
out, and residuals, [N, OH, OW, OC up to 16].

Tile: up to 14 pixels of one row (8 with ternary weights on binary data) x 32 channels, 28 accumulators of 16
int32 lanes; with 2 weight vectors and one for the product that makes 31 of the 32 registers, and each weight
vector is loaded once per 14 uses.
Data words are broadcast by the XOR itself. Where padding touches pixels of a tile, the tile gets code of
its own that leaves these taps out; tiles with equal edges share a loop. One task is one output row of one
block of 32 channels, blocks outermost: a block's weights (at most 18 KiB for 512 channels) stay in the
first-level cache for all rows.

Share of the roof: docs/results/cpu_binary_layers.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .bits import Code, Integers, words_of
from .bits import pack as pack_bits
from .real_end import RealEnd, pack_constants, pack_limits

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Array = npt.NDArray[np.generic]
Output = Code | RealEnd | Literal["int32"]

LANES = 32
MAX_TAPS_PER_ROW = 16  # taps of a row are unrolled in tiles at the edges
EXACT_FLOAT = 1 << 24
ALWAYS, NEVER = -(2**30), 2**30  # thresholds below and above every sum
# What makes the channels beyond the last one 0 in every plane: how many thresholds they always reach.
_REACHED_BY_SPARE = {Code.BINARY: 0, Code.TERNARY: 1, Code.INT2: 2, Code.UINT2: 0}


@dataclass(frozen=True)
class ConvBinarySpec:
    """Static shape of one convolution; `pads` is (top, left, bottom, right)."""

    batch: int
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    data: Code = Code.BINARY
    weight: Code = Code.BINARY
    output: Output = Code.BINARY

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        extent = (self.kernel[0] - 1) * self.dilations[0] + 1
        return (self.height + self.pads[0] + self.pads[2] - extent) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        extent = (self.kernel[1] - 1) * self.dilations[1] + 1
        return (self.width + self.pads[1] + self.pads[3] - extent) // self.strides[1] + 1

    @property
    def blocks(self) -> int:
        """Blocks of 32 output channels."""
        return -(-self.out_channels // LANES)

    @property
    def stored_channels(self) -> int:
        """Channels of an int32 or float32 output in memory: a multiple of 16."""
        return -(-self.out_channels // 16) * 16

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output in memory."""
        if isinstance(self.output, Code):
            return self.bits_shape(self.output)
        return self.batch, self.out_height, self.out_width, self.stored_channels

    def bits_shape(self, code: Code) -> tuple[int, int, int, int]:
        """Shape of an output of bits in memory."""
        last = words_of(self.out_channels) * code.planes
        return self.batch, self.out_height, self.out_width, last

    @property
    def out_dtype(self) -> str:
        """Type of the output in memory."""
        if isinstance(self.output, Code):
            return "uint32"
        return "int32" if self.output == "int32" else "float32"

    def tasks(self) -> int:
        """Length of the parallel loop: rows of the output times blocks of channels."""
        return self.blocks * self.batch * self.out_height

    def macs(self) -> int:
        """Multiply-accumulates of the layer, taps in the padding included."""
        rows = self.batch * self.out_height * self.out_width
        return rows * self.out_channels * self.channels * self.kernel[0] * self.kernel[1]

    def popcounts(self) -> int:
        """Popcounts of 32-bit lanes that the kernel really does."""
        rows, columns = _inside(self, 0), _inside(self, 1)
        words = rows * columns * words_of(self.channels) * self.products
        return self.batch * words * self.blocks * LANES

    @property
    def products(self) -> int:
        """Popcounts per pair of words: 1 for binary data, 2 for ternary, 4 for two-bit values."""
        if self.data is Code.BINARY and _signed_bits(self.weight):
            return 1
        return 2 if _signed_bits(self.data) and _signed_bits(self.weight) else 4

    @property
    def counted(self) -> bool:
        """Whether the kernel is told how many weights of each tap are not zero."""
        return self.data is Code.BINARY and self.weight is Code.TERNARY

    @property
    def reach(self) -> int:
        """Bound of every |dot|."""
        largest = [max(map(abs, code.values)) for code in (self.data, self.weight)]
        return largest[0] * largest[1] * self.channels * self.kernel[0] * self.kernel[1]

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        words = self.batch * self.height * self.width * words_of(self.channels) * self.data.planes
        taps = self.kernel[0] * self.kernel[1] * words_of(self.channels) * self.weight.planes
        reals = self.output.residuals if isinstance(self.output, RealEnd) else 0
        return 4 * (words + self.blocks * LANES * taps + (1 + reals) * int(np.prod(self.out_shape)))


def _signed_bits(code: Code) -> bool:
    return code in (Code.BINARY, Code.TERNARY)


def _inside(spec: ConvBinarySpec, axis: int) -> int:
    """Pairs (output position, tap) along an axis that read data, not padding."""
    count = (spec.out_height, spec.out_width)[axis]
    size = (spec.height, spec.width)[axis]
    positions = np.arange(count)[:, None] * spec.strides[axis] - spec.pads[axis]
    read = positions + np.arange(spec.kernel[axis])[None] * spec.dilations[axis]
    return int(((read >= 0) & (read < size)).sum())


def supports(spec: ConvBinarySpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`; any instruction set does (LLVM expands popcounts it lacks)."""
    return verdict(spec)


def verdict(spec: ConvBinarySpec) -> Verdict:
    """Say whether the kernel computes `spec`, on whatever CPU."""
    if min(spec.out_height, spec.out_width) < 1:
        return Verdict.no(f"the output is empty: {spec.out_height} x {spec.out_width}")
    if spec.kernel[1] > MAX_TAPS_PER_ROW:
        return Verdict.no(f"kernel width {spec.kernel[1]}, at most {MAX_TAPS_PER_ROW}")
    extents = [(k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilations, strict=True)]
    if any(pad >= extents[i % 2] for i, pad in enumerate(spec.pads)):
        return Verdict.no(f"pads {spec.pads} reach beyond the kernel {spec.kernel}")
    if _signed_bits(spec.data) is not _signed_bits(spec.weight):
        return Verdict.no(f"{spec.data.value} data with {spec.weight.value} weights; encode both in two bits")
    if spec.reach * 2 >= NEVER:
        return Verdict.no(f"sums reach {spec.reach}, at most {NEVER // 2}")
    return _real_verdict(spec) if isinstance(spec.output, RealEnd) else Verdict.yes()


def _real_verdict(spec: ConvBinarySpec) -> Verdict:
    if spec.reach >= EXACT_FLOAT:
        return Verdict.no(f"sums reach {spec.reach}; float32 holds integers below {EXACT_FLOAT}")
    return Verdict.yes()


def has_whole_blocks(out_channels: int) -> bool:
    """Say whether a real result can be compared with thresholds in the kernel: 32 channels at a time."""
    return out_channels % LANES == 0


def pack_weights(spec: ConvBinarySpec, weight: Integers) -> Array:
    """Pack integer weights [OC, C, kh, kw] into the kernel's layout.

    Raises:
        ValueError: a weight does not exist in `spec.weight`.
    """
    words = pack_bits(np.moveaxis(weight, 1, -1), spec.weight)
    spare = spec.blocks * LANES - spec.out_channels
    words = np.pad(words, [(0, spare)] + [(0, 0)] * 4)
    split = words.reshape(spec.blocks, LANES, *words.shape[1:])
    return np.ascontiguousarray(np.moveaxis(split, 1, -1))


def pack_counts(spec: ConvBinarySpec, weight: Integers) -> npt.NDArray[np.int32]:
    """Return how many weights [OC, C, kh, kw] of each tap are not zero, as [OC/32, kh, kw, 32]."""
    counts = np.zeros((spec.blocks * LANES, *spec.kernel), np.int32)
    counts[: spec.out_channels] = (weight != 0).sum(1)
    split = counts.reshape(spec.blocks, LANES, *spec.kernel)
    return np.ascontiguousarray(np.moveaxis(split, 1, -1))


def pack_thresholds(output: Code, thresholds: Integers) -> npt.NDArray[np.int32]:
    """Lay out thresholds [OC, levels - 1], ascending per channel, as [levels - 1, OC up to 32] int32."""
    channels, levels = thresholds.shape
    assert levels == output.thresholds, f"{output.value} has {output.thresholds} thresholds, got {levels}"
    assert (np.diff(thresholds, axis=1) >= 0).all(), "thresholds ascend"
    laid = np.full((levels, words_of(channels) * LANES), NEVER, np.int32)
    laid[: _REACHED_BY_SPARE[output]] = ALWAYS
    laid[:, :channels] = np.clip(thresholds, ALWAYS, NEVER).T
    return laid


def pack(
    spec: ConvBinarySpec,
    weight: Integers,
    *,
    thresholds: Array | None = None,
    constants: Sequence[Array] = (),
    sign: Array | None = None,
) -> list[Array]:
    """Return the constants in the kernel's layout and order.

    Args:
        spec: the layer.
        weight: integers [OC, C, kh, kw].
        thresholds: [OC, levels - 1], ascending: integers for codes as output, float32 for the bits of a
            real output.
        constants: of the operations of a real output, [OC] each.
        sign: [OC], what a real result is multiplied with before it is compared.

    Raises:
        ValueError: a weight does not exist in `spec.weight`.
    """
    packed = [pack_weights(spec, weight), *([pack_counts(spec, weight)] if spec.counted else [])]
    end = spec.output
    if isinstance(end, Code):
        assert thresholds is not None, "codes need thresholds"
        return [*packed, pack_thresholds(end, thresholds.astype(np.int64))]
    if isinstance(end, RealEnd):
        packed += pack_constants(end, constants, spec.blocks * LANES)
        if end.bits is not None:
            assert thresholds is not None, "bits need thresholds"
            packed += pack_limits(end, thresholds, sign)
    return packed


def build(spec: ConvBinarySpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel; `isa` decides nothing here, LLVM splits the vectors as the target needs."""
    from .conv_binary_tir import Writer

    verdict = supports(spec, isa)
    assert verdict.ok, verdict.reason
    return Writer(spec).module()
