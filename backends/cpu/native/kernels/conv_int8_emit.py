"""Writes the TIR of a quantized convolution; `conv_int8.py` says what it computes. Needs TVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .add_int8_emit import added
from .conv_int8 import ConvInt8Spec
from .emit import allocate, parameter, register
from .int8_emit import (
    LANES,
    bind,
    border,
    dot,
    i32,
    i64,
    loop,
    put,
    quad,
    rounded,
    sequence,
    smaller,
    tasks,
    to_bytes,
    to_bytes64,
    untangled,
    vector,
)
from .int8_tiles import Image

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


@dataclass(frozen=True)
class Frame:
    """What every part of the kernel needs; `spec` is the view.

    `base`: offset in the image x of the first byte of the buffer `x`, where that is only a part of it.
    """

    spec: ConvInt8Spec
    isa: Isa
    x: Buffer
    residual: Buffer | None
    weights: Buffer
    bias: Buffer
    factor: Buffer
    y: Buffer
    sums: Sequence[Buffer]
    base: Expr | None = None


@dataclass(frozen=True)
class _Place:
    """One register tile: image, first pixel, first vector of channels, number of vectors."""

    n: Expr
    row: Expr
    column: Expr
    channel: Expr
    vectors: int


def build_conv(spec: ConvInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .emit import module

    frame = conv_frame(spec, isa, parameter("x", "uint8", [spec.x.bytes]))
    second = [frame.residual] if frame.residual is not None else []
    parameters = [frame.x, *second, frame.weights, frame.bias, frame.factor, frame.y]

    def body(begin: Var, end: Var) -> list[Stmt]:
        return [*allocate(frame.sums), tasks(begin, end, lambda task: _task(frame, task))]

    return module(parameters, body)


def conv_frame(spec: ConvInt8Spec, isa: Isa, x: Buffer) -> Frame:
    """Return the kernel's parameters and registers; `x` is the input."""
    lanes, tile = spec.vectors * LANES, spec.tile
    residual = parameter("residual", "uint8", [spec.residual.bytes]) if spec.residual else None
    weights = parameter("weights", "int8", [lanes * spec.steps * 4])
    bias, factor = parameter("bias", "int32", [lanes]), parameter("factor", "float32", [lanes])
    y, most = parameter("y", "uint8", [spec.y.bytes]), min(tile.vectors, spec.vectors)
    sums = [register(f"sum{i}", "int32", LANES) for i in range(tile.pixels * most)]
    return Frame(spec.view, isa, x, residual, weights, bias, factor, y, sums)


