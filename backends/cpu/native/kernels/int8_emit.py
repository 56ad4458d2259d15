"""What the int8 kernels share when they write TIR: dot products, requantization, borders, tiles of pixels.

The dot instruction takes four bytes of activations (uint8, the same for all lanes) and four bytes of
weights (int8) per lane of 16 int32 accumulators. TVM's own `VNNI_DOT_16x4_INTRIN` hands LLVM 22 operands of
type <16 x i32>, which its verifier refuses; here they are reinterpreted as <64 x i8>. Without VNNI the same
layout is multiplied in other ways (`dot_int8.py`).

Indices are 64-bit: with 32 bits LLVM sign-extends every address on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from .dot_int8 import dot_lanes
from .emit import llvm
from .int8_tiles import Image, interleaved

if TYPE_CHECKING:
    from ..isa import Isa

LANES = 16
QUAD = 4
SAFE_STEPS = float(2**30)
Index: TypeAlias = Expr | int
Body: TypeAlias = Callable[[Var], Sequence[Stmt]]


def i64(value: Index) -> Expr:
    """Return a 64-bit index."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def f32(value: float, lanes: int = LANES) -> Expr:
    """Return a float32 constant in every lane."""
    return tirx.Broadcast(tirx.FloatImm("float32", value), lanes)


def i32(value: int, lanes: int = LANES) -> Expr:
    """Return an int32 constant in every lane."""
    return tirx.Broadcast(tirx.IntImm("int32", value), lanes)


def u8(value: int, lanes: int = LANES) -> Expr:
    """Return a uint8 constant in every lane."""
    return tirx.Broadcast(tirx.IntImm("uint8", value), lanes)


def vector(buffer: Buffer, at: Index, lanes: int = LANES) -> Expr:
    """Return `lanes` elements of a flat buffer."""
    return tirx.BufferLoad(buffer, [tirx.Ramp(i64(at), i64(1), lanes)])


def put(buffer: Buffer, value: Expr, at: Index, lanes: int = LANES) -> Stmt:
    """Return the statement that stores `lanes` elements in a flat buffer."""
    return tirx.BufferStore(buffer, value, [tirx.Ramp(i64(at), i64(1), lanes)])


def flat(statements: Sequence[Stmt]) -> list[Stmt]:
    """Return the statements with sequences among them dissolved; TVM wants none inside a sequence."""
    found: list[Stmt] = []
    for statement in statements:
        found += flat(list(statement.seq)) if isinstance(statement, tirx.SeqStmt) else [statement]
    return found


def sequence(statements: Sequence[Stmt]) -> Stmt:
    """Return one statement."""
    every = flat(statements)
    return every[0] if len(every) == 1 else tirx.SeqStmt(every)


def loop(name: str, extent: Index, body: Body, begin: Index = 0) -> Stmt:
    """Return a loop with a 64-bit counter; one turn becomes the body itself."""
    variable = Var(name, "int64")
    inner = sequence(body(variable))
    if extent == 1 and isinstance(begin, int):
        return sequence([tirx.Bind(variable, i64(begin)), inner])
    return tirx.For(variable, i64(begin), i64(extent), tirx.ForKind.SERIAL, inner)


def tasks(begin: Var, end: Var, body: Body) -> Stmt:
    """Return the outermost loop over `begin <= task < end`."""
    first = tirx.Cast("int64", begin)
    return loop("task", tirx.Cast("int64", end) - first, body, first)


def bind(name: str, value: Expr) -> tuple[Var, Stmt]:
    """Return a name for `value` and the statement that computes it once."""
    variable = Var(name, value.ty)
    return variable, tirx.Bind(variable, value)


def smaller(left: Index, right: Index) -> Expr:
    """Return the minimum of two indices."""
    return tirx.Min(i64(left), i64(right))


def larger(left: Index, right: Index) -> Expr:
    """Return the maximum of two indices."""
    return tirx.Max(i64(left), i64(right))


def quad(buffer: Buffer, at: Index) -> Expr:
    """Return four bytes from `at` on as one int32."""
    return tirx.reinterpret("int32", vector(buffer, at, QUAD))


def dot(isa: Isa, sums: Expr, bytes4: Expr, weights: Expr) -> Expr:
    """Return `sums[l] + sum_q bytes4[q] * weights[l, q]`, 16 lanes, exact modulo 2^32.

    `bytes4`: four uint8, the same for all lanes, as one int32. `weights`: int8x64.
    """
    return dot_lanes(isa, sums, tirx.reinterpret("uint8x64", tirx.Broadcast(bytes4, LANES)), weights)


