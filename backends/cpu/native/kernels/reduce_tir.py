"""Joins the elements of a contiguous row to one number, as TIR. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt

from . import emit
from .int8_emit import i64, loop
from .math_f32 import lit
from .strided import LANES

MOST_SUMS = 4


def total(
    length: int,
    value: Callable[[Expr, int], Expr],
    join: Callable[[Expr, Expr], Expr],
    start: float,
    finish: Callable[[Expr], Stmt],
    keep: Callable[[Expr, int, Expr], list[Stmt]] | None = None,
) -> list[Stmt]:
    """Return statements that join `value(index, lanes)` over a row and hand the result to `finish`.

    `keep(index, lanes, value)` stores values for a later pass.

    Up to four vectors of partial results hide the latency of `join`; the last vector of a row is moved back
    and what it has in common with the one before is replaced by `start`, which `join` ignores.
    """
    lanes = LANES if length >= LANES else 1
    whole, rest = divmod(length, lanes)
    count = max(n for n in range(1, MOST_SUMS + 1) if whole % n == 0)
    sums = [emit.register(f"sum{i}", "float32", lanes) for i in range(count)]

    def add(held: Buffer, given: Expr) -> Stmt:
        return emit.store(held, join(emit.load(held, 0, lanes=lanes), given), 0, lanes=lanes)

    def one(held: Buffer, index: Expr, change: Callable[[Expr], Expr] = lambda made: made) -> list[Stmt]:
        if keep is None:
            return [add(held, change(value(index, lanes)))]
        made = emit.register("made", "float32", lanes)
        named = emit.load(made, 0, lanes=lanes)
        before = [*emit.allocate([made]), emit.store(made, value(index, lanes), 0, lanes=lanes)]
        return [*before, *keep(index, lanes, named), add(held, change(named))]

    def step(index: Expr) -> list[Stmt]:
        first = index * i64(count * lanes)
        return [stmt for i, held in enumerate(sums) for stmt in one(held, first + i64(i * lanes))]

    masked = []
    if rest:
        kept = tirx.Ramp(emit.const(0), emit.const(1), lanes) >= emit.splat(emit.const(lanes - rest), lanes)
        masked = one(sums[0], i64(length - lanes), lambda made: tirx.Select(kept, made, lit(start, lanes)))
    joined = [add(sums[0], emit.load(held, 0, lanes=lanes)) for held in sums[1:]]
    return [
        *emit.allocate(sums),
        *(emit.store(held, lit(start, lanes), 0, lanes=lanes) for held in sums),
        loop("k", whole // count, step),
        *masked,
        *joined,
        finish(folded(sums[0], lanes, join)),
    ]


def folded(buffer: Buffer, lanes: int, join: Callable[[Expr, Expr], Expr]) -> Expr:
    """Return the lanes of a register joined pairwise."""
    parts: Sequence[Expr] = [emit.load(buffer, i) for i in range(lanes)]
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [join(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
    return parts[0]
