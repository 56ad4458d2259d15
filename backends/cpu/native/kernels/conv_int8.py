"""Quantized convolution, uint8 x int8 -> int32 -> uint8, with activation and residual add in the epilogue.

`y = clamp(rint(float32(sum(x * w) + bias) * factor[c]) + zero, low, high)`, see docs/semantics.md; with a
residual that byte is added to a second image as `add_int8` does. A Gemm is the convolution of images of one
pixel (`gemm_int8.py` for few rows).

Input images carry their padding as a border that holds the zero point; the input's zero point is folded
into the bias by `pack`. Weights lie as [OC / 16, kh, steps, 16, 4]: a step is four bytes of a pixel, and 64
bytes of weights multiply it for 16 channels. Where dilation is 1 and it takes fewer steps, a row of the
window is read as one run of kw * pitch bytes: a 10x4 window on one channel takes 10 steps, not 40.

Tile: 8 to 28 accumulators of 16 lanes, chosen by `int8_tiles.choose_tile` for the image's own size; the
dots are the bound (one per cycle, 233 GMAC/s), weights are loaded once per tile and step. Results are
stored 64 bytes at once wherever four vectors are neighbours in memory.

Measured on one Zen 4 core, requantization included: 3x3, 256 channels, 28x28 231 GMAC/s (99 % of the roof);
16 channels, 32x32 217 (93 %); 64 channels, 8x8 216 (93 %); 1x1, 128 channels, 6x6 215 (92 %); 64 channels,
25x5 195 (84 %); 10x4 on one channel 183 (78 %); 3x3 on 3 channels to 16, 32x32 134 (57 %: 9 steps per
vector of results, whose end takes as long as 5).
Groups, against the same computed with zero weights in between: 32 groups of 4 channels, 3x3, 28x28 68 us
and 497 (53 GMAC/s of the model's own products, the vectors of 16 outputs span 4 groups); 4 groups of 32 129
and 497 (223 GMAC/s); 3 groups of 80, 1x1, 28x28 73 and 200 (208 GMAC/s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Array, Verdict
from .add_formula import AddFormula
from .int8_tiles import (
    REGISTERS,
    SLACK_BYTES,
    Image,
    Tile,
    choose_tile,
    image,
    interleaved,
    is_small,
)  # fmt: skip

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

OUTER_WEIGHT_BYTES = 256 * 1024


@dataclass(frozen=True)
class ConvInt8Spec:
    """A convolution of fixed shape.

    Parameters of the kernel: x [x.bytes] uint8, residual [residual.bytes] uint8 (only with `residual`),
    weights int8, bias int32 [OCp], factor float32 [OCp], y [y.bytes] uint8, begin, end. The residual must not
    be y.

    Attributes:
        x, y: input and output image.
        kernel, strides, dilations: height, width.
        pads: top, left; at most the border of `x`. What is below and right follows from the sizes.
        zero: output zero point.
        low, high: limits of the output byte.
        small: every factor is below 1/2, so that rounding needs no care for int32 (see `is_small`).
        group: a tile reads the channels of the groups that its outputs belong to (`band`); weights are zero
            where a channel is of another one of them.
        residual: the image that is added; same height, width and pitch as y, any border.
        add: how it is added; `zero`, `low`, `high` belong to the convolution, those of the sum are in `add`.
        registers: vectors of 16 sums and weights that a tile may hold (`int8_tiles.registers_of`).
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
    group: int = 1
    residual: Image | None = None
    add: AddFormula | None = None
    small: bool = False
    registers: int = REGISTERS

    def tasks(self) -> int:
        """Return the number of tasks: rows of tiles, times groups of channels if the weights are large."""
        rows = self._rows()
        return rows * self.channel_groups if self.channels_outer else rows

    def _rows(self) -> int:
        view = self.view
        return view.y.batch * -(-view.y.height // self.tile.rows)

    @property
    def view(self) -> ConvInt8Spec:
        """The convolution as the loops see it: a pointwise one without borders is one column of pixels."""
        images = [i for i in (self.x, self.y, self.residual) if i is not None]
        plain = self.kernel == (1, 1) and self.strides == (1, 1) and not any(any(i.border) for i in images)
        if not plain or (self.y.batch == 1 and self.y.width == 1):
            return self
        flat = [_flat(i) for i in images]
        return ConvInt8Spec(
            flat[0], flat[1], (1, 1), zero=self.zero, low=self.low, high=self.high, group=self.group,
            residual=flat[2] if self.residual else None, add=self.add, small=self.small,
            registers=self.registers,
        )  # fmt: skip

    @property
    def vectors(self) -> int:
        """Vectors of 16 output channels."""
        return self.y.pitch // 16

    @property
    def joined(self) -> bool:
        """Whether a row of the window is one run of bytes."""
        together = -(-self.kernel[1] * self.x.pitch // 4)
        whole = self.band[1] == self.x.channels
        return whole and self.dilations[1] == 1 and together <= self.kernel[1] * -(-self.x.channels // 4)

    @property
    def runs(self) -> tuple[int, int, int]:
        """Return rows of the window, runs of bytes per row, and steps of four bytes per run."""
        if self.joined:
            return self.kernel[0], 1, -(-self.kernel[1] * self.x.pitch // 4)
        return *self.kernel, -(-self.band[1] // 4)

    @property
    def band(self) -> tuple[int, int]:
        """Vectors of a tile, 0 for any, and the input channels that it reads: all of them without groups."""
        if self.group == 1:
            return 0, self.x.channels
        y, window, best = self.view.y, self.kernel[0] * self.kernel[1], (0, self.x.channels)
        least = math.inf
        for nv in range(1, min(self.vectors, 8) + 1):
            span = self._span(nv)
            steps = window * -(-span // 4)
            cycles = choose_tile(y.height, y.width, self.vectors, steps, self.registers, nv)[1]
            if cycles < least:
                best, least = (nv, span), cycles
        return best

    def _span(self, nv: int) -> int:
        """Return the most channels that the groups of `nv` vectors of outputs have together."""
        outputs, inputs = self.y.channels // self.group, self.x.channels // self.group
        tiles = range(0, self.y.channels, 16 * nv)
        last = (min(first + 16 * nv, self.y.channels) - 1 for first in tiles)
        return max(
            (end // outputs - first // outputs + 1) * inputs for first, end in zip(tiles, last, strict=True)
        )

    @property
    def steps(self) -> int:
        """Dot steps per output vector."""
        rows, runs, steps = self.runs
        return rows * runs * steps

    @property
    def tile(self) -> Tile:
        """The register tile."""
        y = self.view.y
        return choose_tile(y.height, y.width, self.vectors, self.steps, self.registers, self.band[0])[0]

    @property
    def channel_groups(self) -> int:
        """Groups of `tile.vectors` vectors of channels, the last one possibly smaller."""
        return -(-self.vectors // self.tile.vectors)

    @property
    def channels_outer(self) -> bool:
        """Whether channels are the outer loop: large weights are then read once."""
        return self.vectors * self.steps * 64 > OUTER_WEIGHT_BYTES

    def macs(self) -> int:
        """Return the multiplications that the model asks for."""
        y = self.y
        terms = self.x.channels // self.group * self.kernel[0] * self.kernel[1]
        return y.batch * y.height * y.width * y.channels * terms

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        second = self.residual.bytes if self.residual else 0
        return self.x.bytes + self.y.bytes + second + self.vectors * self.steps * 64


def _flat(i: Image) -> Image:
    return Image(1, i.batch * i.height * i.width, 1, i.channels, i.pitch)


def supports(spec: ConvInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.y.pitch % 16 or (spec.residual and spec.residual.pitch != spec.y.pitch):
        return Verdict.no(f"output pixels of whole vectors of 16 bytes are needed, got {spec.y.pitch}")
    if spec.pads[0] > spec.x.border[0] or spec.pads[1] > spec.x.border[1]:
        return Verdict.no(f"padding {spec.pads} needs a border of that size, the input has {spec.x.border}")
    reach = [
        (o - 1) * s + (k - 1) * d + 1 - p
        for o, s, k, d, p in zip(
            (spec.y.height, spec.y.width), spec.strides, spec.kernel, spec.dilations, spec.pads, strict=True
        )
    ]
    room = (spec.x.height + spec.x.border[2], spec.x.width + spec.x.border[3])
    if reach[0] > room[0] or reach[1] > room[1]:
        return Verdict.no(f"the window reaches {reach}, the input with its border {room}")
    return Verdict.yes()


def pack(
    spec: ConvInt8Spec,
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    factor: npt.NDArray[np.float32],
    x_zero: int,
) -> list[Array]:
    """Return weights, bias and factors in kernel layout.

    Args:
        spec: the convolution.
        weight: int8 [M, C / group, kh, kw].
        bias: int32 [M].
        factor: float32 [M].
        x_zero: zero point of the input; folded into the bias, modulo 2^32 like the sums.
    """
    assert is_small(factor) or not spec.small, "factors beyond 1/2 in a kernel without a cap"
    dense = _ungrouped(weight, spec.group)
    folded = bias.astype(np.int64) - x_zero * weight.astype(np.int64).sum((1, 2, 3))
    folded = (folded & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    order = _lane_order(spec)
    outputs = len(order)
    lanes: list[Array] = []
    for flat in (folded, factor.astype(np.float32)):
        wide = np.zeros(outputs, flat.dtype)
        wide[: flat.size] = flat
        lanes.append(wide[order])
    return [
        _pack_weights(spec, dense)[order].reshape(spec.vectors, 16, -1, 4).transpose(0, 2, 1, 3).ravel(),
        *lanes,
    ]


def _lane_order(spec: ConvInt8Spec) -> list[int]:
    """Return the channel of each lane of all vectors; interleaved in fours where that fits."""
    if spec.residual:
        return list(range(spec.y.pitch))
    nv, order = spec.tile.vectors, list[int]()
    for first in range(0, spec.vectors, nv):
        count = min(nv, spec.vectors - first)
        order += [16 * first + c for c in (interleaved(count) if count % 4 == 0 else range(16 * count))]
    return order


def _ungrouped(weight: npt.NDArray[np.int8], group: int) -> npt.NDArray[np.int8]:
    """Return [M, C, kh, kw] with zeros between the groups."""
    outputs, inputs, *window = weight.shape
    dense = np.zeros((outputs, inputs * group, *window), np.int8)
    each = outputs // group
    for g in range(group):
        dense[g * each : (g + 1) * each, g * inputs : (g + 1) * inputs] = weight[g * each : (g + 1) * each]
    return dense


def _pack_weights(spec: ConvInt8Spec, dense: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Return [OCp, steps * 4] in the order in which bytes of the input are read."""
    outputs, channels, rows, columns = dense.shape
    deep, span = spec.band
    per_pixel = spec.x.pitch if spec.joined else -(-span // 4) * 4
    wide = np.zeros((spec.y.pitch, rows, columns, per_pixel), np.int8)
    tile = 16 * deep or spec.y.pitch
    for first in range(0, outputs, tile):
        start = min(first * spec.group // outputs * (channels // spec.group), channels - span)
        part = dense[first : first + tile, start : start + span].transpose(0, 2, 3, 1)
        wide[first : first + len(part), ..., :span] = part
    r, runs, steps = spec.runs
    runs_of = wide.reshape(spec.y.pitch, r, runs, -1)
    padded = np.zeros((spec.y.pitch, r, runs, steps * 4), np.int8)
    padded[..., : runs_of.shape[-1]] = runs_of
    return padded.reshape(spec.y.pitch, -1)


def build(spec: ConvInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .conv_int8_emit import build_conv

    return build_conv(spec, isa)


__all__ = ["SLACK_BYTES", "ConvInt8Spec", "build", "image", "pack", "supports"]
