"""Recurrent cells over time in float32: LSTM, GRU and plain RNN, gates fused into the recurrent product.

    LSTM  c = s(f) * c' + s(i) * tanh(g),  h = s(o) * tanh(c)     [i o f g] = x[t] + R h' (+ P * c' or c)
    GRU   h = n + s(z) * (h' - n)                                 [z r] = x[t] + R h'
          n = tanh(x[t] + R (s(r) * h'))  or, `reset_after`,  tanh(x[t] + s(r) * (R h' + b))
    RNN   h = tanh(x[t] + R h')  (or Relu)

s is the sigmoid, x[t] the product of the inputs and W with every bias: one GEMM for all steps, made by
`gemm_f32` before. An LSTM may project its result (h = Q m) as TensorFlow's does.

Layout: x [T * B, D * gates * Hp], each gate padded to whole vectors; out [T + 2, D * B, width]: a row of
results per step, then the last one, then the cell's state. So the state lives in the output, and Y, Y_h, Y_c
are views of it. Initial states, where there are, are inputs [D * B, padded]. Weights are one stream in
reading order, per block of columns [K, gates, vectors, 16], in float32 or int8; integers are converted in the
loop and their sums multiplied by one scale per column.

Tile: one row by 8 to 12 accumulators, so the latency of FMA is hidden; every weight is read once per step.
One task is one direction; directions do not depend on each other.

Predicted: reading the weights. Measured shares of that: docs/results/cpu_recurrent.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .window import LANES, groups_of, padded, split_groups

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Kind = Literal["lstm", "gru", "rnn"]
Stored = Literal["float32", "int8"]

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
WIDE = {4: (3, 2), 3: (4, 3), 2: (6, 5, 4), 1: (8, 7, 6, 5, 4)}


@dataclass(frozen=True)
class RecurrentF32Spec:
    """Static shape; parameters: x, h?, c?, weights, scales?, bias?, peepholes?, projection?, out, scratch.

    Attributes:
        steps, batch: T and B.
        hidden: units of the cell, H.
        result: values of h: H, or those of the projection.
        reverse: per direction, whether time runs backwards; the second of two directions does.
        reset_after: the GRU's reset gate works on the product (ONNX: linear_before_reset).
        relu: the RNN's function is Relu, not tanh.
        initial: h (and c) of before the first step are inputs; else they are 0.
        stored: type of the recurrent weights.
    """

    kind: Kind
    steps: int
    batch: int
    hidden: int
    result: int
    reverse: tuple[bool, ...] = (False,)
    reset_after: bool = False
    relu: bool = False
    peepholes: bool = False
    projects: bool = False
    initial: tuple[bool, bool] = (False, False)
    stored: Stored = "float32"

    @property
    def directions(self) -> int:
        """Number of cells that run over the same input."""
        return len(self.reverse)

    @property
    def gates(self) -> int:
        """Gates per unit."""
        return GATES[self.kind]

    @property
    def width(self) -> int:
        """Values of a row of the output in memory."""
        return padded(max(self.hidden, self.result))

    @property
    def x_shape(self) -> tuple[int, int]:
        """Shape of the inputs' product in memory."""
        return self.steps * self.batch, self.directions * self.gates * padded(self.hidden)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape of the output in memory."""
        return self.steps + 2, self.directions * self.batch, self.width

    @property
    def scratch_shape(self) -> tuple[int, int] | None:
        """Values between the two products of a step, per direction; None where there is one product."""
        two = self.projects or (self.kind == "gru" and not self.reset_after)
        return (2 * self.directions, padded(self.hidden)) if two else None

    @property
    def phases(self) -> tuple[int, ...]:
        """Gates of each recurrent product of a step."""
        return (2, 1) if self.kind == "gru" and not self.reset_after else (self.gates,)

    def blocks(self, gates: int) -> tuple[int, int, int]:
        """Vectors per block of units, whole blocks, vectors of the last block or 0."""
        return split_groups(groups_of(self.hidden), WIDE[gates])

    def tasks(self) -> int:
        """Length of the parallel loop: directions."""
        return self.directions

    def macs(self) -> int:
        """Multiply-accumulates of all steps."""
        per_step = self.result * self.gates * self.hidden + (
            self.hidden * self.result if self.projects else 0
        )
        return self.steps * self.batch * self.directions * per_step

    def bytes(self) -> int:
        """Bytes of weights, read in every step, and of inputs and results."""
        size = 1 if self.stored == "int8" else 4
        weights = self.directions * self.result * self.gates * padded(self.hidden) * size
        if self.projects:
            weights += self.directions * self.hidden * padded(self.result) * 4
        rows = self.x_shape[1] + self.directions * self.width
        return self.steps * (self.batch * weights + 4 * self.batch * rows)


def supports(spec: RecurrentF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min(spec.steps, spec.batch, spec.hidden, spec.result) < 1:
        return Verdict.no("a recurrent layer without steps, samples or units")
    if spec.directions > 2 or (spec.directions == 2 and spec.reverse != (False, True)):
        return Verdict.no(f"directions {spec.reverse}; two are one forward and one backward")
    if (spec.projects or spec.peepholes) and spec.kind != "lstm":
        return Verdict.no(f"a {spec.kind} with peepholes or a projection")
    if not spec.projects and spec.result != spec.hidden:
        return Verdict.no("a result of another size than the cell needs a projection")
    return Verdict.yes()


@dataclass(frozen=True, eq=False)
class CellArrays:
    """One direction's constants.

    Attributes:
        recurrent: [gates, H, K] float32, or int8 with `scale`; gates in ONNX's order (i o f c, z r h).
        scale: float32 [gates, H] of int8 weights.
        bias: float32 [H] inside the reset of a GRU with `reset_after`.
        peepholes: float32 [3, H]: i, o, f.
        projection: float32 [result, H].
    """

    recurrent: Array
    scale: Floats | None = None
    bias: Floats | None = None
    peepholes: Floats | None = None
    projection: Floats | None = None


def pack(spec: RecurrentF32Spec, cells: Sequence[CellArrays]) -> list[Array]:
    """Return the constants in the order of the parameters, directions stacked."""
    last = padded(spec.hidden)
    made: list[list[Array]] = []
    for cell in cells:
        parts: list[Array] = [_streams(spec, cell.recurrent)]
        if spec.stored == "int8":
            assert cell.scale is not None, "integers come with scales"
            parts.append(_wide(cell.scale, last).reshape(-1))
        if spec.reset_after:
            assert cell.bias is not None, "the spec says that there is a bias"
            parts.append(_wide(cell.bias[None], last).reshape(-1))
        if spec.peepholes:
            assert cell.peepholes is not None, "the spec says that there are peepholes"
            parts.append(_wide(cell.peepholes, last).reshape(-1))
        if spec.projects:
            assert cell.projection is not None, "the spec says that there is a projection"
            blocks = split_groups(groups_of(spec.result), WIDE[1])
            parts.append(stream(cell.projection[None], blocks))
        made.append(parts)
    return [np.ascontiguousarray(np.stack(parts)) for parts in zip(*made, strict=True)]


def _streams(spec: RecurrentF32Spec, recurrent: Array) -> Array:
    first = 0
    parts = []
    for gates in spec.phases:
        parts.append(stream(recurrent[first : first + gates], spec.blocks(gates)))
        first += gates
    return np.concatenate(parts)


def stream(weight: Array, blocks: tuple[int, int, int]) -> Array:
    """Lay out weights [gates, N, K] in reading order: per block [K, gates, vectors, 16]."""
    wide, whole, rest = blocks
    gates, columns, depth = weight.shape
    full = np.zeros((gates, padded(columns), depth), weight.dtype)
    full[:, :columns] = weight
    vectors = full.reshape(gates, -1, LANES, depth)
    parts, first = [], 0
    for count in (*(wide,) * whole, *((rest,) if rest else ())):
        parts.append(vectors[:, first : first + count].transpose(3, 0, 1, 2).reshape(-1))
        first += count
    return np.concatenate(parts)


def _wide(rows: Floats, width: int) -> Floats:
    made = np.zeros((rows.shape[0], width), np.float32)
    made[:, : rows.shape[1]] = rows
    return made


def build(spec: RecurrentF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `RecurrentF32Spec`, then `begin` and `end`."""
    from .recurrent_tir import RecurrentWriter

    verdict = supports(spec, isa)
    assert verdict.ok, verdict.reason
    return RecurrentWriter(spec).module()
