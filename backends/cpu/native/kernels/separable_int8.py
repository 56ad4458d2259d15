"""A quantized depthwise convolution and the pointwise one behind it, the image between them in L1.

Arithmetic, layouts and constants are those of `depthwise_int8` and `conv_int8`, whose code runs here for a
block of output rows at a time: the depthwise rows go to a buffer on the stack of at most `BUFFER_BYTES`, from
where the pointwise convolution reads them. The last block is moved back onto the image: rows under two blocks
are computed twice.

Predicted: the image between is neither written to L2 nor read from it, 2 bytes of 32 per cycle for every
byte, 6 us of 85 at 32 channels of 112x112. Measured on one Zen 4 core inside MobileNetV2, two kernels and
this one: 32 to 16 channels at 112x112 85 and 73 us, 96 to 24 at 56x56 90 and 90, 144 to 24 at 56x56 148 and
150, 384 to 64 at 14x14 31 and 33, 960 to 160 at 7x7 41 and 49 (rows twice, weights read per block); inside
kws01, 64 to 64 at 25x5, 3.24 and 3.10. So it is taken (`pays`) where the image between is one block, or too
large to belong in L2 beside what else is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .....compiler.backend import Verdict
from . import conv_int8, depthwise_int8
from .conv_int8 import ConvInt8Spec
from .depthwise_int8 import DepthwiseInt8Spec

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

BUFFER_BYTES = 20 * 1024
LARGE_BYTES = 256 * 1024


@dataclass(frozen=True)
class SeparableInt8Spec:
    """A depthwise convolution followed by a pointwise one.

    Parameters of the kernel: x, residual (only with one), constants of the depthwise and of the pointwise
    convolution, y, begin, end.

    Attributes:
        first: the depthwise convolution; its output has no border.
        second: the pointwise one, whose input is the first's output.
    """

    first: DepthwiseInt8Spec
    second: ConvInt8Spec

    @property
    def flat(self) -> bool:
        """Whether the pointwise convolution sees one column of pixels."""
        return self.second.view is not self.second

    @property
    def rows(self) -> int:
        """Output rows of a block: as many as fit the buffer, of those the least computed twice; 0: none."""
        image, best, least = self.first.y, 0, float("inf")
        for rows in range(self._fewest, image.height + 1):
            if rows * image.row > BUFFER_BYTES:
                break
            blocks = -(-image.height // rows)
            cost = blocks * (self._work(rows) + 0.05)
            if cost <= least:
                best, least = rows, cost
        return best

    @property
    def _fewest(self) -> int:
        tile, width = self.second.view.tile.rows, self.first.y.width
        return max(self.first.tile[0], -(-tile // width) if self.flat else tile)

    def _work(self, rows: int) -> float:
        """Return the rows that a block computes with whole tiles, on average of the two convolutions."""
        own, width = self.first.tile[0], self.first.y.width
        tile = self.second.view.tile.rows / (width if self.flat else 1)
        return 0.3 * -(-rows // own) * own + 0.7 * -(-rows // tile) * tile

    def tasks(self) -> int:
        """Return the number of tasks: blocks of rows."""
        return self.first.y.batch * -(-self.first.y.height // self.rows)

    def macs(self) -> int:
        """Return the multiplications that the model asks for."""
        return self.first.macs() + self.second.macs()

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        return self.first.bytes() + self.second.bytes() - 2 * self.first.y.bytes


def supports(spec: SeparableInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    first, second = spec.first, spec.second
    if first.y != second.x or any(first.y.border):
        return Verdict.no("the image between must be the same for both, without border")
    if second.kernel != (1, 1) or second.strides != (1, 1) or second.group != 1:
        return Verdict.no("a pointwise convolution of stride 1 must follow")
    if second.channels_outer:
        return Verdict.no("large weights would be read again for every block of rows")
    if not spec.rows:
        return Verdict.no(f"{first.y.row} bytes per row between, the buffer has {BUFFER_BYTES}")
    verdict = depthwise_int8.supports(first, isa)
    return conv_int8.supports(second, isa) if verdict.ok else verdict


def pays(spec: SeparableInt8Spec) -> bool:
    """Tell whether the joined kernel is as fast as two or faster; see the measurements above."""
    image = spec.first.y
    return spec.rows == image.height or image.plane >= LARGE_BYTES


def build(spec: SeparableInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .separable_int8_emit import build_separable

    return build_separable(spec, isa)