def rounded(isa: Isa, steps: Expr, lanes: int = LANES, small: bool = False) -> Expr:
    """Return `steps` (float32) rounded half to even as int32, saturated near +-2^30.

    `small` promises that no value is beyond 2^30, which saves an instruction.
    """
    capped = steps if small else tirx.Min(steps, f32(SAFE_STEPS, lanes))
    if isa.vnni and lanes == LANES:
        # Below -2^31 the instruction gives the most negative integer, which is what saturation wants.
        mask, current = tirx.IntImm("int16", -1), tirx.IntImm("int32", 4)
        return llvm("llvm.x86.avx512.mask.cvtps2dq.512", "int32x16", capped, i32(0), mask, current)
    return tirx.Cast(f"int32x{lanes}", tirx.nearbyint(tirx.Max(capped, f32(-SAFE_STEPS, lanes))))


def to_bytes(value: Expr, zero: int, low: int, high: int) -> Expr:
    """Return `clamp(value + zero, low, high)` of int32x16 as uint8x16."""
    shifted = value + i32(zero) if zero else value
    return tirx.Cast("uint8x16", tirx.Min(tirx.Max(shifted, i32(low)), i32(high)))


def to_bytes64(isa: Isa, values: Sequence[Expr], zero: int, low: int, high: int) -> Expr:
    """Return `clamp(value + zero, low, high)` of four int32x16 with `interleaved` lanes as 64 bytes."""
    if not isa.vnni:
        order = interleaved(4)
        narrow = [to_bytes(value, zero, low, high) for value in values]
        return shuffle(narrow, [order.index(channel) for channel in range(64)])
    halves = [llvm("llvm.x86.avx512.packssdw.512", "int16x32", values[i], values[i + 1]) for i in (0, 2)]
    if zero:
        offset = tirx.Broadcast(tirx.IntImm("int16", zero), 32)
        halves = [llvm("llvm.sadd.sat.v32i16", "int16x32", half, offset) for half in halves]
    packed = tirx.reinterpret("uint8x64", llvm("llvm.x86.avx512.packuswb.512", "int8x64", *halves))
    packed = tirx.Max(packed, u8(low, 64)) if low > 0 else packed
    return tirx.Min(packed, u8(high, 64)) if high < 255 else packed


def shuffle(values: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Return the lanes of `values`, counted one vector after the other, in this order."""
    return tirx.Shuffle(list(values), [tirx.IntImm("int32", lane) for lane in lanes])


def unpack(low: bool, a: Expr, b: Expr, lanes: int) -> Expr:
    """Return the elements of the low or high halves of all 128-bit lanes, alternating."""
    per = lanes // 4
    first = 0 if low else per // 2
    order = [
        side * lanes + per * lane + first + i for lane in range(4) for i in range(per // 2) for side in (0, 1)
    ]
    return shuffle([a, b], order)


def untangled(packed: Expr) -> Expr:
    """Return in order the 64 bytes that `to_bytes64` made of four vectors with lanes in natural order."""
    return shuffle([packed], interleaved(4))


def widen(value: Expr) -> list[Expr]:
    """Return 64 bytes as four int32x16, lanes as `interleaved` says."""
    none = u8(0, 64)
    words = [tirx.reinterpret("uint16x32", unpack(low, value, none, 64)) for low in (True, False)]
    zeros = tirx.Broadcast(tirx.IntImm("uint16", 0), 32)
    return [tirx.reinterpret("int32x16", unpack(low, w, zeros, 32)) for w in words for low in (True, False)]


def fill(buffer: Buffer, name: str, at: Expr, count: Index, value: int) -> list[Stmt]:
    """Return statements that set `count` bytes (a multiple of 16) to `value`."""
    if count == 0:
        return []
    sixteenths = count // 16 if isinstance(count, int) else tirx.floordiv(count, i64(16))
    return [loop(name, sixteenths, lambda i: [put(buffer, u8(value), at + i * i64(16))])]


def border(y: Buffer, i: Image, n: Expr, row: Expr, rows: int, zero: int) -> list[Stmt]:
    """Return statements that fill the border beside `rows` rows, and above or below at the edges."""
    top, left, bottom, right = i.border
    start = n * i64(i.plane)
    body: list[Stmt] = []
    for r in range(rows):
        begin = start + (row + i64(r + top)) * i64(i.row)
        body += fill(y, "left", begin, left * i.pitch, zero)
        body += fill(y, "right", begin + i64((left + i.width) * i.pitch), right * i.pitch, zero)
    above = fill(y, "above", start, top * i.row, zero)
    below = fill(y, "below", start + i64((top + i.height) * i.row), bottom * i.row, zero)
    if above:
        body.append(tirx.IfThenElse(tirx.EQ(row, i64(0)), sequence(above), None))
    if below:
        body.append(tirx.IfThenElse(tirx.EQ(row, i64(i.height - rows)), sequence(below), None))
    return body


def row_of(i: Image, n: Expr, row: Expr) -> Expr:
    """Return the offset of the first pixel of a row, behind the border."""
    return n * i64(i.plane) + row * i64(i.row) + i64(i.origin)
