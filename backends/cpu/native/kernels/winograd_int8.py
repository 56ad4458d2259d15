"""Quantized 3 x 3 convolution of stride 1 by Winograd's F(4x4, 3x3), to the last bit: 36 products for 144.

    576 Y = B [ sum over c of (F w F^T) * (D d D^T) ] B^T, d a 6 x 6 patch of bytes, Y 4 x 4 sums

(points 0, 1, -1, 2, -2, infinity) with whole numbers only: F carries the denominators 4, 6, 24 that usually
stand in the filter's transform, so that what comes out is 24^2 = 576 times the sums. D d D^T is within
+-17340 and F w F^T within +-18432, both fit 16 bits; products and sums are taken modulo 2^32. As 576 is
64 * 9, Y modulo 2^26 is (576 Y / 9) >> 6, with 1/9 modulo 2^32 an odd factor: exact while |Y| < 2^25, which
`fits` proves from the weights. Requantization, residual, borders and zero points are those of `conv_int8`.

A task is `block` patches: (1) their transforms V [36, patches, C] int16, vectors over channels; (2) per group
of output vectors 36 matrix products into M [36, patches, group] int32 by vpdpwssd (2 products of 16 bits per
lane: half of int8's rate, at a quarter of the products), register tiles of `tile` patches; (3) the transform
back and the epilogue. V and M lie on the stack, at most `STACK_BYTES`. The last patches of a row or column
are moved back onto the image, the last block onto the patches before it: computed twice, to the same bytes.

Bound, against the direct kernel's one dot per cycle: 2x without the transforms, that take about 5 cycles per
channel and 180 per vector of 16 outputs of a patch. Weights are 8 times as large (`MOST_WEIGHT_BYTES`).
Measured on one Zen 4 core, GMAC/s of the convolution as defined (direct dots have a roof of 233) and times as
fast as the direct kernel (predicted): 64 channels, 56x56 358, 1.59 (1.66); 128, 28x28 391, 1.71 (1.80); 256,
14x14 319, 1.39 (1.46); with a residual 64, 8x8 368, 1.6 (1.70); 32, 16x16 308, 1.4 (1.48); 16, 32x32 200,
1.06 (1.21).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Array, Verdict
from .conv_int8 import ConvInt8Spec
from .conv_int8 import supports as conv_supports
from .int8_tiles import is_small

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

POINTS = 36
STACK_BYTES = 360 * 1024
MOST_WEIGHT_BYTES = 5 << 20
MOST_SUM = 2**25
BEYOND_L2 = 900 * 1024

# The last row, infinity, is 3 of its 24; the rest, 8, is in the transform back: more leaves 16 bits.
FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 3]], np.int64)
DATA = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], np.int64
)  # fmt: skip
BACK = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 8]], np.int64
)
NINTH = pow(9, -1, 2**32)


@dataclass(frozen=True)
class WinogradInt8Spec:
    """A 3 x 3 convolution of stride 1; parameters are those of `conv_int8`, weights int16.

    Attributes:
        conv: what is computed.
    """

    conv: ConvInt8Spec

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row of an image."""
        return -(-self.conv.y.height // 4), -(-self.conv.y.width // 4)

    @property
    def patches(self) -> int:
        """Patches of the whole batch."""
        return self.conv.y.batch * self.grid[0] * self.grid[1]

    @property
    def group(self) -> int:
        """Vectors of 16 outputs that are computed together."""
        return next(g for g in (4, 3, 2, 1) if self.conv.vectors % g == 0)

    @property
    def tile(self) -> int:
        """Patches of a register tile."""
        return self._shape[0]

    @property
    def block(self) -> int:
        """Patches of a task."""
        return self._shape[0] * self._shape[1]

    @property
    def _shape(self) -> tuple[int, int]:
        """Return patches of a register tile and tiles of a task: the fewest patches computed twice."""
        most = (31 - self.group) // self.group
        best, least = (1, 1), float("inf")
        for tile in range(1, min(most, self.patches) + 1):
            for tiles in range(1, 5):
                block = tile * tiles
                if block > max(16, tile) or block > self.patches or self.stack(block) > STACK_BYTES:
                    continue
                # A dot waits four cycles for the one before it; L1 gives two loads per cycle, L2 half a one.
                steps = (max(tile * self.group, 0.6 * tile + 1.2 * self.group, 4) + 0.7) / tile
                cost = -(-self.patches // block) * block * (steps + 0.3 * self.group / block)
                if cost < least:
                    best, least = (tile, tiles), cost
        return best

    def stack(self, block: int) -> int:
        """Return the bytes of V and M for a task of `block` patches."""
        return POINTS * (2 * self.plane(block) + 4 * self.sums(block))

    def plane(self, block: int) -> int:
        """Return the values of V per point: an odd number of cache lines, so that points share no sets."""
        return 32 * (-(-block * self.conv.x.pitch // 32) | 1)

    def sums(self, block: int) -> int:
        """Return the values of M per point, likewise."""
        return 16 * (block * self.group | 1)

    @property
    def steps(self) -> int:
        """Dot steps of two channels."""
        return -(-self.conv.x.channels // 2)

    @property
    def weight_bytes(self) -> int:
        """Size of the transformed weights."""
        return POINTS * self.steps * self.conv.vectors * 64

    def tasks(self) -> int:
        """Return the number of tasks: blocks of patches."""
        return -(-self.patches // self.block)

    def macs(self) -> int:
        """Return the multiplications that the model asks for (of the direct convolution)."""
        return self.conv.macs()

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        conv = self.conv
        second = conv.residual.bytes if conv.residual else 0
        return conv.x.bytes + conv.y.bytes + second + self.weight_bytes

    @property
    def cycles(self) -> float:
        """Predicted time."""
        patch = 5.0 * self.conv.x.pitch + self.conv.vectors * (POINTS * self.steps * 1.03 + 180)
        far = self.weight_bytes / 20 if self.weight_bytes > BEYOND_L2 else 0.0
        return self.tasks() * max(self.block * patch, far)

    @property
    def direct_cycles(self) -> float:
        """Predicted time of `conv_int8` for the same."""
        y = self.conv.y
        return y.batch * y.height * y.width * self.conv.vectors * (self.conv.steps * 1.03 + 5)


def supports(spec: WinogradInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    conv = spec.conv
    if not isa.vnni:
        return Verdict.no("products of 16 bits need avx512_vnni")
    if conv.kernel != (3, 3) or conv.strides != (1, 1) or conv.dilations != (1, 1) or conv.group != 1:
        return Verdict.no("windows of 3x3, strides and dilations of 1, and one group are needed")
    if conv.y.height < 4 or conv.y.width < 4:
        return Verdict.no(f"an output of 4x4 pixels is needed, got {conv.y.height}x{conv.y.width}")
    if conv.x.pitch % 16:
        return Verdict.no(f"input pixels of whole vectors of 16 bytes are needed, got {conv.x.pitch}")
    if spec.weight_bytes > MOST_WEIGHT_BYTES:
        return Verdict.no(f"weights of {spec.weight_bytes} bytes, at most {MOST_WEIGHT_BYTES}")
    if spec.stack(spec.block) > STACK_BYTES:
        return Verdict.no(f"{spec.stack(spec.block)} bytes for one patch, at most {STACK_BYTES}")
    return conv_supports(conv, isa)


def fits(weight: npt.NDArray[np.int8]) -> bool:
    """Tell whether no sum of these weights [M, C, 3, 3] and any bytes leaves 26 bits."""
    wide = weight.astype(np.int64)
    positive = np.where(wide > 0, wide, 0).sum((1, 2, 3)).max(initial=0)
    negative = -np.where(wide < 0, wide, 0).sum((1, 2, 3)).min(initial=0)
    return 255 * int(max(positive, negative)) < MOST_SUM


def pays(spec: WinogradInt8Spec) -> bool:
    """Tell whether the kernel should be faster than the direct one."""
    return spec.cycles < 0.93 * spec.direct_cycles


def pack(
    spec: WinogradInt8Spec,
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    factor: npt.NDArray[np.float32],
    x_zero: int,
) -> list[Array]:
    """Return weights, bias and factors in kernel layout; arguments as for `conv_int8.pack`."""
    assert fits(weight), "sums beyond 26 bits"
    assert is_small(factor) or not spec.conv.small, "factors beyond 1/2 in a kernel without a cap"
    lanes, nv = spec.conv.y.pitch, spec.group
    moved = np.einsum("ia,mcab,jb->mcij", FILTER, weight.astype(np.int64), FILTER)
    assert np.abs(moved).max(initial=0) < 2**15, "weights beyond 16 bits"
    wide = np.zeros((lanes, 2 * spec.steps, POINTS), np.int16)
    wide[: moved.shape[0], : moved.shape[1]] = moved.reshape(*moved.shape[:2], POINTS)
    groups = wide.reshape(-1, nv, 16, spec.steps, 2, POINTS).transpose(0, 5, 3, 1, 2, 4)
    folded = bias.astype(np.int64) - x_zero * weight.astype(np.int64).sum((1, 2, 3))
    biases, factors = np.zeros(lanes, np.uint32), np.zeros(lanes, np.float32)
    biases[: len(bias)], factors[: len(bias)] = folded & 0xFFFFFFFF, factor
    return [np.ascontiguousarray(groups).ravel(), biases.view(np.int32), factors]


def build(spec: WinogradInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .winograd_int8_emit import build_winograd

    return build_winograd(spec, isa)
