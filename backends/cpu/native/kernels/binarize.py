"""Codes of one or two bits from float32 or uint8 values, packed into bit planes.

    value[p, c] = least value + #{i : sign[c] * x[p, c] >= thresholds[i, c]}

`sign` is -1 where the function being quantized falls (a negative BatchNorm scale), else +1; the product is
exact. Thresholds of any chain of float operators are found by `thresholds.float_thresholds`. NaN gives the
least value.

Tile: 32 values make one word per plane by one comparison per threshold; one task is one pixel (all its
channels). Bound by reading the values: 4 bytes each for float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .bits import WORD, Code, words_of

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class BinarizeSpec:
    """`pixels` rows of `channels` values, `stored` apart in memory; uint8 data have int32 thresholds."""

    pixels: int
    channels: int
    stored: int
    dtype: Literal["float32", "uint8"] = "float32"
    output: Code = Code.BINARY

    @property
    def number(self) -> str:
        """Type in which values are compared with thresholds."""
        return "float32" if self.dtype == "float32" else "int32"

    def tasks(self) -> int:
        """Length of the parallel loop: pixels."""
        return self.pixels

    def bytes(self) -> int:
        """Bytes of data and output."""
        value = np.dtype(self.dtype).itemsize
        return self.pixels * (self.channels * value + 4 * words_of(self.channels) * self.output.planes)


def supports(spec: BinarizeSpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.stored < spec.channels:
        return Verdict.no(f"{spec.channels} channels stored in {spec.stored}")
    return Verdict.yes()


def pack(spec: BinarizeSpec, thresholds: Array, sign: Array) -> list[Array]:
    """Return thresholds [levels - 1, C] and signs [C] in the type they are compared in.

    Args:
        spec: the kernel.
        thresholds: [C, levels - 1], ascending, for `sign * x`.
        sign: [C], -1 or +1.
    """
    assert thresholds.shape == (spec.channels, spec.output.thresholds), f"{thresholds.shape} thresholds"
    assert sign.shape == (spec.channels,), f"{sign.shape} signs"
    return [np.ascontiguousarray(values.T, spec.number) for values in (thresholds, sign)]


def build(spec: BinarizeSpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel: parameters data [pixels, stored], thresholds, sign, out, begin, end."""
    from .binarize_tir import Writer

    verdict = supports(spec, isa)
    assert verdict.ok, verdict.reason
    return Writer(spec).module()


def spare_lanes(spec: BinarizeSpec) -> int:
    """Return how many channels the last word holds when it is not full, else 0."""
    return spec.channels % WORD
