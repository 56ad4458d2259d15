"""Quantized pooling of uint8 images: maximum, average, global average.

The maximum of bytes is the byte of the maximum where input and output have the same scale and zero point;
taps beyond the image are moved onto its edge, which lies under the same window. The average is computed as
docs/semantics.md says (dequantize, mean in float64, quantize), from the int32 sum of the bytes where that
provably gives the same (`average_formula`). One row of outputs per task; 64 bytes of channels at a time for
the maximum, 16 for averages. Bound: one load per tap; average by sums two instructions, in float64 eight,
per tap and 16 channels. Measured: global average of 25x5x64 in 0.89 us in float64 (6.5 cycles per tap and
16 channels), 0.20 by sums; of 8x8x64 in 0.46 and, by sums that are looked at for ties, 0.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .....compiler.backend import Array, Verdict
from .average_formula import AverageFormula
from .int8_tiles import Image

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


@dataclass(frozen=True)
class PoolInt8Spec:
    """Pooling of fixed shape.

    Parameters of the kernel: x, y (uint8 [bytes] each), begin, end.

    Attributes:
        x, y: images of the same channels and pitch. What stands in the border of `x` does not matter.
        kernel, strides: height, width; the global average has the image's size as kernel.
        pads: top, left.
        average: None for the maximum.
        count_pads: padding counts in the average (every window then counts kernel height x width).
        low, high: limits of the output byte.
        zero: what the border of `y` is filled with, the zero point of the output.
    """

    x: Image
    y: Image
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    average: AverageFormula | None = None
    count_pads: bool = False
    zero: int = 0
    low: int = 0
    high: int = 255

    def tasks(self) -> int:
        """Return the number of tasks: rows of outputs."""
        return self.y.batch * self.y.height

    @property
    def inside(self) -> bool:
        """Whether no window leaves the image."""
        ends = [
            (o - 1) * s + k - p
            for o, s, k, p in zip(
                (self.y.height, self.y.width), self.strides, self.kernel, self.pads, strict=True
            )
        ]
        return self.pads == (0, 0) and ends[0] <= self.x.height and ends[1] <= self.x.width

    def macs(self) -> int:
        """Return 0: there are no products to count."""
        return 0

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        return self.x.bytes + self.y.bytes


def supports(spec: PoolInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.x.pitch != spec.y.pitch or spec.x.pitch % 16:
        return Verdict.no(f"pixels of whole vectors are needed, got {spec.x.pitch} and {spec.y.pitch} bytes")
    if any(p >= k for p, k in zip(spec.pads, spec.kernel, strict=True)):
        return Verdict.no(f"padding {spec.pads} leaves windows of {spec.kernel} without a pixel")
    last = [
        (o - 1) * s - p
        for o, s, p in zip((spec.y.height, spec.y.width), spec.strides, spec.pads, strict=True)
    ]
    if last[0] >= spec.x.height or last[1] >= spec.x.width:
        return Verdict.no(f"the last window starts at {last}, behind the image")
    summed = spec.average is not None and (spec.average.by_sum or spec.average.limit > 0)
    if spec.average and summed and not (spec.inside and _size(spec) == spec.average.count):
        return Verdict.no("the average by sums is for windows of one size; make its formula with count=0")
    return Verdict.yes()


def _size(spec: PoolInt8Spec) -> int:
    return spec.kernel[0] * spec.kernel[1]


def pack(spec: PoolInt8Spec) -> list[Array]:
    """Return no constants: the scales stand in the code."""
    return []


def build(spec: PoolInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .pool_int8_emit import build_pool

    return build_pool(spec, isa)