def _task(frame: Frame, task: Var) -> list[Stmt]:
    """Return one row of tiles; the group of channels is fixed by the task where channels are outer."""
    spec, tile = frame.spec, frame.spec.tile
    per_image = -(-spec.y.height // tile.rows)
    rows = i64(spec.y.batch * per_image)
    in_group, first = bind("in_group", tirx.floormod(task, rows) if spec.channels_outer else task)
    n, second = bind("n", tirx.floordiv(in_group, i64(per_image)))
    block = tirx.floormod(in_group, i64(per_image))
    row, third = bind("row", smaller(block * i64(tile.rows), spec.y.height - tile.rows))
    setup: list[Stmt] = [first, second, third]
    if not spec.channels_outer:
        return [*setup, *row_of_tiles(frame, n, row)]
    edges, group = _edges(frame, n, row), tirx.floordiv(task, rows)
    once = [tirx.IfThenElse(tirx.EQ(group, i64(0)), sequence(edges), None)] if edges else []
    return [*setup, *once, _one_group(frame, n, row, group)]


def row_of_tiles(frame: Frame, n: Expr, row: Expr) -> list[Stmt]:
    """Return one row of tiles with all channels, from the image's row `row` on."""
    return [*_edges(frame, n, row), *_channels(frame, n, row)]


def _edges(frame: Frame, n: Expr, row: Expr) -> list[Stmt]:
    spec = frame.spec
    zero = spec.add.zeros[2] if spec.add else spec.zero
    return border(frame.y, spec.y, n, row, spec.tile.rows, zero)


def _one_group(frame: Frame, n: Expr, row: Expr, group: Expr) -> Stmt:
    """Return the columns of one group of channels; the last group may be smaller."""
    spec, nv = frame.spec, frame.spec.tile.vectors
    whole, rest = divmod(spec.vectors, nv)
    full = sequence(_columns(frame, n, row, group * i64(nv), nv))
    if not rest:
        return full
    last = sequence(_columns(frame, n, row, i64(whole * nv), rest))
    return tirx.IfThenElse(tirx.LT(group, i64(whole)), full, last)


def _channels(frame: Frame, n: Expr, row: Expr) -> list[Stmt]:
    spec, nv = frame.spec, frame.spec.tile.vectors
    whole, rest = divmod(spec.vectors, nv)
    parts: list[Stmt] = []
    if whole:
        parts.append(loop("group", whole, lambda g: _columns(frame, n, row, g * i64(nv), nv)))
    if rest:
        parts += _columns(frame, n, row, i64(whole * nv), rest)
    return parts


def _columns(frame: Frame, n: Expr, row: Expr, channel: Expr, vectors: int) -> list[Stmt]:
    width, columns = frame.spec.y.width, frame.spec.tile.columns

    def body(block: Var) -> list[Stmt]:
        column, first = bind("column", smaller(block * i64(columns), width - columns))
        return [first, *_tile(frame, _Place(n, row, column, channel, vectors))]

    return [loop("columns", -(-width // columns), body)]


def _tile(frame: Frame, place: _Place) -> list[Stmt]:
    spec, tile, nv = frame.spec, frame.spec.tile, place.vectors
    spots = [(r, c) for r in range(tile.rows) for c in range(tile.columns)]
    start: list[Stmt] = []
    for v in range(nv):
        value, statement = bind(f"bias{v}", vector(frame.bias, (place.channel + i64(v)) * i64(LANES)))
        start += [statement, *(put(frame.sums[p * nv + v], value, 0) for p in range(tile.pixels))]
    sy, sx = spec.strides
    first = _corner(spec, place)
    offsets = [r * sy * spec.x.row + c * sx * spec.x.pitch for r, c in spots]
    base, statement = bind("base", first if frame.base is None else first - frame.base)
    return [*start, statement, *_reduce(frame, place, base, offsets), *_finish(frame, place, spots)]


def _corner(spec: ConvInt8Spec, place: _Place) -> Expr:
    """Return the offset of the window's first byte for the tile's first pixel."""
    x, (sy, sx) = spec.x, spec.strides
    fixed = x.origin - spec.pads[0] * x.row - spec.pads[1] * x.pitch
    moved = place.row * i64(sy * x.row) + place.column * i64(sx * x.pitch)
    at = place.n * i64(x.plane) + moved + i64(fixed)
    deep, span = spec.band
    if not deep:
        return at
    outputs, inputs = spec.y.channels // spec.group, x.channels // spec.group
    group = tirx.floordiv(place.channel * i64(LANES), i64(outputs))
    return at + smaller(group * i64(inputs), x.channels - span)


def _reduce(frame: Frame, place: _Place, base: Expr, offsets: Sequence[int]) -> list[Stmt]:
    """Return the loops over the window and the channels."""
    spec = frame.spec
    rows, runs, steps = spec.runs
    down, right = spec.dilations[0] * spec.x.row, spec.dilations[1] * spec.x.pitch

    def step(r: Var, s: Var, k: Var) -> list[Stmt]:
        at, first = bind("at", base + r * i64(down) + s * i64(right) + k * i64(4))
        index = (r * i64(runs) + s) * i64(steps) + k
        return [first, *_dots(frame, place, at, index, offsets)]

    def over(r: Var) -> list[Stmt]:
        return [loop("s", runs, lambda s: [loop("k", steps, lambda k: step(r, s, k))])]

    return [loop("r", rows, over)]


def _dots(frame: Frame, place: _Place, at: Expr, index: Expr, offsets: Sequence[int]) -> list[Stmt]:
    """Return one step: load weights once, broadcast four bytes of every pixel."""
    nv, total = place.vectors, frame.spec.steps
    body: list[Stmt] = []
    weights = []
    for v in range(nv):
        where = ((place.channel + i64(v)) * i64(total) + index) * i64(64)
        name, statement = bind(f"weight{v}", vector(frame.weights, where, 64))
        weights.append(name)
        body.append(statement)
    for p, offset in enumerate(offsets):
        name, statement = bind(f"pixel{p}", quad(frame.x, at + i64(offset)))
        body.append(statement)
        for v in range(nv):
            held = frame.sums[p * nv + v]
            body.append(put(held, dot(frame.isa, vector(held, 0), name, weights[v]), 0))
    return body


def _finish(frame: Frame, place: _Place, spots: Sequence[tuple[int, int]]) -> list[Stmt]:
    """Return requantization and stores of all pixels of the tile."""
    spec, nv = frame.spec, place.vectors
    body: list[Stmt] = []
    factors = []
    for v in range(nv):
        name, statement = bind(f"factor{v}", vector(frame.factor, (place.channel + i64(v)) * i64(LANES)))
        factors.append(name)
        body.append(statement)
    out, first = bind("out", _pixel(spec.y, place))
    body.append(first)
    second = None
    if spec.residual:
        second, statement = bind("other", _pixel(spec.residual, place))
        body.append(statement)
    pieces: list[tuple[int, Expr]] = []
    for p, (r, c) in enumerate(spots):
        steps = [
            rounded(
                frame.isa,
                tirx.Cast("float32x16", vector(frame.sums[p * nv + v], 0)) * factors[v],
                small=spec.small,
            )
            for v in range(nv)
        ]
        if second is not None and spec.residual:
            from_ = second + i64(r * spec.residual.row + c * spec.residual.pitch)
            assert frame.residual is not None, "a residual without its image"
            steps = [
                with_other(frame.isa, spec, frame.residual, step, from_ + i64(v * LANES), body)
                for v, step in enumerate(steps)
            ]
        at = r * spec.y.row + c * spec.y.pitch
        pieces += [(at + v * LANES, step) for v, step in enumerate(steps)]
    limits = (spec.zero, spec.low, spec.high)
    if spec.add:
        limits = (spec.add.zeros[2], spec.add.low, spec.add.high)
    return body + store(
        frame.isa, frame.y, pieces, out, limits, ordered=spec.residual is None and nv % 4 == 0
    )


def _pixel(i: Image, place: _Place) -> Expr:
    """Return the offset of the tile's first pixel and channel in an image."""
    at = place.n * i64(i.plane) + place.row * i64(i.row) + place.column * i64(i.pitch)
    return at + place.channel * i64(LANES) + i64(i.origin)


def store(
    isa: Isa, y: Buffer, pieces: Sequence[tuple[int, Expr]], to: Expr, limits: tuple[int, int, int],
    ordered: bool,
) -> list[Stmt]:  # fmt: skip
    """Return the stores of pieces of 16 bytes at offsets from `to`, 64 at once where four are neighbours.

    `ordered`: lanes of four pieces at a time are `interleaved`; else they are in natural order.
    """
    body: list[Stmt] = []
    rest = list(pieces)
    while rest:
        four, at = rest[:4], rest[0][0]
        if [offset for offset, _ in four] == [at + 16 * v for v in range(4)]:
            packed = to_bytes64(isa, [value for _, value in four], *limits)
            body.append(put(y, packed if ordered else untangled(packed), to + i64(at), 64))
            rest = rest[4:]
        else:
            body.append(put(y, to_bytes(rest[0][1], *limits), to + i64(at)))
            rest = rest[1:]
    return body


def with_other(
    isa: Isa, spec: ConvInt8Spec, residual: Buffer, steps: Expr, other: Expr, body: list[Stmt]
) -> Expr:
    """Return the steps of the sum with 16 bytes of the residual: bytes first, as the model says."""
    assert spec.add is not None, "a residual without its formula"
    held, keep = bind("own", steps)
    body.append(keep)
    cut = tirx.Min(tirx.Max(held, i32(spec.low - spec.zero)), i32(spec.high - spec.zero))
    second = tirx.Cast("int32x16", vector(residual, other))
    return added(isa, spec.add, cut + i32(spec.zero), second)
