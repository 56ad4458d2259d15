"""Softmax and normalizations along the last axis of rank-N tensors in float32.

    softmax        exp(x - max) / sum of exp(x - max)
    log-softmax    x - max - log(sum of exp(x - max))
    layer          (x - mean) / sqrt(mean of (x - mean)^2 + epsilon) * scale + shift
    rms            x / sqrt(mean of x^2 + epsilon) * scale + shift
    l2             x / max(sqrt(sum of x^2), epsilon)
    l1             x / max(sum of |x|, epsilon)

Rows are contiguous and may lie anywhere (`strided.py`); input and output may be quantized. Unlike
`softmax_f32` rows have no padding lanes.

Tile: one row in passes over at most some cache lines, 16 lanes at a time, the last vector of a row moved back
and its known lanes masked; rows shorter than a vector go element by element. A softmax takes about 20 cycles
per vector, all in the exponential; a normalization three passes of one load per vector. One task is one index
of the outermost axis. May run in place.

Measured on one core of Zen 4: softmax of 512 x 128 59 us with a copy of 256 KiB, layer norm of 128 x 256
12 us (20 cycles per vector).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .....compiler.backend import Verdict
from .strided import Operand, bytes_of

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt

    from ..isa import Isa

MOST = 16384
Kind = Literal["softmax", "log-softmax", "layer", "rms", "l2", "l1"]


@dataclass(frozen=True)
class RowsF32Spec:
    """Static shape; parameters: data, scale?, shift?, out.

    Attributes:
        sizes: of the axes, the last one is the row.
        data, output: where they lie; the last stride is 1.
        kind: what is computed.
        epsilon: of the normalizations.
        scale, shift: whether there is one, as a constant [length].
    """

    sizes: tuple[int, ...]
    data: Operand
    output: Operand
    kind: Kind
    epsilon: float = 0.0
    scale: bool = False
    shift: bool = False

    @property
    def length(self) -> int:
        """Elements of a row."""
        return self.sizes[-1]

    def tasks(self) -> int:
        """Length of the parallel loop: the outermost axis."""
        return self.sizes[0] if len(self.sizes) > 1 else 1

    def bytes(self) -> int:
        """Bytes of data and output."""
        return bytes_of(self.sizes, self.data) + bytes_of(self.sizes, self.output)


def supports(spec: RowsF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if not spec.sizes or min(spec.sizes) < 1:
        return Verdict.no(f"rows of sizes {spec.sizes}")
    if spec.length > MOST and "softmax" in spec.kind:
        return Verdict.no(f"a softmax over {spec.length} elements; the powers of {MOST} fit the stack")
    if spec.length > 1 and (spec.data.last, spec.output.last) != (1, 1):
        return Verdict.no("rows that are not contiguous")
    return Verdict.yes()


def pack(
    spec: RowsF32Spec, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return scale and shift as they are."""
    given = [array for array in (scale, shift) if array is not None]
    return [np.ascontiguousarray(array, np.float32).reshape(spec.length) for array in given]


