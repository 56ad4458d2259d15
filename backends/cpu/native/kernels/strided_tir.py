"""Loads, stores and loops over strided operands as TIR. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt

from . import emit
from .int8_emit import i64, loop
from .math_f32 import lit
from .strided import LANES, Operand

SAFE = float(2**30)  # beyond every byte, and exact in int32


def parameter(name: str, operand: Operand) -> Buffer:
    """Return the flat buffer of an operand."""
    return emit.parameter(name, operand.dtype, (operand.size,))


def place(operand: Operand, indices: Sequence[Expr]) -> Expr:
    """Return where an element lies; `indices` may leave out inner axes."""
    at = i64(operand.offset)
    for index, stride in zip(indices, operand.strides, strict=False):
        if stride:
            at = at + index * i64(stride)
    return at


def load(buffer: Buffer, operand: Operand, at: Expr, lanes: int) -> Expr:
    """Return `lanes` elements along the innermost axis from `at` on, as floats."""
    if lanes == 1 or operand.last == 0:
        value = numbers(tirx.BufferLoad(buffer, [at]), operand, 1)
        return value if lanes == 1 else emit.splat(value, lanes)
    index = tirx.Ramp(at, i64(operand.last), lanes)
    return numbers(tirx.BufferLoad(buffer, [index]), operand, lanes)


def numbers(value: Expr, operand: Operand, lanes: int) -> Expr:
    """Return what elements are worth: `float32(q - zero) * scale` of quantized ones."""
    if operand.dtype == "float32":
        return value
    if operand.quant is None:
        return tirx.Cast(wide("float32", lanes), value)
    scale, zero = operand.quant
    whole = tirx.Cast(wide("int32", lanes), value) - ints(zero, lanes)
    return tirx.Cast(wide("float32", lanes), whole) * lit(scale, lanes)


def store(buffer: Buffer, operand: Operand, value: Expr, at: Expr, lanes: int) -> Stmt:
    """Return the statement that stores `lanes` floats along the innermost axis, quantized where asked."""
    given = value if operand.quant is None else quantized(value, operand.quant, lanes)
    index = at if lanes == 1 else tirx.Ramp(at, i64(operand.last), lanes)
    return tirx.BufferStore(buffer, given, [index])


def quantized(value: Expr, quant: tuple[float, int], lanes: int) -> Expr:
    """Return `saturate(rint(value / scale) + zero)`; NaN gives the zero point."""
    scale, zero = quant
    steps = value / lit(scale, lanes)
    # NaN by its bits: TVM takes `x == x` for true.
    bits = tirx.bitwise_and(emit.reinterpret(wide("int32", lanes), steps), ints(0x7FFFFFFF, lanes))
    steps = tirx.Select(bits <= ints(0x7F800000, lanes), steps, lit(0.0, lanes))
    steps = tirx.Max(tirx.Min(steps, lit(SAFE, lanes)), lit(-SAFE, lanes))
    whole = tirx.Cast(wide("int32", lanes), emit.llvm("llvm.rint", wide("float32", lanes), steps))
    moved = whole + ints(zero, lanes)
    return tirx.Cast(wide("uint8", lanes), tirx.Max(tirx.Min(moved, ints(255, lanes)), ints(0, lanes)))


def wide(dtype: str, lanes: int) -> str:
    """Return the name of a vector type."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def ints(value: int, lanes: int) -> Expr:
    """Return an int32 constant in every lane."""
    one = tirx.IntImm("int32", value)
    return emit.splat(one, lanes) if lanes > 1 else one


def nest(sizes: Sequence[int], body: Callable[[list[Expr]], Sequence[Stmt]]) -> list[Stmt]:
    """Return loops over `sizes`; `body` gets the indices, outermost first."""

    def level(axis: int, indices: list[Expr]) -> list[Stmt]:
        if axis == len(sizes):
            return list(body(indices))
        return [loop(f"i{axis}", sizes[axis], lambda i: level(axis + 1, [*indices, i]))]

    return level(0, [])


def row(length: int, put: Callable[[Expr, int], tuple[list[Stmt], Stmt]]) -> list[Stmt]:
    """Return a pass over `length` elements: vectors, the last one moved back, or single elements.

    `put(index, lanes)` gives statements that compute a result and the one that stores it. The vector that is
    moved back is computed before anything is stored, so that a pass may work in place.
    """

    def one(index: Expr, lanes: int) -> list[Stmt]:
        before, write = put(index, lanes)
        return [*before, write]

    if length < LANES:
        return [loop("c", length, lambda c: one(c, 1))]
    whole = loop("v", length // LANES, lambda v: one(v * i64(LANES), LANES))
    if length % LANES == 0:
        return [whole]
    before, write = put(i64(length - LANES), LANES)
    return [*before, whole, write]
