"""Quantized products of rank-N tensors: uint8 rows by int8 weights, or by other uint8 activations; batched.

    sum[m, n] = sum over k of (left[m, k] - left_zero) * (right[k, n] - right_zero) + bias[n]

in exact integers, and then

* whole (`real` False): y = clamp(rint(float32(sum) * factor[n]) + zero, low, high), docs/semantics.md;
  with `then` also y = saturate(rint(((y - zero) * scale + addend[n]) / own scale) + own zero), a quantized
  Add of a constant behind it;
* real: y = after(float32(sum) * factor[n] + addend[n] + residual[m, n]), quantized where the output is: a
  product without a quantizer of its own, and what follows it in float.

Operands have strides (`strided.py`): heads and their transposes cost nothing. Weights come packed in panels
[K / 4, 16 * vectors, 4]. Activations on the right are packed on the stack by each task, shifted by 128; their
zero point costs a sum of every left row.

Tile: 14 rows x 2 vectors of int32 sums, one dot (vpdpbusd, 64 products) per cycle; a step of K reads 14
quads of bytes and 2 vectors of weights for 28 dots. One task is one panel of up to 112 rows.

Measured on one core of Zen 4 (peak 233 GMAC/s; predicted 90 % less the epilogue): 128x256x256 165 GMAC/s, to
1024 columns 202, of depth 1024 212 (91 %). Four heads of 64 at 128 positions, zero points off the middle:
scores 103, mixing 119; bound by packing the right side and summing rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Array, Verdict
from .after_f32 import After
from .strided import LANES, Operand, bytes_of
from .window import groups_of, tile_size

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

WIDE = 2
QUAD = 4
ROWS_OF_TASK = 112
PANEL_BYTES = 128 << 10


@dataclass(frozen=True)
class Then:
    """The quantized Add of a constant behind a quantized product: parameters of the product's own result."""

    scale: float
    zero: int


@dataclass(frozen=True)
class MatmulInt8Spec:
    """Static shape; parameters: left, right?, residual?, weights?, bias, factor, addend?, out.

    Attributes:
        batch: sizes of the outer axes.
        rows, depth, columns: M, K, N.
        left: uint8, strides of the outer axes, M and K; K is contiguous.
        right: uint8, strides of the outer axes, K and N, one of which is 1; None: constant weights.
        output: strides of the outer axes, M and N; float32, or uint8 with its (scale, zero).
        left_zero, right_zero: zero points; that of `left` is in the bias where weights are constant.
        real: see above.
        zero, low, high: of the whole result, limits before `then`.
        addend: a constant [N] in reals.
        residual: float32 of the output's shape, broadcast where strides are 0.
        after: function and limits of a real result.
        then: see above.
    """

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    left: Operand
    right: Operand | None
    output: Operand
    left_zero: int = 0
    right_zero: int = 128
    real: bool = False
    zero: int = 0
    low: int = 0
    high: int = 255
    addend: bool = False
    residual: Operand | None = None
    after: After = field(default_factory=After)
    then: Then | None = None

    @property
    def steps(self) -> int:
        """Dot steps of four bytes."""
        return -(-self.depth // QUAD)

    @property
    def vectors(self) -> int:
        """Vectors of columns of a panel."""
        wide = min(WIDE, groups_of(self.columns))
        return wide if self.panel_bytes(wide) <= PANEL_BYTES else 1

    def panel_bytes(self, vectors: int) -> int:
        """Bytes of a panel."""
        return self.steps * vectors * LANES * QUAD

    @property
    def panels(self) -> int:
        """Panels of one product."""
        return -(-groups_of(self.columns) // self.vectors)

    @property
    def chunk(self) -> int:
        """Rows of a task; all where the task packs the panel."""
        return self.rows if self.right is not None else tile_size(self.rows, ROWS_OF_TASK)

    @property
    def chunks(self) -> int:
        """Tasks per panel."""
        return -(-self.rows // self.chunk)

    def tasks(self) -> int:
        """Length of the parallel loop."""
        return int(np.prod(self.batch, dtype=np.int64)) * self.panels * self.chunks

    def macs(self) -> int:
        """Multiply-accumulates."""
        return int(np.prod(self.batch, dtype=np.int64)) * self.rows * self.depth * self.columns

    def bytes(self) -> int:
        """Bytes of the left side, of the right side and of the output."""
        right = self.depth * self.columns
        if self.right is not None:
            right = bytes_of((*self.batch, self.depth, self.columns), self.right)
        left = bytes_of((*self.batch, self.rows, self.depth), self.left)
        return left + right + bytes_of((*self.batch, self.rows, self.columns), self.output)


def supports(spec: MatmulInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min((*spec.batch, spec.rows, spec.depth, spec.columns)) < 1:
        return Verdict.no(f"an empty product: {spec.batch} {spec.rows} x {spec.depth} x {spec.columns}")
    if (spec.depth > 1 and spec.left.last != 1) or (spec.columns > 1 and spec.output.last != 1):
        return Verdict.no("rows that are not contiguous")
    if spec.right is not None and 1 not in spec.right.strides[-2:]:
        return Verdict.no("a right side that is contiguous along neither axis")
    if spec.right is not None and spec.panel_bytes(spec.vectors) > PANEL_BYTES:
        return Verdict.no(f"depth {spec.depth}; panels of at most {PANEL_BYTES // LANES} fit the stack")
    return Verdict.yes()


def pack(
    spec: MatmulInt8Spec,
    weight: npt.NDArray[np.int8] | None,
    bias: npt.NDArray[np.int32] | None,
    factor: npt.NDArray[np.float32],
    addend: npt.NDArray[np.float32] | None = None,
) -> list[Array]:
    """Return weights (of constant ones), bias, factors and addend in kernel layout.

    Args:
        spec: the product.
        weight: int8 [K, N], None where the right side is an input.
        bias: int32 [N].
        factor: float32 [N] or [1].
        addend: float32 [N].
    """
    lanes = spec.panels * spec.vectors * LANES
    sums = np.zeros(spec.columns, np.int64) if bias is None else bias.astype(np.int64)
    made: list[Array] = []
    if weight is not None:
        sums = sums - spec.left_zero * weight.astype(np.int64).sum(0)
        wide = np.zeros((spec.steps * QUAD, lanes), np.int8)
        wide[: spec.depth, : spec.columns] = weight
        panels = wide.reshape(spec.steps, QUAD, spec.panels, spec.vectors * LANES)
        made.append(np.ascontiguousarray(panels.transpose(2, 0, 3, 1)).reshape(-1))
    made.append(_wide((sums & 0xFFFFFFFF).astype(np.uint32).view(np.int32), lanes))
    made.append(_wide(np.broadcast_to(factor, (spec.columns,)).astype(np.float32), lanes))
    return made if addend is None else [*made, _wide(addend.astype(np.float32), lanes)]


def _wide(array: Array, lanes: int) -> Array:
    made = np.zeros(lanes, array.dtype)
    made[: len(array)] = array
    return made


def with_output(spec: MatmulInt8Spec, output: Operand) -> MatmulInt8Spec:
    """Return the product with another output."""
    return replace(spec, output=output)


def build(spec: MatmulInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `MatmulInt8Spec`, then `begin` and `end`."""
    from .matmul_int8_emit import build_matmul

    return build_matmul(spec, isa)
