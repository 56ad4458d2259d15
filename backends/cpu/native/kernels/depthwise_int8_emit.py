"""Writes the TIR of a quantized depthwise convolution; `depthwise_int8.py` says how. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .depthwise_int8 import CHUNK, DepthwiseInt8Spec
from .dot_int8 import dot_lanes
from .emit import allocate, module, parameter, register
from .int8_emit import (
    LANES,
    bind,
    border,
    i64,
    loop,
    put,
    rounded,
    shuffle,
    smaller,
    tasks,
    to_bytes64,
    unpack,
    vector,
)

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


@dataclass(frozen=True)
class Frame:
    """What every part of the kernel needs.

    `base`: offset in the image y of the first byte of the buffer `y`, where that is only a part of it.
    """

    spec: DepthwiseInt8Spec
    isa: Isa
    x: Buffer
    weights: Buffer
    bias: Buffer
    factor: Buffer
    y: Buffer
    sums: Sequence[Buffer]
    base: Expr | None = None

    def sum(self, row: int, chunk: int, v: int) -> Buffer:
        """Return an accumulator."""
        return self.sums[(row * self.spec.tile[1] + chunk) * 4 + v]


def build_depthwise(spec: DepthwiseInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    frame = depthwise_frame(spec, isa, parameter("y", "uint8", [spec.y.bytes]))

    def body(begin: Var, end: Var) -> list[Stmt]:
        return [*allocate(frame.sums), tasks(begin, end, lambda task: _task(frame, task))]

    return module([frame.x, frame.weights, frame.bias, frame.factor, frame.y], body)


def depthwise_frame(spec: DepthwiseInt8Spec, isa: Isa, y: Buffer) -> Frame:
    """Return the kernel's parameters and registers; `y` is the output."""
    rows, columns = spec.tile
    lanes = spec.blocks * CHUNK
    weights = parameter("kernels", "int8", [lanes * rows * spec.quads * spec.kernel[1] * 4])
    bias, factor = parameter("biases", "int32", [lanes]), parameter("factors", "float32", [lanes])
    sums = [register(f"total{i}", "int32", LANES) for i in range(rows * columns * 4)]
    return Frame(spec, isa, parameter("x", "uint8", [spec.x.bytes]), weights, bias, factor, y, sums)


