"""Quantized depthwise convolution, uint8 x int8 -> int32 -> uint8, with the activation in the epilogue.

Arithmetic, images, borders and zero points are those of `conv_int8`. Four rows of the window at a time are
interleaved byte by byte (8 shuffles for 64 bytes of 4 rows), which makes the quads of the dot instruction:
one dot per 16 outputs and column of the window. Interleaved columns are shared by outputs beside each
other, and, for windows of up to 3 rows at stride 1, by two output rows (their weights stand one byte
apart). The shuffles leave lanes in the order in which the saturating packs of the epilogue want them.

A chunk of 64 bytes is 64 channels of a pixel, or, with 16 or 32 channels and strides of 1 or 2, 4 or 2
pixels: no lanes are lost on the narrow layers of small models. Bound: about 35 vector instructions per 64
outputs of a 3x3 window, 12 of them dots: 60 GMAC/s at one per cycle. Measured on one Zen 4 core: 71 to 79
on 25x5x64, 12x12x64 and 24x24x32 (some of the shuffles and packs go beside a dot), 67 on 6x6x128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Array, Verdict
from .conv_int8 import ConvInt8Spec
from .conv_int8 import supports as conv_supports
from .int8_tiles import Image, interleaved, is_small

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

CHUNK = 64
ACCUMULATORS = 24


@dataclass(frozen=True)
class DepthwiseInt8Spec:
    """A depthwise convolution of fixed shape.

    Parameters of the kernel: x [x.bytes] uint8, weights int8, bias int32, factor float32, y [y.bytes] uint8,
    begin, end.

    Attributes:
        x, y: images of the same channels and pitch.
        kernel, strides, dilations: height, width.
        pads: top, left; at most the border of `x`.
        zero: output zero point.
        small: every factor is below 1/2, so that rounding needs no care for int32 (see `is_small`).
        low, high: limits of the output byte.
    """

    x: Image
    y: Image
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    zero: int = 0
    low: int = 0
    high: int = 255
    small: bool = False

    def tasks(self) -> int:
        """Return the number of tasks: blocks of output rows."""
        return self.y.batch * -(-self.y.height // self.tile[0])

    @property
    def spread(self) -> int:
        """Pixels per chunk; 1 where a chunk is channels of one pixel."""
        pixels = CHUNK // self.y.pitch if self.y.pitch in (16, 32) else 1
        return pixels if self.strides[1] <= 2 and self.y.width >= pixels else 1

    @property
    def blocks(self) -> int:
        """Chunks that the channels of a pixel need."""
        return -(-self.y.pitch // CHUNK)

    @property
    def shared(self) -> bool:
        """Whether four interleaved rows serve two output rows."""
        return self.kernel[0] <= 3 and self.strides[0] == 1 and self.dilations[0] == 1 and self.y.height > 1

    @property
    def quads(self) -> int:
        """Groups of four window rows."""
        return -(-self.kernel[0] // 4)

    @property
    def tile(self) -> tuple[int, int]:
        """Output rows and chunks beside each other that are computed together."""
        best, least = (1, 1), math.inf
        for rows in (1, 2) if self.shared else (1,):
            for columns in range(1, min(self.y.width // self.spread, ACCUMULATORS // (4 * rows)) + 1):
                count = -(-self.y.height // rows) * -(-self.y.width // (columns * self.spread))
                cost = count * self._cycles(rows, columns)
                if cost < least:
                    best, least = (rows, columns), cost
        return best

    def _cycles(self, rows: int, columns: int) -> float:
        shuffles = 8 * self.quads * len(self.taps(columns))
        return shuffles + rows * columns * (4 * self.kernel[1] * self.quads + 19) + 15

    def taps(self, columns: int) -> dict[int, list[tuple[int, int]]]:
        """Return input pixel -> (chunk, window column) pairs that read it, for `columns` chunks."""
        found: dict[int, list[tuple[int, int]]] = {}
        for chunk in range(columns):
            for s in range(self.kernel[1]):
                at = chunk * self.spread * self.strides[1] + s * self.dilations[1]
                found.setdefault(at, []).append((chunk, s))
        return dict(sorted(found.items()))

    def macs(self) -> int:
        """Return the multiplications that the model asks for."""
        y = self.y
        return y.batch * y.height * y.width * y.channels * self.kernel[0] * self.kernel[1]

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        return self.x.bytes + self.y.bytes + self.kernel[0] * self.kernel[1] * self.y.pitch


def supports(spec: DepthwiseInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.x.channels != spec.y.channels or spec.x.pitch != spec.y.pitch:
        return Verdict.no(f"one output per channel is needed, got {spec.x.channels} to {spec.y.channels}")
    return conv_supports(
        ConvInt8Spec(spec.x, spec.y, spec.kernel, spec.strides, spec.dilations, spec.pads), isa
    )


def pack(
    spec: DepthwiseInt8Spec,
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    factor: npt.NDArray[np.float32],
    x_zero: int,
) -> list[Array]:
    """Return weights, bias and factors in kernel layout.

    Args:
        spec: the convolution.
        weight: int8 [C, 1, kh, kw].
        bias: int32 [C].
        factor: float32 [C].
        x_zero: zero point of the input; folded into the bias.
    """
    assert is_small(factor) or not spec.small, "factors beyond 1/2 in a kernel without a cap"
    folded = bias.astype(np.int64) - x_zero * weight.astype(np.int64).sum((1, 2, 3))
    channels = _lane_channels(spec)
    kh, kw = spec.kernel
    # Window rows one later for the second output row of a pair; as many rows as the quads have.
    sets = 2 if spec.tile[0] == 2 else 1
    rows = np.zeros((spec.y.channels + 1, sets, spec.quads * 4, kw), np.int8)
    for second in range(sets):
        rows[:-1, second, second : second + kh] = weight[:, 0]
    quads = rows.reshape(spec.y.channels + 1, sets, spec.quads, 4, kw)[channels]
    lanes = quads.reshape(spec.blocks, 4, 16, sets, spec.quads, 4, kw)
    packed = lanes.transpose(0, 3, 4, 6, 1, 2, 5)
    wide = (np.append(folded & 0xFFFFFFFF, 0).astype(np.uint32).view(np.int32), np.append(factor, 0))
    return [np.ascontiguousarray(packed).ravel(), wide[0][channels], wide[1].astype(np.float32)[channels]]


def _lane_channels(spec: DepthwiseInt8Spec) -> list[int]:
    """Return the channel of every lane of every chunk; lanes that nobody reads get a channel of zeros."""
    nothing, found = spec.y.channels, list[int]()
    for block in range(spec.blocks):
        for position in interleaved(4):
            channel = position % spec.y.pitch if spec.spread > 1 else block * CHUNK + position
            found.append(min(channel, nothing))
    return found


def build(spec: DepthwiseInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .depthwise_int8_emit import build_depthwise

    return build_depthwise(spec, isa)
