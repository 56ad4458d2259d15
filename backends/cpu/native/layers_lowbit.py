"""Products with weights of few bits that stay so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernels.lowbit_f32 import Bits
from .layers import Floats, Layer


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
