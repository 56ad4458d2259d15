"""The statements of `move.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from . import emit
from .concat import ConcatSpec
from .move import MoveSpec

LANES = 16
SAFE = float(2**30)  # beyond every byte, and exact in int32


def build_move(spec: MoveSpec) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    source = emit.parameter("source", spec.source.dtype, (spec.source.size,))
    target = emit.parameter("target", spec.target.dtype, (spec.target.size,))
    move = _Move(spec, source, target)
    return emit.module((source, target), lambda begin, end: [emit.loop("t", begin, end - begin, move.task)])


def build_concat(spec: ConcatSpec) -> tvm.IRModule:
    """Return the module whose `main` writes all parts of a concatenation; the first fills the border."""
    first = spec.parts[0]
    target = emit.parameter("target", first.target.dtype, (first.target.size,))
    sources = [
        emit.parameter(f"source_{i}", part.source.dtype, (part.source.size,))
        for i, part in enumerate(spec.parts)
    ]
    moves = [_Move(part, source, target) for part, source in zip(spec.parts, sources, strict=True)]

    def task(task: Var) -> Sequence[Stmt]:
        n, line = moves[0].place(task)
        rows = [stmt for move in moves for stmt in move.row(n, moves[0].inner(line))]
        return moves[0].either(line, [*moves[0].sides(n, line), *rows], moves[0].outside(n, line))

    given = (*sources, target)
    return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, task)])


class _Move:
    def __init__(self, spec: MoveSpec, source: Buffer, target: Buffer) -> None:
        self.spec, self.source, self.target = spec, source, target

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one row of the target: its border, or its pixels with what is left and right of them."""
        n, line = self.place(task)
        return self.either(
            line, [*self.sides(n, line), *self.row(n, self.inner(line))], self.outside(n, line)
        )

    def place(self, task: Expr) -> tuple[Expr, Expr]:
        """Return the image and the line of the target, border included, that a task writes."""
        rows = emit.const(self.spec.sizes[1] + self.spec.border[0] + self.spec.border[2])
        return tirx.truncdiv(task, rows), tirx.truncmod(task, rows)

    def inner(self, line: Expr) -> Expr:
        """Return the row of pixels behind the border."""
        return line - self.spec.border[0]

    def either(self, line: Expr, inside: Sequence[Stmt], outside: Sequence[Stmt]) -> Sequence[Stmt]:
        """Return what happens on a line of pixels, or on one of the border."""
        top, _, bottom, _ = self.spec.border
        if not top and not bottom:
            return inside
        within = tirx.And(line >= top, line < top + self.spec.sizes[1])
        return [tirx.IfThenElse(within, emit.sequence(inside), emit.sequence(outside))]

    def start(self, n: Expr, line: Expr) -> Expr:
        """Return where a line of the target begins."""
        spec, target = self.spec, self.spec.target.strides
        return (
            n * target[0] + self.inner(line) * target[1] + (spec.target.offset - spec.border[1] * target[2])
        )

    def sides(self, n: Expr, line: Expr) -> list[Stmt]:
        """Return the statements that fill what is left and right of a row."""
        (_, left, _, right), step = self.spec.border, self.spec.target.strides[2]
        start = self.start(n, line)
        after = start + (left + self.spec.sizes[2]) * step
        return [*self.fill(start, left * step), *self.fill(after, right * step)]

    def outside(self, n: Expr, line: Expr) -> list[Stmt]:
        """Return the statements that fill a line of the border."""
        (_, left, _, right), step = self.spec.border, self.spec.target.strides[2]
        return self.fill(self.start(n, line), (self.spec.sizes[2] + left + right) * step)

    def fill(self, at: Expr, count: int) -> list[Stmt]:
        """Return the statements that fill `count` elements."""
        kind = self.spec.target.dtype
        value = tirx.FloatImm(kind, 0.0) if kind == "float32" else tirx.IntImm(kind, self.spec.fill)

        def put(offset: Expr | int, lanes: int) -> Stmt:
            wide = emit.splat(value, lanes) if lanes > 1 else value
            return emit.store(self.target, wide, at + offset, lanes=lanes)

        return _run(count, put)

    def row(self, n: Expr, y: Expr) -> list[Stmt]:
        """Return the statements that move one row of pixels."""
        spec = self.spec
        _, _, width, channels = spec.sizes
        starts = [
            n * side.strides[0] + y * side.strides[1] + side.offset for side in (spec.source, spec.target)
        ]
        if spec.run == width * channels and spec.lanes in (0, channels):
            return _run(spec.run, lambda i, lanes: self.move(starts[0] + i, starts[1] + i, lanes))
        strides = (spec.source.strides, spec.target.strides)
        rest = self.padding(starts[1], width)
        if spec.run == 1:

            def channel(c: Expr | int) -> list[Stmt]:
                return self.plane([s + c * k[3] for s, k in zip(starts, strides, strict=True)])

            # Few channels are written out, so that their stores mix; many would make code without end.
            few = channels <= LANES
            columns = [stmt for c in range(channels) for stmt in channel(c)] if few else []
            return [*(columns or [emit.loop("c", 0, channels, channel)]), *rest]

        def pixel(x: Expr) -> Sequence[Stmt]:
            ends = [s + x * k[2] for s, k in zip(starts, strides, strict=True)]
            return _run(channels, lambda i, lanes: self.move(ends[0] + i, ends[1] + i, lanes))

        return [emit.loop("x", 0, width, pixel), *rest]

    def plane(self, starts: Sequence[Expr]) -> list[Stmt]:
        """Return the statements that move one channel of a row."""
        steps = self.spec.source.strides[2], self.spec.target.strides[2]

        def move(x: Expr | int, lanes: int) -> Stmt:
            indices = [start + x * step for start, step in zip(starts, steps, strict=True)]
            return self.move(indices[0], indices[1], lanes, steps)

        return _run(self.spec.sizes[2], move)

    def padding(self, start: Expr, width: int) -> list[Stmt]:
        """Return the statements that fill the lanes beyond the channels."""
        spec = self.spec
        count, step = max(0, spec.lanes - spec.sizes[3]), spec.target.strides[2]
        if not count:
            return []
        return [emit.loop("p", 0, width, lambda x: self.fill(start + (x * step + spec.sizes[3]), count))]

    def move(self, source: Expr, target: Expr, lanes: int, steps: tuple[int, int] = (1, 1)) -> Stmt:
        """Return the statement that moves `lanes` elements."""
        indices = [
            tirx.Ramp(at, emit.const(step), lanes) if lanes > 1 else at
            for at, step in zip((source, target), steps, strict=True)
        ]
        value = self.convert(tirx.BufferLoad(self.source, [indices[0]]), lanes)
        return tirx.BufferStore(self.target, value, [indices[1]])

    def convert(self, value: Expr, lanes: int) -> Expr:
        """Return what becomes of a vector of elements."""
        spec = self.spec
        if spec.how == "shift":
            flipped = tirx.bitwise_xor(
                value, _int(spec.source.dtype, -128 if spec.source.dtype == "int8" else 128, lanes)
            )
            return emit.reinterpret(_wide(spec.target.dtype, lanes), flipped)
        if spec.how in ("dequantize", "requantize"):
            scale, zero = spec.source_quant
            whole = tirx.Cast(_type("int32", lanes), value) - _int("int32", zero, lanes)
            value = tirx.Cast(_type("float32", lanes), whole) * _float(scale, lanes)
        if spec.how in ("quantize", "requantize"):
            value = self.quantize(value, lanes)
        return value

    def quantize(self, value: Expr, lanes: int) -> Expr:
        scale, zero = self.spec.target_quant
        steps = value / _float(scale, lanes)
        # NaN by its bits: TVM takes `x == x` for true.
        bits = tirx.bitwise_and(
            emit.reinterpret(_wide("int32", lanes), steps), _int("int32", 0x7FFFFFFF, lanes)
        )
        steps = tirx.Select(bits <= _int("int32", 0x7F800000, lanes), steps, _float(0.0, lanes))
        steps = tirx.Max(tirx.Min(steps, _float(SAFE, lanes)), _float(-SAFE, lanes))
        whole = tirx.Cast(_type("int32", lanes), emit.llvm("llvm.rint", _wide("float32", lanes), steps))
        moved = whole + _int("int32", zero, lanes)
        bounded = tirx.Max(tirx.Min(moved, _int("int32", 255, lanes)), _int("int32", 0, lanes))
        return tirx.Cast(_type("uint8", lanes), bounded)


def _run(count: int, put: Callable[[Expr | int, int], Stmt]) -> list[Stmt]:
    """Return statements over `count` elements: vectors, the last one moved back, or single elements."""
    if count < LANES:
        return [put(i, 1) for i in range(count)]
    whole = [emit.loop("v", 0, count // LANES, lambda v: [put(v * LANES, LANES)])]
    return whole if count % LANES == 0 else [*whole, put(count - LANES, LANES)]


def _wide(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def _type(dtype: str, lanes: int) -> object:
    from tvm import ir

    return ir.PrimType(_wide(dtype, lanes))


def _int(dtype: str, value: int, lanes: int) -> Expr:
    one = tirx.IntImm(dtype, value)
    return emit.splat(one, lanes) if lanes > 1 else one


def _float(value: float, lanes: int) -> Expr:
    one = tirx.FloatImm("float32", value)
    return emit.splat(one, lanes) if lanes > 1 else one
