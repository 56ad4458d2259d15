"""Quantized matrix product, [rows, K] uint8 x [M, K] int8 -> [rows, M] uint8, activation included.

Arithmetic and the folding of zero points are those of `conv_int8`. Many rows are a convolution of as many
pixels with a 1x1 window, and are built as such. Few rows are bound by reading the weights, one vector of 64
bytes for `rows` dots: they lie as [groups, K / 4, vectors, 16, 4], so that a group of up to 8 vectors of
outputs is one stream, and with few outputs K is cut into parts that have accumulators of their own (a dot
waits 4 cycles for the one before it). Bound: reads of L1 64 bytes, of L2 32 bytes per cycle. Measured for
one row on one Zen 4 core: 784x512 111 and 640x128 114 GB/s (L2 gives 117), 128x128 184 (L1 gives 217).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Array, Verdict
from . import conv_int8
from .conv_int8 import ConvInt8Spec
from .int8_tiles import REGISTERS, image, interleaved, is_small

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

FEW_ROWS = 3
LONG = 64


@dataclass(frozen=True)
class GemmInt8Spec:
    """A matrix product of fixed shape.

    Parameters of the kernel: x [rows * x_pitch] uint8, weights int8, bias int32, factor float32,
    y [rows * Mp] uint8 with Mp = outputs rounded up to 16, begin, end.

    Attributes:
        rows: the batch.
        terms: K.
        outputs: M.
        zero: output zero point.
        low, high: limits of the output byte.
        small: every factor is below 1/2, so that rounding needs no care for int32 (see `is_small`).
        pitch: bytes from one row of x to the next; 0 for K rounded up to 16.
        real: limits of a float result `clip(float32(sum) * factor + offset)`, for few rows; y is float32
            then, and the constants end in `offset`, float32. None for bytes.
        registers: vectors of 16 sums and weights that a tile may hold (`int8_tiles.registers_of`).
    """

    rows: int
    terms: int
    outputs: int
    zero: int = 0
    low: int = 0
    high: int = 255
    pitch: int = 0
    small: bool = False
    real: tuple[float, float] | None = None
    registers: int = REGISTERS

    @property
    def x_pitch(self) -> int:
        """Bytes from one row of x to the next."""
        return self.pitch or -(-self.terms // 16) * 16

    @property
    def vectors(self) -> int:
        """Vectors of 16 outputs."""
        return -(-self.outputs // 16)

    @property
    def group(self) -> int:
        """Vectors of outputs that are computed together."""
        most = 8 if self.rows == 1 else 4
        fitting = [g for g in range(1, most + 1) if self.vectors % g == 0]
        return max(fitting)

    @property
    def steps(self) -> int:
        """Dot steps of four bytes, a multiple of the parts; terms beyond K have zero weights."""
        return -(-self.terms // (4 * self.parts)) * self.parts

    @property
    def parts(self) -> int:
        """Pieces of K with accumulators of their own."""
        return 1 if self.terms < LONG else max(1, 8 // (self.group * self.rows))

    @property
    def convolution(self) -> ConvInt8Spec | None:
        """The product as a 1x1 convolution, None for few rows."""
        if self.rows <= FEW_ROWS:
            return None
        x = image(self.rows, 1, 1, self.terms, pitch=self.x_pitch)
        y = image(self.rows, 1, 1, self.outputs)
        return ConvInt8Spec(
            x, y, (1, 1), zero=self.zero, low=self.low, high=self.high, small=self.small,
            registers=self.registers,
        )  # fmt: skip

    def tasks(self) -> int:
        """Return the number of tasks."""
        return self.convolution.tasks() if self.convolution else self.vectors // self.group

    def macs(self) -> int:
        """Return the multiplications that the model asks for."""
        return self.rows * self.terms * self.outputs

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        return self.rows * (self.x_pitch + 16 * self.vectors) + self.vectors * self.steps * 64


def supports(spec: GemmInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.x_pitch < spec.terms:
        return Verdict.no(f"rows of {spec.terms} bytes lie {spec.x_pitch} bytes apart")
    if spec.real is not None and spec.rows > FEW_ROWS:
        return Verdict.no(f"float results of {spec.rows} rows, at most {FEW_ROWS}")
    return Verdict.yes()


def pack(
    spec: GemmInt8Spec,
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    factor: npt.NDArray[np.float32],
    x_zero: int,
    offset: npt.NDArray[np.float32] | None = None,
) -> list[Array]:
    """Return weights, bias and factors in kernel layout.

    Args:
        spec: the product.
        weight: int8 [M, K].
        bias: int32 [M].
        factor: float32 [M].
        x_zero: zero point of the input; folded into the bias.
        offset: float32 [M], added to float results.
    """
    assert is_small(factor) or not spec.small, "factors beyond 1/2 in a kernel without a cap"
    if spec.convolution:
        return conv_int8.pack(spec.convolution, weight[:, :, None, None], bias, factor, x_zero)
    lanes = 16 * spec.vectors
    order = list(range(lanes))
    if spec.real is None:
        order = [16 * spec.group * g + c for g in range(spec.tasks()) for c in interleaved(spec.group)]
    folded = bias.astype(np.int64) - x_zero * weight.astype(np.int64).sum(1)
    wide = np.zeros((lanes, spec.steps * 4), np.int8)
    wide[: spec.outputs, : spec.terms] = weight
    grouped = wide[order].reshape(spec.tasks(), spec.group, 16, spec.steps, 4).transpose(0, 3, 1, 2, 4)
    biases, factors = np.zeros(lanes, np.uint32), np.zeros(lanes, np.float32)
    biases[: spec.outputs], factors[: spec.outputs] = folded & 0xFFFFFFFF, factor
    packed: list[Array] = [grouped.ravel(), biases.view(np.int32)[order], factors[order]]
    if spec.real is None:
        return packed
    offsets = np.zeros(lanes, np.float32)
    offsets[: spec.outputs] = 0 if offset is None else offset
    return [*packed, offsets]


def build(spec: GemmInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .conv_int8_emit import build_conv
    from .gemm_int8_emit import build_gemv

    return build_conv(spec.convolution, isa) if spec.convolution else build_gemv(spec, isa)
