"""Writes the TIR of quantized pooling; `pool_int8.py` says what it computes. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .average_formula import AverageFormula
from .emit import allocate, llvm, module, parameter, register, reinterpret
from .int8_emit import (
    LANES,
    bind,
    border,
    f32,
    i32,
    i64,
    larger,
    loop,
    put,
    rounded,
    row_of,
    sequence,
    smaller,
    tasks,
    to_bytes,
    u8,
    vector,
)
from .pool_int8 import PoolInt8Spec

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

HALF = 8


@dataclass(frozen=True)
class _Frame:
    """What every part of the kernel needs; `best` and `sums` are accumulators."""

    spec: PoolInt8Spec
    isa: Isa
    x: Buffer
    y: Buffer
    best: Buffer
    sums: Buffer
    wide: tuple[Buffer, Buffer]


@dataclass(frozen=True)
class _Place:
    """One output pixel: where its window starts, and how much of it is inside the image."""

    image: Expr
    out: Expr
    rows: tuple[Expr, Expr]
    columns: tuple[Expr, Expr]


def build_pool(spec: PoolInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    x, y = parameter("x", "uint8", [spec.x.bytes]), parameter("y", "uint8", [spec.y.bytes])
    wide = (register("low", "float64", HALF), register("high", "float64", HALF))
    frame = _Frame(spec, isa, x, y, register("best", "uint8", 64), register("sums", "int32", LANES), wide)
    used = [frame.best]
    if spec.average:
        used = (
            [frame.sums] if spec.average.by_sum else [frame.sums, *wide] if spec.average.limit else list(wide)
        )

    def body(begin: Var, end: Var) -> list[Stmt]:
        return [*allocate(used), tasks(begin, end, lambda task: _row(frame, task))]

    return module([x, y], body)


def _row(frame: _Frame, task: Var) -> list[Stmt]:
    spec = frame.spec
    n, first = bind("n", tirx.floordiv(task, i64(spec.y.height)))
    row, second = bind("row", tirx.floormod(task, i64(spec.y.height)))
    edges = border(frame.y, spec.y, n, row, 1, spec.zero)
    image, third = bind("image", n * i64(spec.x.plane) + i64(spec.x.origin))
    out, fourth = bind("out", row_of(spec.y, n, row))
    rows, found = _valid(spec, 0, row)

    def pixel(column: Var) -> list[Stmt]:
        columns, inner = _valid(spec, 1, column)
        place = _Place(image, out + column * i64(spec.y.pitch), rows, columns)
        return [*inner, *_channels(frame, place)]

    return [first, second, *edges, third, fourth, *found, loop("column", spec.y.width, pixel)]


def _valid(spec: PoolInt8Spec, axis: int, at: Expr) -> tuple[tuple[Expr, Expr], list[Stmt]]:
    """Return the first and the end of the rows or columns under a window that are inside the image."""
    size = (spec.x.height, spec.x.width)[axis]
    start = at * i64(spec.strides[axis]) - i64(spec.pads[axis])
    if spec.inside:
        first, one = bind("first", start)
        return (first, first + i64(spec.kernel[axis])), [one]
    first, one = bind("first", larger(start, 0))
    end, two = bind("end", smaller(start + i64(spec.kernel[axis]), size))
    return (first, end), [one, two]


def _channels(frame: _Frame, place: _Place) -> list[Stmt]:
    """Return the loop over the channels of a pixel."""
    pitch = frame.spec.x.pitch
    if frame.spec.average:
        return [loop("c", pitch // LANES, lambda c: _average(frame, place, c * i64(LANES)))]
    whole, rest = divmod(pitch, 64)
    parts = [loop("c", whole, lambda c: _maximum(frame, place, c * i64(64), 64))] if whole else []
    return parts + (_maximum(frame, place, i64(whole * 64), rest) if rest else [])


def _over(frame: _Frame, place: _Place, channel: Expr, body: Callable[[Expr], list[Stmt]]) -> Stmt:
    """Return the loops over the taps of a window; `body` gets the offset of the bytes."""
    x = frame.spec.x
    (top, bottom), (left, right) = place.rows, place.columns
    if frame.spec.inside:
        kh, kw = (i64(k) for k in frame.spec.kernel)
    else:
        kh, kw = bottom - top, right - left
    at = place.image + top * i64(x.row) + left * i64(x.pitch) + channel

    def line(r: Var) -> list[Stmt]:
        return [loop("s", kw, lambda s: body(at + r * i64(x.row) + s * i64(x.pitch)))]

    return loop("r", kh, line)


def _maximum(frame: _Frame, place: _Place, channel: Expr, lanes: int) -> list[Stmt]:
    spec, best = frame.spec, frame.best

    def tap(at: Expr) -> list[Stmt]:
        return [put(best, tirx.Max(vector(best, 0, lanes), vector(frame.x, at, lanes)), 0, lanes)]

    if spec.inside or spec.kernel[0] * spec.kernel[1] > 16:
        held = _over(frame, place, channel, tap)
    else:
        held = sequence([s for at in _clamped(frame, place, channel) for s in tap(at)])
    value = tirx.Min(vector(best, 0, lanes), u8(spec.high, lanes))
    return [put(best, u8(spec.low, lanes), 0, lanes), held, put(frame.y, value, place.out + channel, lanes)]


def _clamped(frame: _Frame, place: _Place, channel: Expr) -> list[Expr]:
    """Return the offset of every tap; those outside are moved onto the nearest inside, which is a tap too."""
    spec, x = frame.spec, frame.spec.x
    (top, bottom), (left, right) = place.rows, place.columns
    lines = [smaller(top + i64(r), bottom - i64(1)) * i64(x.row) for r in range(spec.kernel[0])]
    pixels = [smaller(left + i64(s), right - i64(1)) * i64(x.pitch) for s in range(spec.kernel[1])]
    return [place.image + line + pixel + channel for line in lines for pixel in pixels]


def _average(frame: _Frame, place: _Place, channel: Expr) -> list[Stmt]:
    formula = frame.spec.average
    assert formula is not None, "an average without its formula"

    def stored(steps: Expr) -> Stmt:
        value = to_bytes(rounded(frame.isa, steps), formula.y_zero, frame.spec.low, frame.spec.high)
        return put(frame.y, value, place.out + channel)

    if not formula.limit:
        steps, body = (_by_sum if formula.by_sum else _by_mean)(frame, place, channel, formula)
        return [*body, stored(steps)]
    steps, body = _by_sum(frame, place, channel, formula)
    cheap, statement = bind("steps", steps)
    exact, slow = _by_mean(frame, place, channel, formula)
    away = cheap - tirx.Cast("float32x16", rounded(frame.isa, cheap))
    near = tirx.GE(tirx.Max(away, f32(0) - away), f32(formula.limit))
    tie = tirx.NE(reinterpret("uint16", near), tirx.IntImm("uint16", 0))
    return [*body, statement, tirx.IfThenElse(tie, sequence([*slow, stored(exact)]), stored(cheap))]


def _by_sum(frame: _Frame, place: _Place, channel: Expr, f: AverageFormula) -> tuple[Expr, list[Stmt]]:
    sums = frame.sums

    def tap(at: Expr) -> list[Stmt]:
        return [put(sums, vector(sums, 0) + tirx.Cast("int32x16", vector(frame.x, at)), 0)]

    total = tirx.Cast("float32x16", vector(sums, 0))
    steps = llvm("llvm.fma.v16f32", "float32x16", total, f32(f.gain), f32(f.shift))
    return steps, [put(sums, i32(0), 0), _over(frame, place, channel, tap)]


def _by_mean(frame: _Frame, place: _Place, channel: Expr, f: AverageFormula) -> tuple[Expr, list[Stmt]]:
    none = tirx.Broadcast(tirx.FloatImm("float64", 0.0), HALF)

    def tap(at: Expr) -> list[Stmt]:
        body: list[Stmt] = []
        for half, total in enumerate(frame.wide):
            q = tirx.Cast("int32x8", vector(frame.x, at + i64(half * HALF), HALF)) - i32(f.x_zero, HALF)
            value = tirx.Cast("float32x8", q) * f32(f.x_scale, HALF)
            body.append(put(total, vector(total, 0, HALF) + tirx.Cast("float64x8", value), 0, HALF))
        return body

    (top, bottom), (left, right) = place.rows, place.columns
    kh, kw = frame.spec.kernel
    size = i64(kh * kw) if frame.spec.inside or frame.spec.count_pads else (bottom - top) * (right - left)
    count, statement = bind("count", tirx.Broadcast(tirx.Cast("float64", size), HALF))
    means = [tirx.Cast("float32x8", tirx.Div(vector(total, 0, HALF), count)) for total in frame.wide]
    mean = tirx.Shuffle(means, [tirx.IntImm("int32", lane) for lane in range(LANES)])
    start = [put(total, none, 0, HALF) for total in frame.wide]
    return tirx.Div(mean, f32(f.y_scale)), [statement, *start, _over(frame, place, channel, tap)]
