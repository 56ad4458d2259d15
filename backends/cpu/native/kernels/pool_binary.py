"""Maximum over windows of bit planes: 32 channels per word at once. For one bit it is an OR.

Layouts: data [N, H, W, words * planes], out [N, OH, OW, words * planes] uint32 (bits.py).

Two planes `high` and `low`: the high bit of the larger of two values is h1 | h2; its low bit is that of the
one whose high bit is set, or l1 | l2 where the high bits are equal. Of ternary values the larger is +1 where
one is, and 0 where one is 0 and none is +1. Taps in the padding are left out. One task is one output row;
words are scalars, a pixel has at most a few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .....compiler.backend import Verdict
from .bits import Code, words_of
from .window import Window

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa


@dataclass(frozen=True)
class PoolBinarySpec:
    """Static shape; parameters: data, out, begin, end."""

    window: Window
    channels: int
    code: Code

    @property
    def words(self) -> int:
        """Words of a pixel, all planes."""
        return words_of(self.channels) * self.code.planes

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output in memory."""
        return self.window.batch, self.window.out_height, self.window.out_width, self.words

    def tasks(self) -> int:
        """Length of the parallel loop: output rows."""
        return self.window.batch * self.window.out_height

    def bytes(self) -> int:
        """Bytes of data and output."""
        w = self.window
        return 4 * (w.batch * w.height * w.width * self.words + int(np.prod(self.out_shape)))


def supports(spec: PoolBinarySpec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if reason := spec.window.refusal():
        return Verdict.no(reason)
    extents = [(k - 1) * d + 1 for k, d in zip(spec.window.kernel, spec.window.dilations, strict=True)]
    if any(pad >= extents[i % 2] for i, pad in enumerate(spec.window.pads)) or spec.window.dilations != (
        1,
        1,
    ):
        return Verdict.no(
            f"pads {spec.window.pads} and dilations {spec.window.dilations} leave windows empty"
        )
    return Verdict.yes()


def build(spec: PoolBinarySpec, isa: Isa) -> tvm.IRModule:
    """Write the kernel."""
    from tvm import tirx

    from . import emit

    window, planes = spec.window, spec.code.planes
    shape = (window.batch, window.height, window.width, spec.words)
    data, out = emit.parameter("data", "uint32", shape), emit.parameter("out", "uint32", spec.out_shape)
    best, next_ = (
        [emit.register(f"{name}{i}", "uint32", 1) for i in range(planes)] for name in ("best", "next")
    )

    def span(at: Expr, axis: int) -> tuple[Expr, Expr]:
        """Return the first tap of a window that reads data, and how many do."""
        size = (window.height, window.width)[axis]
        start = at * window.strides[axis] - window.pads[axis]
        first = tirx.max(start, emit.const(0))
        return first, tirx.min(start + window.kernel[axis], emit.const(size)) - first

    def pixel(n: Expr, y: Expr, x: Expr) -> list[Stmt]:
        (top, rows), (left, columns) = span(y, 0), span(x, 1)

        def read(r: Expr, c: Expr, word: Expr) -> list[Expr]:
            return [emit.load(data, n, r, c, word * planes + i) for i in range(planes)]

        def words(word: Expr) -> list[Stmt]:
            def tap(r: Expr, c: Expr) -> list[Stmt]:
                larger = _larger(spec.code, [emit.load(b, 0) for b in best], read(r, c, word))
                kept = [emit.store(b, v, 0) for b, v in zip(next_, larger, strict=True)]
                return kept + [emit.store(b, emit.load(v, 0), 0) for b, v in zip(best, next_, strict=True)]

            def line(r: Expr) -> list[Stmt]:
                return [emit.loop("s", left, columns, lambda c: tap(r, c))]

            start = [emit.store(b, v, 0) for b, v in zip(best, read(top, left, word), strict=True)]
            ends = [emit.store(out, emit.load(b, 0), n, y, x, word * planes + i) for i, b in enumerate(best)]
            return [*start, emit.loop("r", top, rows, line), *ends]

        return [emit.loop("word", 0, spec.words // planes, words)]

    def task(task: Expr) -> list[Stmt]:
        n, y = tirx.truncdiv(task, window.out_height), tirx.truncmod(task, window.out_height)
        return [
            *emit.allocate([*best, *next_]),
            emit.loop("x", 0, window.out_width, lambda x: pixel(n, y, x)),
        ]

    return emit.module([data, out], lambda begin, end: [emit.loop("t", begin, end - begin, task)])


def _larger(code: Code, left: Sequence[Expr], right: Sequence[Expr]) -> list[Expr]:
    """Return the planes of the larger values."""
    if code is Code.BINARY:
        return [left[0] | right[0]]
    if code is Code.TERNARY:
        plus = left[0] | right[0]
        return [plus, plus | (left[1] & right[1])]  # zero where one is zero and none is +1
    if code is Code.INT2:  # the high plane says negative
        return [_low(left[0], ~left[1], right[0], ~right[1]), left[1] & right[1]]
    return [_low(left[0], left[1], right[0], right[1]), left[1] | right[1]]


def _low(low1: Expr, high1: Expr, low2: Expr, high2: Expr) -> Expr:
    """Return the low bit of the larger: a value counts unless the other's high bit alone is set."""
    return (low1 & (high1 | ~high2)) | (low2 & (high2 | ~high1))
