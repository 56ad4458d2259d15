"""Where populations and weights lie for the C kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...compiler.backend import Array
from .graph import Conv, Integers, Shape

# Outputs per weight row.
BLOCK = 64

# Of c/winograd.h: patches at a time, products per patch and channel, and the transform of the weights, whose
# last row is 3 of its 24 (the rest is in the way back).
PATCHES, POINTS = 12, 36
_FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 3]], np.int64)
_MOST_SUM = 2**25


@dataclass(frozen=True, eq=False)
class Place:
    """The memory of one population.

    Attributes:
        array: [height, width, pitch], of bytes, int16 or (readouts) int32.
        shape: as in ONNX, without the batch.
        low, high: range of the counts.
    """

    array: Array
    shape: Shape
    low: int
    high: int

    @classmethod
    def of(cls, shape: Shape, counts: tuple[int, int]) -> Place:
        """Make room for counts; channels are padded to a multiple of 4 with zeros."""
        height, width, channels = image_of(shape)
        wide = counts[0] < 0 or counts[1] > 255
        pitch = -(-channels // 4) * 4
        # The kernels read up to 64 bytes at once.
        memory = np.zeros(height * width * pitch + 64, np.int16 if wide else np.uint8)
        return cls(memory[: height * width * pitch].reshape(height, width, pitch), shape, *counts)

    @classmethod
    def readout(cls, shape: Shape) -> Place:
        """Make room for accumulators."""
        return cls(np.zeros(image_of(shape), np.int32), shape, 0, 0)

    @property
    def address(self) -> int:
        """Return where it starts."""
        return int(self.array.ctypes.data)

    @property
    def image(self) -> tuple[int, int, int]:
        """Return height, width, channels."""
        return image_of(self.shape)

    @property
    def pitch(self) -> int:
        """Return the elements of one pixel."""
        return int(self.array.shape[2])

    @property
    def wide(self) -> bool:
        """Tell whether counts take two bytes."""
        return self.array.dtype == np.int16

    def write(self, counts: Integers) -> None:
        """Store counts given in ONNX order."""
        height, width, channels = self.image
        self.array[..., :channels] = counts.reshape(channels, height, width).transpose(1, 2, 0)

    def read(self) -> Integers:
        """Return counts in ONNX order."""
        channels = self.image[2]
        return self.array[..., :channels].transpose(2, 0, 1).reshape(self.shape).astype(np.int64)


def image_of(shape: Shape) -> tuple[int, int, int]:
    """Return height, width and channels of a population; a vector is one pixel."""
    if len(shape) == 3:
        return shape[1], shape[2], shape[0]
    return 1, 1, int(np.prod(shape))


def weights_by_tap(synapses: Conv, channels: int) -> Array:
    """Return the weights of a convolution as int8 [outputs, taps, input channels]; groups become zeros."""
    w = synapses.weights
    outputs, per_group = w.shape[0], w.shape[1]
    full = np.zeros((outputs, channels, *w.shape[2:]), np.int8)
    for output in range(outputs):
        first = output // (outputs // synapses.groups) * per_group
        full[output, first : first + per_group] = w[output]
    return full.reshape(outputs, channels, -1).transpose(0, 2, 1)


def rows_of(w: Array, permuted: bool) -> Array:
    """Return int8 [blocks, taps * inputs, 64] of weights [outputs, taps, inputs].

    Where `permuted`, output 16 m + 4 j + e of a block lies at 16 j + 4 m + e.
    """
    _, taps, inputs = w.shape
    padded = _whole_blocks(w)
    rows = padded.reshape(-1, BLOCK, taps * inputs).transpose(0, 2, 1)
    if permuted:
        rows = rows.reshape(*rows.shape[:2], 4, 4, 4).swapaxes(2, 3).reshape(rows.shape)
    return np.ascontiguousarray(rows)


def quads(w: Array) -> Array:
    """Return int8 [blocks, taps, inputs / 4, 64, 4] of weights [outputs, taps, inputs]."""
    outputs, taps, inputs = w.shape
    fours = -(-inputs // 4)
    padded = np.zeros((len(_whole_blocks(w)), taps, fours * 4), np.int8)
    padded[:outputs, :, :inputs] = w
    split = padded.reshape(-1, BLOCK, taps, fours, 4)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4))


def winograd_pays(synapses: Conv, source: tuple[int, int, int], target: tuple[int, int, int]) -> bool:
    """Tell whether c/winograd.h takes a convolution and should be faster; images are height, width, channels.

    Predicted in cycles per patch, as engine native's kernel of this kind was measured.
    """
    window, w = synapses.window, np.abs(synapses.weights.astype(np.int64))
    plain = (window.kernel, window.strides, window.dilations) == ((3, 3), (1, 1), (1, 1))
    if not plain or synapses.groups != 1 or min(target[:2]) < 4:
        return False
    if 255 * int(w.sum(axis=(1, 2, 3)).max()) >= _MOST_SUM:
        return False
    blocks, steps = -(-target[2] // BLOCK), -(-source[2] // 2)
    patches = -(-target[0] // 4) * -(-target[1] // 4)
    spread = patches * (5 * source[2] + 4 * blocks * (POINTS * steps + 180))
    direct = target[0] * target[1] * -(-target[2] // 16) * (9 * -(-source[2] // 4) + 5)
    return spread < 0.93 * direct


def winograd_rows(w: Array) -> Array:
    """Return int16 [blocks, points, pairs of inputs, 64, 2] of weights [outputs, 9, inputs]."""
    square = _whole_blocks(w).astype(np.int64).reshape(-1, 3, 3, w.shape[2])
    spread = np.einsum("ia,mabc,jb->mijc", _FILTER, square, _FILTER).reshape(len(square), POINTS, -1)
    assert np.abs(spread).max(initial=0) < 2**15, "transformed weights beyond 16 bits"
    even = np.zeros((*spread.shape[:2], -(-w.shape[2] // 2) * 2), np.int16)
    even[..., : w.shape[2]] = spread
    split = even.reshape(-1, BLOCK, POINTS, even.shape[2] // 2, 2)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4))


def depthwise_rows(w: Array) -> Array:
    """Return int8 [taps, channels rounded up to 64] of depthwise weights [channels, 1, kh, kw]."""
    flat = w.reshape(len(w), -1).T
    padded = np.zeros((len(flat), -(-flat.shape[1] // BLOCK) * BLOCK), np.int8)
    padded[:, : flat.shape[1]] = flat
    return padded


def _whole_blocks(w: Array) -> Array:
    padded = np.zeros((-(-len(w) // BLOCK) * BLOCK, *w.shape[1:]), np.int8)
    padded[: len(w)] = w
    return padded