def build(spec: RowsF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: data, scale?, shift?, out, `begin`, `end`."""
    return _Rows(spec).module()


class _Rows:
    """The kernel being written."""

    def __init__(self, spec: RowsF32Spec) -> None:
        from . import emit
        from .strided_tir import parameter
        from .tile_f32 import optional

        self.spec = spec
        self.data, self.out = parameter("data", spec.data), parameter("out", spec.output)
        self.scale = optional(spec.scale, "scale", (spec.length,))
        self.shift = optional(spec.shift, "shift", (spec.length,))
        self.found = emit.register("found", "float32", 2)
        self.row: list[Expr] = []

    def module(self) -> tvm.IRModule:
        from .emit import module
        from .int8_emit import tasks
        from .tile_f32 import present

        given = [self.data, *present(self.scale, self.shift), self.out]
        return module(given, lambda begin, end: [tasks(begin, end, self.task)])

    def task(self, task: Expr) -> list[Stmt]:
        from .strided_tir import nest

        sizes = self.spec.sizes
        if len(sizes) == 1:
            return self.one([])
        return nest(sizes[1:-1], lambda inner: self.one([task, *inner]))

    def one(self, row: list[Expr]) -> list[Stmt]:
        """Return the passes over one row."""
        from . import emit

        self.row = row
        kind = self.spec.kind
        passes = self.softmax() if "softmax" in kind else self.normalized()
        return [*emit.allocate([self.found]), *passes]

    # --- the two families ---------------------------------------------------------------------------

    def softmax(self) -> list[Stmt]:
        from tvm import tirx

        from . import emit
        from .math_f32 import exp, lit

        log = self.spec.kind == "log-softmax"

        def power(c: Expr, lanes: int) -> Expr:
            return exp(self.read(c, lanes) - self.number(0, lanes), lanes)

        def kept(c: Expr, lanes: int) -> Expr:
            return self.read(c, lanes) - self.number(0, lanes) - self.number(1, lanes)

        held = emit.parameter("powers", "float32", (self.spec.length,))

        def keep(c: Expr, lanes: int, value: Expr) -> list[Stmt]:
            return [] if log else [emit.store(held, value, c, lanes=lanes)]

        most = self.total(self.read, tirx.max, float("-inf"), lambda total: emit.store(self.found, total, 0))

        def last(total: Expr) -> Stmt:
            return emit.store(self.found, tirx.log(total) if log else lit(1.0, 1) / total, 1)

        add = self.total(power, lambda a, b: a + b, 0.0, last, keep)
        if log:
            return [*most, *add, *self.write(kept)]
        scaled = self.write(lambda c, lanes: emit.load(held, c, lanes=lanes) * self.number(1, lanes))
        return [*emit.allocate([held]), *most, *add, *scaled]

    def normalized(self) -> list[Stmt]:
        from tvm import tirx

        from . import emit
        from .math_f32 import lit

        spec, count = self.spec, float(self.spec.length)
        plus: Callable[[Expr, Expr], Expr] = lambda a, b: a + b  # noqa: E731
        mean = emit.store(self.found, lit(0.0, 1), 0)
        before = [mean]
        if spec.kind == "layer":
            before = self.total(
                self.read, plus, 0.0, lambda t: emit.store(self.found, t * lit(1 / count, 1), 0)
            )

        def centred(c: Expr, lanes: int) -> Expr:
            return self.read(c, lanes) - self.number(0, lanes)

        def size(c: Expr, lanes: int) -> Expr:
            value = centred(c, lanes)
            return tirx.max(value, lit(0.0, lanes) - value) if spec.kind == "l1" else value * value

        def factor(total: Expr) -> Expr:
            one = lit(1.0, 1)
            if spec.kind in ("l1", "l2"):
                root = tirx.sqrt(total) if spec.kind == "l2" else total
                return one / tirx.max(root, lit(spec.epsilon, 1))
            return one / tirx.sqrt(total * lit(1 / count, 1) + lit(spec.epsilon, 1))

        norm = self.total(size, plus, 0.0, lambda total: emit.store(self.found, factor(total), 1))

        def value(c: Expr, lanes: int) -> Expr:
            made = centred(c, lanes) * self.number(1, lanes)
            if self.scale is not None:
                made = made * emit.load(self.scale, c, lanes=lanes)
            return made if self.shift is None else made + emit.load(self.shift, c, lanes=lanes)

        return [*before, *norm, *self.write(value)]

    # --- passes -------------------------------------------------------------------------------------

    def read(self, c: Expr, lanes: int) -> Expr:
        """Return elements of the row."""
        from .strided_tir import load, place

        return load(self.data, self.spec.data, place(self.spec.data, [*self.row, c]), lanes)

    def number(self, index: int, lanes: int) -> Expr:
        """Return one of the row's two numbers."""
        from . import emit

        value = emit.load(self.found, index)
        return emit.splat(value, lanes) if lanes > 1 else value

    def write(self, value: Callable[[Expr, int], Expr]) -> list[Stmt]:
        """Return the pass that writes the row."""
        from . import emit
        from .strided_tir import place, row, store

        spec = self.spec

        def put(c: Expr, lanes: int) -> tuple[list[Stmt], Stmt]:
            held = emit.register("result", "float32", lanes)
            at = place(spec.output, [*self.row, c])
            write = store(self.out, spec.output, emit.load(held, 0, lanes=lanes), at, lanes)
            return [*emit.allocate([held]), emit.store(held, value(c, lanes), 0, lanes=lanes)], write

        return row(spec.length, put)

    def total(
        self,
        value: Callable[[Expr, int], Expr],
        join: Callable[[Expr, Expr], Expr],
        start: float,
        finish: Callable[[Expr], Stmt],
        keep: Callable[[Expr, int, Expr], list[Stmt]] | None = None,
    ) -> list[Stmt]:
        """Return the pass that joins `value` over the row and hands the result to `finish`."""
        from .reduce_tir import total

        return total(self.spec.length, value, join, start, finish, keep)
