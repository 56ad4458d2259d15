"""Matrix product of one- and two-bit values by popcount: a 1x1 convolution whose row of pixels is the batch.

Tile: up to 14 samples x 32 outputs, one task per 32 outputs. For one sample every weight vector is used
once, so the kernel runs at the speed of reading weights; they lie in one stream in the order in which they
are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .....compiler.backend import Verdict
from . import conv_binary
from .bits import Code, Integers
from .conv_binary import Array, ConvBinarySpec, Output

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


@dataclass(frozen=True)
class DenseBinarySpec:
    """Static shape of `[batch, channels] x [out_channels, channels]`."""

    batch: int
    channels: int
    out_channels: int
    data: Code = Code.BINARY
    weight: Code = Code.BINARY
    output: Output = Code.BINARY

    @property
    def conv(self) -> ConvBinarySpec:
        """The same layer as a convolution; its buffers have shape [1, 1, batch, ...]."""
        return ConvBinarySpec(
            batch=1,
            height=1,
            width=self.batch,
            channels=self.channels,
            out_channels=self.out_channels,
            kernel=(1, 1),
            data=self.data,
            weight=self.weight,
            output=self.output,
        )

    def tasks(self) -> int:
        """Length of the parallel loop: blocks of 32 outputs."""
        return self.conv.tasks()

    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        return self.conv.macs()

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        return self.conv.bytes()


def supports(spec: DenseBinarySpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    return conv_binary.supports(spec.conv, isa)


def pack(
    spec: DenseBinarySpec,
    weight: Integers,
    *,
    thresholds: Array | None = None,
    constants: Sequence[Array] = (),
    sign: Array | None = None,
) -> list[Array]:
    """Return the constants in the kernel's layout; `weight` is [OC, C], the rest as in `conv_binary.pack`."""
    wide = weight[:, :, None, None]
    return conv_binary.pack(spec.conv, wide, thresholds=thresholds, constants=constants, sign=sign)


def build(spec: DenseBinarySpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel; parameters as in `conv_binary`."""
    return conv_binary.build(spec.conv, isa)