def _task(frame: Frame, task: Var) -> list[Stmt]:
    """Return a block of output rows."""
    spec = frame.spec
    rows = spec.tile[0]
    per_image = -(-spec.y.height // rows)
    n, first = bind("n", tirx.floordiv(task, i64(per_image)))
    block = tirx.floormod(task, i64(per_image)) * i64(rows)
    row, second = bind("row", smaller(block, spec.y.height - rows))
    return [first, second, *border(frame.y, spec.y, n, row, rows, spec.zero), *row_of_tiles(frame, n, row)]


def row_of_tiles(frame: Frame, n: Expr, row: Expr) -> list[Stmt]:
    """Return one row of tiles with all channels, from the output's row `row` on, without the border."""
    spec = frame.spec
    step = spec.tile[1] * spec.spread

    def over_columns(channel: Expr, keep: int) -> Stmt:
        def body(index: Var) -> list[Stmt]:
            column, third = bind("column", smaller(index * i64(step), spec.y.width - step))
            return [third, *_tile(frame, n, row, column, channel, keep)]

        return loop("columns", -(-spec.y.width // step), body)

    return _blocks(spec, over_columns)


def _blocks(spec: DepthwiseInt8Spec, over_columns: Callable[[Expr, int], Stmt]) -> list[Stmt]:
    """Return the loop over whole chunks of channels, and the rest of less than 64."""
    if spec.spread > 1:
        return [over_columns(i64(0), CHUNK)]
    whole, rest = divmod(spec.y.pitch, CHUNK)
    parts = [loop("block", whole, lambda b: [over_columns(b, CHUNK)])] if whole else []
    return parts + ([over_columns(i64(whole), rest)] if rest else [])


def _tile(frame: Frame, n: Expr, row: Expr, column: Expr, block: Expr, keep: int) -> list[Stmt]:
    spec = frame.spec
    rows, columns = spec.tile
    body: list[Stmt] = []
    for v in range(4):
        value, statement = bind(f"bias{v}", vector(frame.bias, block * i64(CHUNK) + i64(v * LANES)))
        body.append(statement)
        body += [put(frame.sum(r, c, v), value, 0) for r in range(rows) for c in range(columns)]
    x, (sy, sx) = spec.x, spec.strides
    fixed = x.origin - spec.pads[0] * x.row - spec.pads[1] * x.pitch
    at = n * i64(x.plane) + row * i64(sy * x.row) + column * i64(sx * x.pitch) + block * i64(CHUNK)
    base, statement = bind("base", at + i64(fixed))
    body.append(statement)
    for quad in range(spec.quads):
        for pixel, users in spec.taps(columns).items():
            body += _column(frame, base, block, quad, pixel, users)
    return body + _finish(frame, n, row, column, block, keep)


def _column(
    frame: Frame, base: Expr, block: Expr, quad: int, pixel: int, users: Sequence[tuple[int, int]]
) -> list[Stmt]:
    """Return the dots of one column of four input rows."""
    spec = frame.spec
    rows, kw = spec.tile[0], spec.kernel[1]
    last = spec.kernel[0] - 1 + (rows - 1)
    reads = [
        min(quad * 4 + q, last) * spec.dilations[0] * spec.x.row + pixel * spec.x.pitch for q in range(4)
    ]
    body: list[Stmt] = []
    lines: dict[int, Expr] = {}
    for offset in reads:
        if offset not in lines:
            lines[offset], statement = bind("line", _chunk(frame, base + i64(offset)))
            body.append(statement)
    data, statements = _interleave([lines[offset] for offset in reads])
    body += statements
    for chunk, s in users:
        for r in range(rows):
            index = ((block * i64(rows) + i64(r)) * i64(spec.quads) + i64(quad)) * i64(kw) + i64(s)
            for v in range(4):
                held = frame.sum(r, chunk, v)
                weights = vector(frame.weights, index * i64(4 * 64) + i64(v * 64), 64)
                body.append(put(held, dot_lanes(frame.isa, vector(held, 0), data[v], weights), 0))
    return body


def _chunk(frame: Frame, at: Expr) -> Expr:
    """Return 64 bytes of input for a chunk; every other pixel where several pixels at stride 2 make one."""
    spec = frame.spec
    if spec.spread == 1 or spec.strides[1] == 1:
        return vector(frame.x, at, CHUNK)
    pitch = spec.x.pitch
    lanes = [2 * pitch * p + byte for p in range(spec.spread) for byte in range(pitch)]
    halves = [vector(frame.x, at, CHUNK), vector(frame.x, at + i64(CHUNK), CHUNK)]
    return shuffle(halves, lanes)


def _interleave(rows: Sequence[Expr]) -> tuple[list[Expr], list[Stmt]]:
    """Return four vectors whose 4-byte lanes hold one byte of each row, lanes as `interleaved` says."""
    body: list[Stmt] = []
    pairs: list[list[Expr]] = []
    for first in (0, 2):
        halves: list[Expr] = []
        for low in (True, False):
            mixed = tirx.reinterpret("uint16x32", unpack(low, rows[first], rows[first + 1], 64))
            name, statement = bind("pair", mixed)
            halves.append(name)
            body.append(statement)
        pairs.append(halves)
    data: list[Expr] = []
    for half in (0, 1):
        for low in (True, False):
            mixed = tirx.reinterpret("uint8x64", unpack(low, pairs[0][half], pairs[1][half], 32))
            name, statement = bind("quad", mixed)
            data.append(name)
            body.append(statement)
    return data, body


def _finish(frame: Frame, n: Expr, row: Expr, column: Expr, block: Expr, keep: int) -> list[Stmt]:
    """Return requantization and stores; only the first `keep` bytes of a chunk belong to the pixel."""
    spec, y = frame.spec, frame.spec.y
    at = n * i64(y.plane) + row * i64(y.row) + column * i64(y.pitch) + block * i64(CHUNK) + i64(y.origin)
    out, statement = bind("out", at if frame.base is None else at - frame.base)
    body: list[Stmt] = [statement]
    factors: list[Expr] = []
    for v in range(4):
        factor, statement = bind(f"factor{v}", vector(frame.factor, block * i64(CHUNK) + i64(v * LANES)))
        factors.append(factor)
        body.append(statement)
    for r in range(spec.tile[0]):
        for c in range(spec.tile[1]):
            sums = [tirx.Cast("float32x16", vector(frame.sum(r, c, v), 0)) for v in range(4)]
            steps = [
                rounded(frame.isa, total * factor, small=spec.small)
                for total, factor in zip(sums, factors, strict=True)
            ]
            value = to_bytes64(frame.isa, steps, spec.zero, spec.low, spec.high)
            to = out + i64(r * y.row + c * spec.spread * y.pitch)
            body.append(put(frame.y, shuffle([value], range(keep)) if keep < CHUNK else value, to, keep))
    return body
