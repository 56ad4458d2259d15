"""Products with weights of few bits that stay so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .kernels.lowbit_f32 import Bits
from .layers import Floats, Layer


@dataclass(frozen=True, eq=False)
class LowbitBlocks(Layer):
    """Product along the last axis of activations and weights that are integers in blocks of one size.

    Activations become int8 in the step before (`kernels/quantize_blocks.py`).

    Attributes:
        weight: int8 [N, K], of `bits` bits.
        scale: float32 [N, blocks].
        zero: what is added to a weight where it is stored.
        bias: float32 [N], None without one.
    """

    weight: npt.NDArray[np.int8]
    scale: Floats
    zero: int
    bits: Literal[4, 2, 1]
    block: int
    bias: Floats | None = None


@dataclass(frozen=True, eq=False)
class LowbitDense(Layer):
    """Product along the last axis with integer weights, activations in float.

    Attributes:
        codes: uint8 [N, K], below 2^bits.
        scale: float32 [N, blocks].
        zero: the code of 0, or uint8 [N, blocks].
        block: weights along K that share a scale.
        bias: float32 [N], None without one.
    """

    codes: npt.NDArray[np.uint8]
    scale: Floats
    zero: int | npt.NDArray[np.uint8]
    bits: Bits
    block: int
    bipolar: bool = False
    bias: Floats | None = None
