"""Recurrent layers: a cell over time, in one direction or two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernels.recurrent_f32 import Kind
from .layers import Floats, Layer

Weights = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Cell:
    """The constants of one direction; gates in ONNX's order: i o f c of an LSTM, z r h of a GRU.

    Attributes:
        input: float32 [gates, H, I].
        recurrent: [gates, H, K], float32 or int8 with `scale`.
        input_bias, recurrent_bias: float32 [gates, H].
        scale: float32 [gates, H] of int8 weights.
        peepholes: float32 [3, H], i o f.
        projection: float32 [K, H].
    """

    input: Floats
    recurrent: Weights
    input_bias: Floats
    recurrent_bias: Floats
    scale: Floats | None = None
    peepholes: Floats | None = None
    projection: Floats | None = None

    @property
    def hidden(self) -> int:
        """Units of the cell."""
        return int(self.input.shape[1])

    @property
    def result(self) -> int:
        """Values of h."""
        return int(self.recurrent.shape[2])


@dataclass(frozen=True, eq=False)
class Recurrent(Layer):
    """Cells over the first axis of the first input, [T, B, I].

    The output is the memory of the kernel, [T + 2, D, B, width]: a row per step, the last h, the last c. More
    inputs are the initial h [D, B, K] and c [D, B, H], as `initial` says.

    Attributes:
        cells: one per direction.
        reverse: per direction.
        reset_after: a GRU's reset gate works on the product.
        relu: an RNN's function is Relu.
    """

    kind: Kind
    cells: tuple[Cell, ...]
    reverse: tuple[bool, ...]
    initial: tuple[bool, bool] = (False, False)
    reset_after: bool = False
    relu: bool = False
