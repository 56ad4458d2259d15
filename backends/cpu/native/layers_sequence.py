"""Layers of rank-N tensors: what transformers and general operators are made of.

Shapes are the model's own; where tensors lie is the business of `dense.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .kernels.after_f32 import After
from .kernels.elementwise_f32 import Op
from .layers import Floats, Layer, Quant


@dataclass(frozen=True, eq=False)
class Chain(Layer):
    """Elementwise operations with NumPy's broadcasting; without operations a copy, maybe (de)quantized.

    Attributes:
        ops: values are numbered: inputs, constants, then one per operation. The last one is the result.
        constants: arrays that broadcast to the output's shape.
        image: the result is an image or vector of the layouts of `place.py`.
    """

    ops: tuple[Op, ...]
    constants: tuple[Floats, ...] = ()
    image: bool = False


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """Product with a constant matrix along the last axis; a second input of the output's shape is added.

    Attributes:
        weight: float32 [K, N].
        bias: float32 [N], None without one.
        after: function and limits at the end.
    """

    weight: Floats
    bias: Floats | None = None
    after: After = field(default_factory=After)


@dataclass(frozen=True, eq=False)
class IntProduct(Layer):
    """Product of quantized rows with int8 weights or a second quantized input (`kernels/matmul_int8.py`).

    Attributes:
        weight: int8 [K, N], None where the second input is the right side.
        bias: int32 [N] in steps of the sums, None without one.
        factor: float32 [N] or [1]: x_scale * w_scale, divided by y_scale for a whole result.
        whole: parameters of the quantized result, None for a real one (then quantized where the output is).
        low, high: limits of a whole result in 0..255.
        addend: float32 [N], added to a real result or, by a quantized Add, to a whole one.
        after: function and limits of a real result.
        residual: the last input is added to a real result.
        perm: as in `MatMul`.
    """

    weight: npt.NDArray[np.int8] | None
    bias: npt.NDArray[np.int32] | None
    factor: Floats
    whole: Quant | None
    low: int = 0
    high: int = 255
    addend: Floats | None = None
    after: After = field(default_factory=After)
    residual: bool = False
    perm: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class MatMul(Layer):
    """Batched product of two tensors, times `alpha`; a third input, or `added`, is added with broadcast.

    Attributes:
        perm: the output is the product transposed by it; empty: as it is. The columns stay last.
    """

    alpha: float = 1.0
    added: Floats | None = None
    perm: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows(Layer):
    """Softmax or normalization of the last axis; see `kernels/rows_f32.py`."""

    kind: str
    epsilon: float = 0.0
    scale: Floats | None = None
    shift: Floats | None = None


@dataclass(frozen=True, eq=False)
class Reduce(Layer):
    """Reduction over axes; see `kernels/reduce_f32.py`."""

    kind: str
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Slice(Layer):
    """Elements `starts[axis] + i * steps[axis]`; costs nothing. Axes not in `kept` have one and go."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Expand(Layer):
    """Broadcast to the output's shape; costs nothing."""


@dataclass(frozen=True, eq=False)
class Repeat(Layer):
    """Every element `factors[axis]` times in a row; with `whole`, the axis over and over. Costs a copy."""

    factors: tuple[int, ...]
    whole: bool


@dataclass(frozen=True, eq=False)
class Join(Layer):
    """Concatenation along an axis.

    Attributes:
        parts: the inputs and constants in order; an int is a number of `inputs`.
        image: as in `Chain`.
    """

    axis: int
    parts: tuple[int | Floats, ...]
    image: bool = False


@dataclass(frozen=True, eq=False)
class Pad(Layer):
    """Constant padding; `before` elements per axis, negative ones crop."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float
    image: bool = False


@dataclass(frozen=True, eq=False)
class Take(Layer):
    """Gather along an axis of the first input, or of `table`.

    Attributes:
        indices: constant and not negative, None: the last input.
        table: constant data, None: the first input.
    """

    axis: int
    indices: tuple[int, ...] | None
    table: Floats | None = None


@dataclass(frozen=True, eq=False)
class Resize(Layer):
    """Linear interpolation of an image; see `kernels/resize_f32.py`.

    Attributes:
        rows, columns: for each row or column of the output, (first, second, weight of the second).
    """

    rows: tuple[tuple[int, int, float], ...]
    columns: tuple[tuple[int, int, float], ...]
