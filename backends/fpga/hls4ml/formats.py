"""Fixed-point types as hls4ml spells them, and what an assignment to one does to a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..graph import Ints

Rounding = Literal["TRN", "RND_CONV"]
Overflow = Literal["WRAP", "SAT", "SAT_SYM"]


@dataclass(frozen=True)
class Format:
    """A two's complement type of `bits` bits with `fraction` of them behind the point.

    Attributes:
        rounding: TRN is floor, RND_CONV half to even.
        overflow: WRAP where the range was proven, else SAT; SAT_SYM leaves the lowest number out.
    """

    bits: int
    signed: bool
    fraction: int = 0
    rounding: Rounding = "TRN"
    overflow: Overflow = "WRAP"

    @property
    def least(self) -> int:
        """Lowest number, in units of the last bit."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (self.overflow == "SAT_SYM")

    @property
    def most(self) -> int:
        """Highest number, in units of the last bit."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def text(self) -> str:
        """The spelling in an hls4ml configuration, e.g. `ufixed<8,8,TRN,SAT>`.

        Integers too are `fixed`: hls4ml takes 2-bit `int` weights for ternary ones and 1-bit `uint` data for
        binary ones, and computes others' -2 and 0 wrong.
        """
        modes = (
            "" if (self.rounding, self.overflow) == ("TRN", "WRAP") else f",{self.rounding},{self.overflow}"
        )
        return f"{'' if self.signed else 'u'}fixed<{self.bits},{self.bits - self.fraction}{modes}>"


def holding(low: int, high: int, fraction: int = 0) -> Format:
    """Return the smallest type without saturation that holds low..high (in units of the last bit).

    One bit is never enough: hls4ml makes two of it for Quartus and Catapult, the second behind the point.

    >>> holding(-3, 4).text
    'fixed<4,4>'
    """
    signed = low < 0
    return Format(max(max(high, -low - 1).bit_length() + signed, 2), signed, fraction)


@dataclass(frozen=True, eq=False)
class Affine:
    """`v = result((scale * a + bias) / 2^shift)`, exact before the assignment rounds and saturates once.

    Attributes:
        scale: int64, one per channel or one for all.
        bias: like `scale`.
    """

    scale: Ints
    bias: Ints
    shift: int
    result: Format

    @property
    def is_identity(self) -> bool:
        """Whether it changes no number."""
        return self.shift == 0 and bool((self.scale == 1).all()) and not self.bias.any()


def apply(step: Affine, a: Ints) -> Ints:
    """Compute a step; `a` is [K, channels] (or broadcastable), results are integers without fraction."""
    line = step.scale * a + step.bias
    whole = line >> step.shift
    if step.result.rounding == "RND_CONV" and step.shift:
        rest, half = line - (whole << step.shift), 1 << (step.shift - 1)
        whole = whole + ((rest > half) | ((rest == half) & ((whole & 1) == 1)))
    if step.result.overflow == "WRAP":
        span = 1 << step.result.bits
        return np.asarray((whole - step.result.least) % span + step.result.least)
    return np.asarray(np.clip(whole, step.result.least, step.result.most))
