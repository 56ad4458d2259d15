"""Layers on bits: products by popcount, quantizers of one and two bits, pooling and unpacking.

Tensors of bits have a `book`. What a product ends in is either thresholds of its integer sum (bits out), or
operations that make a real number of it, from which a quantizer behind it may be compared in the same kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernels.bits import Code
from .kernels.real_end import RealOp
from .layers import Layer, Tensor, Window

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Base:
    """Integer weights [M, C, kh, kw] that one pass of popcounts takes; the layer's are sums of such.

    Attributes:
        codes: the integers.
        code: the smallest code that holds them.
        scale: float64 [M].
    """

    codes: npt.NDArray[np.int8]
    code: Code
    scale: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Limits:
    """Thresholds [M, levels - 1] of sums or of float32 values, negated in channels that fall."""

    thresholds: Array
    falls: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a real end with its constants [M]."""

    op: RealOp
    constants: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class BitSums(Layer):
    """Product of bits whose sums are compared with integer thresholds: bits in, bits out."""

    base: Base
    window: Window
    limits: Limits


@dataclass(frozen=True, eq=False)
class BitReals(Layer):
    """Product of bits that ends in a real number; inputs beyond the first are added where `steps` say.

    `real = steps(sum over bases of float32(scale * sum))`; `bases` have the data's scale in theirs.

    Attributes:
        bias: float64 [M], added to the first base's product before it is rounded; None for none.
        bits: bits made of the result by `limits`, too.
        kept: somebody reads the result itself.
    """

    bases: tuple[Base, ...]
    window: Window
    bias: npt.NDArray[np.float64] | None = None
    steps: tuple[Step, ...] = ()
    bits: Tensor | None = None
    limits: Limits | None = None
    kept: bool = True


@dataclass(frozen=True, eq=False)
class Binarize(Layer):
    """Quantizer of one or two bits and the monotone operators before it, of float32 or uint8 values."""

    limits: Limits


@dataclass(frozen=True, eq=False)
class BitPool(Layer):
    """Maximum over windows of bits."""

    window: Window


@dataclass(frozen=True, eq=False)
class Unpack(Layer):
    """Bits to float32."""
