"""Bit planes: how values of one or two bits lie in uint32 words, for data and for weights.

Word `c // 32`, bit `c % 32` belongs to channel c. Channels beyond the last are 0 in every plane, for data
and for weights alike: equal bits vanish in an XOR, zeros in an AND. Needs NumPy only.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.integer]

WORD = 32


class Code(Enum):
    """How a small integer is written in bit planes."""

    BINARY = "binary"  # -1, +1: one plane, 1 = +1
    TERNARY = "ternary"  # -1, 0, +1: plane 0: 1 = +1; plane 1: 1 = not zero
    INT2 = "int2"  # -2..1: two's complement, low plane first
    UINT2 = "uint2"  # 0..3, low plane first

    @property
    def planes(self) -> int:
        """Bit planes per value."""
        return 1 if self is Code.BINARY else 2

    @property
    def values(self) -> tuple[int, ...]:
        """All values, ascending."""
        return _VALUES[self]

    @property
    def thresholds(self) -> int:
        """Thresholds that an accumulator is compared with to make such a value."""
        return len(self.values) - 1


_VALUES = {
    Code.BINARY: (-1, 1),
    Code.TERNARY: (-1, 0, 1),
    Code.INT2: (-2, -1, 0, 1),
    Code.UINT2: (0, 1, 2, 3),
}


def words_of(channels: int) -> int:
    """Return the words per plane that hold `channels` bits."""
    return -(-channels // WORD)


def _planes(values: Integers, code: Code) -> list[npt.NDArray[np.bool_]]:
    if code is Code.BINARY:
        return [values > 0]
    if code is Code.TERNARY:
        return [values > 0, values != 0]
    return [(values & 1) != 0, (values & 2) != 0]


def pack(values: Integers, code: Code) -> Words:
    """Pack integers [..., C] into words [..., ceil(C / 32), planes].

    Raises:
        ValueError: a value does not exist in `code`.
    """
    if not np.isin(values, code.values).all():
        raise ValueError(f"{code.value} holds {code.values}, got {np.unique(values)[:8]}")
    spare = -values.shape[-1] % WORD
    packed = []
    for plane in _planes(values, code):
        padded = np.pad(plane, [(0, 0)] * (plane.ndim - 1) + [(0, spare)])
        octets = np.packbits(padded, axis=-1, bitorder="little")
        packed.append(np.ascontiguousarray(octets).view("<u4"))
    return np.ascontiguousarray(np.stack(packed, axis=-1), dtype=np.uint32)


def unpack(words: Words, channels: int, code: Code) -> npt.NDArray[np.int8]:
    """Return the integers [..., channels] of words [..., ceil(C / 32), planes]."""
    octets = np.ascontiguousarray(np.moveaxis(words, -1, 0)).astype("<u4").view(np.uint8)
    planes = np.unpackbits(octets, axis=-1, bitorder="little")[..., :channels].astype(np.int8)
    if code is Code.BINARY:
        return np.asarray(2 * planes[0] - 1, np.int8)
    if code is Code.TERNARY:
        return np.asarray(planes[1] * (2 * planes[0] - 1), np.int8)
    high = -2 if code is Code.INT2 else 2
    return np.asarray(planes[0] + high * planes[1], np.int8)
