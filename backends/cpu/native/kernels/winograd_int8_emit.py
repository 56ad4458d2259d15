"""Writes the TIR of a quantized Winograd convolution; `winograd_int8.py` says what it computes. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .conv_int8_emit import with_other
from .emit import allocate, llvm, module, parameter, register
from .int8_emit import (
    LANES,
    bind,
    border,
    i32,
    i64,
    loop,
    put,
    rounded,
    sequence,
    smaller,
    tasks,
    to_bytes,
    vector,
)
from .int8_tiles import Image
from .winograd_int8 import NINTH, POINTS, WinogradInt8Spec

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa

Values = list[Expr]


@dataclass(frozen=True)
class _Frame:
    """What every part of the kernel needs; `v` and `m` are the transformed data and products."""

    spec: WinogradInt8Spec
    isa: Isa
    x: Buffer
    residual: Buffer | None
    weights: Buffer
    bias: Buffer
    factor: Buffer
    y: Buffer
    v: Buffer
    m: Buffer
    sums: Sequence[Buffer]


@dataclass(frozen=True)
class _Patch:
    """Where a patch of outputs lies."""

    n: Expr
    row: Expr
    column: Expr


def build_winograd(spec: WinogradInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    conv, lanes = spec.conv, spec.conv.y.pitch
    x, y = parameter("x", "uint8", [conv.x.bytes]), parameter("y", "uint8", [conv.y.bytes])
    residual = parameter("residual", "uint8", [conv.residual.bytes]) if conv.residual else None
    weights = parameter("weights", "int16", [spec.weight_bytes // 2])
    bias, factor = parameter("bias", "int32", [lanes]), parameter("factor", "float32", [lanes])
    v = tirx.decl_buffer((POINTS * spec.plane(spec.block),), "int16", "v")
    m = tirx.decl_buffer((POINTS * spec.sums(spec.block),), "int32", "m")
    sums = [register(f"sum{i}", "int32", LANES) for i in range(spec.tile * spec.group)]
    frame = _Frame(spec, isa, x, residual, weights, bias, factor, y, v, m, sums)
    parameters = [x, *([residual] if residual is not None else []), weights, bias, factor, y]

    def body(begin: Var, end: Var) -> list[Stmt]:
        return [*allocate([v, m, *sums]), tasks(begin, end, lambda task: _task(frame, task))]

    return module(parameters, body)


def _task(frame: _Frame, task: Var) -> list[Stmt]:
    spec = frame.spec
    first, statement = bind("first", smaller(task * i64(spec.block), spec.patches - spec.block))
    groups = spec.conv.vectors // spec.group

    def forward(t: Var) -> list[Stmt]:
        patch, body = _patch(spec, first + t)
        return [*body, *_transform(frame, patch, t)]

    def group(g: Var) -> list[Stmt]:
        def back(t: Var) -> list[Stmt]:
            patch, body = _patch(spec, first + t)
            own = loop("v", spec.group, lambda v: _back(frame, patch, t, g * i64(spec.group) + v, v))
            return [*body, *_border(frame, patch, g), own]

        products = loop("point", POINTS, lambda point: _products(frame, g, point))
        return [products, loop("t", spec.block, back)]

    return [statement, loop("t", spec.block, forward), loop("g", groups, group)]


def _patch(spec: WinogradInt8Spec, index: Expr) -> tuple[_Patch, list[Stmt]]:
    """Return the place of a patch; those at the end are moved back onto the image."""
    down, right = spec.grid
    n, first = bind("n", tirx.floordiv(index, i64(down * right)))
    inner, second = bind("inner", tirx.floormod(index, i64(down * right)))
    row = smaller(tirx.floordiv(inner, i64(right)) * i64(4), spec.conv.y.height - 4)
    column = smaller(tirx.floormod(inner, i64(right)) * i64(4), spec.conv.y.width - 4)
    names = [bind("row", row), bind("column", column)]
    patch = _Patch(n, names[0][0], names[1][0])
    return patch, [first, second, *(statement for _, statement in names)]


def _border(frame: _Frame, patch: _Patch, group: Expr) -> list[Stmt]:
    """Return the border beside the first patch of a row, once."""
    conv = frame.spec.conv
    edges = border(frame.y, conv.y, patch.n, patch.row, 4, conv.add.zeros[2] if conv.add else conv.zero)
    if not edges:
        return []
    begins = tirx.And(tirx.EQ(patch.column, i64(0)), tirx.EQ(group, i64(0)))
    return [tirx.IfThenElse(begins, sequence(edges), None)]


# --- data -------------------------------------------------------------------------------------------


def _transform(frame: _Frame, patch: _Patch, t: Expr) -> list[Stmt]:
    """Return the transform of a patch of bytes into V, 32 channels at a time and maybe 16 at the end."""
    pitch = frame.spec.conv.x.pitch
    whole, rest = divmod(pitch, 32)
    body = [loop("c", whole, lambda c: _chunk(frame, patch, t, c * i64(32), 32))] if whole else []
    return body + (_chunk(frame, patch, t, i64(whole * 32), 16) if rest else [])


def _chunk(frame: _Frame, patch: _Patch, t: Expr, channel: Expr, lanes: int) -> list[Stmt]:
    spec, x = frame.spec, frame.spec.conv.x
    pads = spec.conv.pads
    fixed = x.origin - pads[0] * x.row - pads[1] * x.pitch
    at = patch.n * i64(x.plane) + patch.row * i64(x.row) + patch.column * i64(x.pitch) + channel
    base, statement = bind("base", at + i64(fixed))
    body: list[Stmt] = [statement]
    columns: list[Values] = []
    for column in range(6):
        offsets = [row * x.row + column * x.pitch for row in range(6)]
        read = [tirx.Cast(f"int16x{lanes}", vector(frame.x, base + i64(offset), lanes)) for offset in offsets]
        columns.append(_six(_named(read, body), body))
    for i in range(6):
        for j, value in enumerate(_six([column[i] for column in columns], body)):
            plane = (i * 6 + j) * spec.plane(spec.block)
            body.append(put(frame.v, value, t * i64(x.pitch) + channel + i64(plane), lanes))
    return body


def _named(values: Sequence[Expr], body: list[Stmt]) -> Values:
    """Return names for values, computed once in `body`."""
    pairs = [bind("value", value) for value in values]
    body += [statement for _, statement in pairs]
    return [name for name, _ in pairs]


def _times(value: Expr, power: int) -> Expr:
    """Return `value * 2^power`; LLVM makes a shift of it."""
    dtype, lanes = str(value.ty.dtype).split("x")
    return value * tirx.Broadcast(tirx.IntImm(dtype, 1 << power), int(lanes))


def _six(d: Values, body: list[Stmt]) -> Values:
    """Return `winograd_int8.DATA` times six values, in 17 additions and shifts."""
    p, q, r, s, e = _named(
        [d[4] - _times(d[2], 2), d[3] - _times(d[1], 2), d[4] - d[2], _times(d[3] - d[1], 1), d[5] - d[3]],
        body,
    )
    found = [_times(d[0] - d[2], 2) + r, p + q, p - q, r + s, r - s, e - _times(s, 1)]
    return _named(found, body)


# --- products ---------------------------------------------------------------------------------------


def _products(frame: _Frame, group: Expr, point: Expr) -> list[Stmt]:
    """Return the matrix product of one point: patches x outputs of a group."""
    spec, nv = frame.spec, frame.spec.group
    first, one = bind("weights_at", (group * i64(POINTS) + point) * i64(spec.steps * nv * 32))

    def tile(index: Var) -> list[Stmt]:
        start = index * i64(spec.tile)
        data = point * i64(spec.plane(spec.block)) + start * i64(spec.conv.x.pitch)
        base, two = bind("data_at", data)
        out, three = bind("out", point * i64(spec.sums(spec.block)) + start * i64(nv * LANES))
        clear = [put(held, i32(0), 0) for held in frame.sums]
        dots = loop("k", spec.steps, lambda k: _dots(frame, first + k * i64(nv * 32), base + k * i64(2)))
        ends = [put(frame.m, vector(held, 0), out + i64(i * LANES)) for i, held in enumerate(frame.sums)]
        return [two, three, *clear, dots, *ends]

    return [one, loop("tile", spec.block // spec.tile, tile)]


def _dots(frame: _Frame, weights_at: Expr, data_at: Expr) -> list[Stmt]:
    spec, nv = frame.spec, frame.spec.group
    body: list[Stmt] = []
    weights = _named([vector(frame.weights, weights_at + i64(v * 32), 32) for v in range(nv)], body)
    for t in range(spec.tile):
        pair = tirx.reinterpret("int32", vector(frame.v, data_at + i64(t * spec.conv.x.pitch), 2))
        data = _named([tirx.reinterpret("int16x32", tirx.Broadcast(pair, LANES))], body)[0]
        for v in range(nv):
            held = frame.sums[t * nv + v]
            dot = llvm("llvm.x86.avx512.vpdpwssd.512", "int32x16", vector(held, 0), data, weights[v])
            body.append(put(held, dot, 0))
    return body


# --- back -------------------------------------------------------------------------------------------


def _back(frame: _Frame, patch: _Patch, t: Expr, channel: Expr, v: Expr) -> list[Stmt]:
    """Return the transform back, requantization and stores of 4 x 4 pixels of 16 channels."""
    spec = frame.spec
    at, statement = bind("at", (t * i64(spec.group) + v) * i64(LANES))
    body: list[Stmt] = [statement]
    step = spec.sums(spec.block)
    columns: list[Values] = []
    for j in range(6):
        read = [vector(frame.m, at + i64((i * 6 + j) * step)) for i in range(6)]
        columns.append(_four(_named(read, body), body))
    rows = [_four([column[i] for column in columns], body) for i in range(4)]
    bias, factor = _named([vector(b, channel * i64(LANES)) for b in (frame.bias, frame.factor)], body)
    finish = _finisher(frame, patch, channel, bias, factor, body)
    for r, row in enumerate(rows):
        for c, value in enumerate(row):
            finish(r, c, value)
    return body


def _four(m: Values, body: list[Stmt]) -> Values:
    """Return `winograd_int8.BACK` times six values, in 13 additions and shifts."""
    a, b, c, d = _named([m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]], body)
    return _named([m[0] + a + c, b + _times(d, 1), a + _times(c, 2), b + _times(d + m[5], 3)], body)


def _finisher(
    frame: _Frame, patch: _Patch, channel: Expr, bias: Expr, factor: Expr, body: list[Stmt]
) -> Callable[[int, int, Expr], None]:
    """Return what turns 576 times a sum into a byte of pixel (row, column) of the patch."""
    conv = frame.spec.conv
    limits = (conv.zero, conv.low, conv.high)
    if conv.add:
        limits = (conv.add.zeros[2], conv.add.low, conv.add.high)
    out, statement = bind("out", _pixel(conv.y, patch, channel))
    body.append(statement)
    other = None
    if conv.residual:
        other, statement = bind("other", _pixel(conv.residual, patch, channel))
        body.append(statement)
    ninth = NINTH - 2**32 if NINTH >= 2**31 else NINTH

    def finish(r: int, c: int, value: Expr) -> None:
        total = tirx.shift_right(value * i32(ninth), i32(6)) + bias
        steps = rounded(frame.isa, tirx.Cast("float32x16", total) * factor, small=conv.small)
        if other is not None and conv.residual and frame.residual is not None:
            at = other + i64(r * conv.residual.row + c * conv.residual.pitch)
            steps = with_other(frame.isa, conv, frame.residual, steps, at, body)
        body.append(put(frame.y, to_bytes(steps, *limits), out + i64(r * conv.y.row + c * conv.y.pitch)))

    return finish


def _pixel(i: Image, patch: _Patch, channel: Expr) -> Expr:
    """Return the offset of a patch's first pixel and of a vector of channels in an image."""
    at = patch.n * i64(i.plane) + patch.row * i64(i.row) + patch.column * i64(i.pitch)
    return at + channel * i64(LANES) + i64(i.origin)
