"""The kernel of `sparse_f32` as TIR. Needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer, Stmt, Var

from . import emit
from .math_f32 import lit
from .sparse_f32 import UNROLLED, Phase, SparseF32Spec, groups
from .tile_f32 import Output, branch, optional, present, split_task
from .window import LANES, groups_of, padded


def transposed(
    get: Callable[[int], Expr], put: Callable[[int, Expr], Stmt]
) -> tuple[list[Buffer], list[Stmt]]:
    """Return registers and statements that turn 16 vectors `get(i)` around and `put` each: 64 shuffles."""
    cells = [[emit.register(f"turn{step}_{i}", "float32", LANES) for i in range(LANES)] for step in range(4)]
    statements: list[Stmt] = []

    def value(stage: int, i: int) -> Expr:
        return get(i) if stage == 0 else emit.load(cells[stage - 1][i], 0, lanes=LANES)

    first = [emit.register(f"turn_{i}", "float32", LANES) for i in range(LANES)]
    statements += [emit.store(cell, get(i), 0, lanes=LANES) for i, cell in enumerate(first)]
    before = first
    for stage, step in enumerate((1, 2, 4, 8)):
        for i in range(LANES):
            if not i & step:
                pair = before[i], before[i | step]
                for half, to in ((0, i), (step, i | step)):
                    statements.append(_put(cells[stage][to], _merged(pair, step, half)))
        before = cells[stage]
    statements += [put(i, emit.load(cell, 0, lanes=LANES)) for i, cell in enumerate(before)]
    return [*first, *(cell for row in cells for cell in row)], statements


def _put(cell: Buffer, value: Expr) -> Stmt:
    return emit.store(cell, value, 0, lanes=LANES)


def _merged(pair: tuple[Buffer, Buffer], step: int, half: int) -> Expr:
    """Return the lanes of both vectors whose bit `step` is that of `half`, in alternating runs."""
    lanes = [(k & ~step | half) + (LANES if k & step else 0) for k in range(LANES)]
    vectors = [emit.load(cell, 0, lanes=LANES) for cell in pair]
    return tirx.Shuffle(vectors, [tirx.IntImm("int32", lane) for lane in lanes])


class Writer:
    """The kernel being written."""

    def __init__(self, spec: SparseF32Spec) -> None:
        self.spec, window, last = spec, spec.window, padded(spec.out_channels)
        shape = (window.batch, window.height, window.width, padded(spec.channels))
        self.data = emit.parameter("data", "float32", shape)
        self.values = emit.parameter("values", "float32", (spec.entries,))
        self.places = emit.parameter("places", "uint16", (spec.entries,))
        self.pointers = emit.parameter("pointers", "int32", (spec.blocks * last + 1,))
        self.bias = optional(spec.after.bias, "bias", (last,))
        residual = optional(spec.after.residual, "residual", spec.out_shape)
        self.out: Output = Output(
            emit.parameter("out", "float32", spec.out_shape), spec.after, None, residual
        )
        self.turned = emit.parameter("turned", "float32", (spec.turned,))
        self.rows = emit.parameter("rows", "float32", (spec.tile.vectors * LANES * LANES,))
        self.sums = optional(spec.blocks > 1, "sums", spec.scratch[0] if spec.scratch else (1,))
        self.cells = [emit.register(f"acc{j}", "float32", LANES) for j in range(spec.tile.vectors)]

    def module(self) -> tvm.IRModule:
        """Return the module with its parameters in the order of the convention."""
        constants = [self.values, self.places, self.pointers]
        given = present(self.data, self.out.residual, *constants, self.bias, self.out.to, self.sums)
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one task: all blocks of channels of one tile of pixels."""
        spec = self.spec
        down, across = spec.grid
        rest, column = split_task(task, across)
        n, line = split_task(rest, down)
        at = n, line * spec.tile.lines, column * spec.tile.across
        local = emit.allocate([self.turned, self.rows, *self.cells])
        last = tirx.const(spec.blocks - 1, "int32")
        end = [
            *self.fill(at, last, True),
            emit.loop("g", 0, groups_of(spec.out_channels), self._finish(task, at)),
        ]
        if self.sums is None:
            return [*local, *end]
        early = emit.loop(
            "b", 0, spec.blocks - 1, lambda b: [*self.fill(at, b, False), self.add_block(task, b)]
        )
        return [*local, self.start(task), early, *end]

    # --- data ---------------------------------------------------------------------------------------

    def fill(self, at: tuple[Expr, Expr, Expr], block: Expr, last: bool) -> list[Stmt]:
        """Return the transposition of one block of channels into the tile."""
        spec = self.spec
        units = spec.tile.across // LANES or 1

        def phase(one: Phase) -> Stmt:
            lines = -(-one.count * spec.tile.across // (units * LANES))
            return emit.loop(
                "g", 0, groups(spec, last),
                lambda g: [emit.loop("s", 0, spec.window.kernel[1],
                lambda s: [emit.loop("l", 0, lines,
                lambda line: [emit.loop("u", 0, units,
                lambda u: self.turn(at, one, (block, g, s, line, u)))])])],
            )  # fmt: skip

        return [phase(one) for one in spec.phases]

    def turn(
        self, at: tuple[Expr, Expr, Expr], phase: Phase, where: tuple[Expr, Expr, Expr, Expr, Expr]
    ) -> Sequence[Stmt]:
        """Return the transposition of 16 channels of 16 pixels: zeros where they lie in the padding."""
        spec, window = self.spec, self.spec.window
        block, g, s, line, unit = where
        across = spec.tile.across
        per_line = min(across, LANES)
        channel = (block * (spec.tile.block // LANES) + g) * LANES
        to = (g * LANES * window.kernel[1] + s) * spec.plane + phase.start * across
        to = to + line * max(across, LANES) + unit * LANES

        def pixel(i: int) -> tuple[Expr, Expr]:
            number = line * (LANES // per_line) + i // per_line
            y = (at[1] + number) * window.strides[0] + (phase.first - window.pads[0])
            x = tirx.min(at[2] + unit * LANES + i % per_line, window.out_width - 1)
            return y, x * window.strides[1] + (s * window.dilations[1] - window.pads[1])

        def inside(i: int) -> list[Expr]:
            y, x = pixel(i)
            return [y >= 0, y < window.height, x >= 0, x < window.width]

        def get(i: int) -> Expr:
            return emit.load(self.data, at[0], *pixel(i), channel, lanes=LANES)

        def put(i: int, value: Expr) -> Stmt:
            return emit.store(self.turned, value, to + i * (window.kernel[1] * spec.plane), lanes=LANES)

        cells = [emit.register(f"px{i}", "float32", LANES) for i in range(LANES)]
        plain = [_put(cell, get(i)) for i, cell in enumerate(cells)]
        careful = [
            branch(inside(i), [_put(cell, get(i))], [_put(cell, lit(0.0, LANES))])
            for i, cell in enumerate(cells)
        ]
        registers, turned = transposed(lambda i: emit.load(cells[i], 0, lanes=LANES), put)
        loads = plain if window.pointwise else [branch([*inside(0), *inside(LANES - 1)], plain, careful)]
        return [*emit.allocate([*cells, *registers]), *loads, *turned]

    # --- products -----------------------------------------------------------------------------------

    def start(self, task: Expr) -> Stmt:
        """Return the first values of all sums: the bias."""
        return emit.loop(
            "o", 0, padded(self.spec.out_channels), lambda o: self.keep(task, o, lambda j: self.first(o))
        )

    def first(self, o: Expr) -> Expr:
        """Return what sums of an output channel start from."""
        return lit(0.0, LANES) if self.bias is None else emit.splat(emit.load(self.bias, o), LANES)

    def keep(self, task: Expr, o: Expr, value: Callable[[int], Expr]) -> list[Stmt]:
        """Return the stores of one output channel's sums until the next block."""
        assert self.sums is not None, "several blocks"
        return [
            emit.store(self.sums, value(j), self.kept(task, o, j), lanes=LANES)
            for j in range(len(self.cells))
        ]

    def kept(self, task: Expr, o: Expr, j: int) -> Expr:
        """Return the place of one vector of sums."""
        return task * self.spec.slot + (o * len(self.cells) + j) * LANES

    def add_block(self, task: Expr, block: Expr) -> Stmt:
        """Return the products of one block that is not the last."""
        return emit.loop(
            "o", 0, padded(self.spec.out_channels),
            lambda o: [*self.row(task, block, o), *self.keep(task, o, self.sum)],
        )  # fmt: skip

    def sum(self, j: int) -> Expr:
        """Return one accumulator."""
        return emit.load(self.cells[j], 0, lanes=LANES)

    def row(self, task: Expr, block: Expr, o: Expr) -> list[Stmt]:
        """Return the products of one row of nonzeros, on top of what was kept."""
        number = block * padded(self.spec.out_channels) + o
        begin, end = emit.load(self.pointers, number), emit.load(self.pointers, number + 1)

        def before(j: int) -> Expr:
            if self.sums is None:
                return self.first(o)
            return emit.load(self.sums, self.kept(task, o, j), lanes=LANES)

        start = [_put(cell, before(j)) for j, cell in enumerate(self.cells)]
        return [*start, emit.loop("e", begin, end - begin, self.products)]

    def products(self, turn: Expr) -> list[Stmt]:
        """Return the products of a few nonzeros with the tile's pixels."""
        statements: list[Stmt] = []
        for i in range(UNROLLED):
            place = emit.load(self.places, turn * UNROLLED + i).astype("int32") * 2
            value = emit.splat(emit.load(self.values, turn * UNROLLED + i), LANES)
            statements += [
                _put(cell, value * emit.load(self.turned, place + j * LANES, lanes=LANES) + self.sum(j))
                for j, cell in enumerate(self.cells)
            ]
        return statements

    # --- output -------------------------------------------------------------------------------------

    def _finish(self, task: Expr, at: tuple[Expr, Expr, Expr]) -> Callable[[Expr], Sequence[Stmt]]:
        """Return the last block's products of 16 output channels, turned back and stored."""
        spec = self.spec
        block = tirx.const(spec.blocks - 1, "int32")
        count = len(self.cells)

        def rows(g: Expr) -> Stmt:
            def one(k: Expr) -> list[Stmt]:
                stores = [
                    emit.store(self.rows, self.sum(j), (k * count + j) * LANES, lanes=LANES)
                    for j in range(count)
                ]
                return [*self.row(task, block, g * LANES + k), *stores]

            return emit.loop("k", 0, LANES, one)

        return lambda g: [rows(g), emit.loop("v", 0, count, lambda v: self.back(at, g, v))]

    def back(self, at: tuple[Expr, Expr, Expr], g: Expr, v: Expr) -> Sequence[Stmt]:
        """Return the stores of 16 pixels of 16 output channels."""
        spec, window = self.spec, self.spec.window
        across, count = spec.tile.across, len(self.cells)
        units = across // LANES or 1
        line, unit = split_task(v, units) if across >= LANES else (v * (LANES // across), v * 0)

        def put(i: int, value: Expr) -> Stmt:
            y, x = at[1] + line + i // min(across, LANES), at[2] + unit * LANES + i % min(across, LANES)
            stored = self.out.put(value, at[0], y, x, g * LANES)
            return branch([y < window.out_height, x < window.out_width], [stored], [])

        registers, turned = transposed(
            lambda i: emit.load(self.rows, (count * i + v) * LANES, lanes=LANES), put
        )
        return [*emit.allocate(registers), *turned]
