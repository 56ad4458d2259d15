"""The kernel of `sparse_blocks_f32` as TIR. Needs TVM."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from . import emit
from .math_f32 import lit
from .sparse_blocks_f32 import UNIT, SparseBlocksF32Spec
from .tile_f32 import Output, Tile, branch, optional, present, split_task
from .window import LANES, groups_of, padded

Place = tuple[Expr, Expr, Expr]


class Writer:
    """The kernel being written."""

    def __init__(self, spec: SparseBlocksF32Spec) -> None:
        self.spec, window, last = spec, spec.window, padded(spec.out_channels)
        shape = (window.batch, window.height, window.width, padded(spec.channels))
        self.data = emit.parameter("data", "float32", shape)
        self.weights = emit.parameter("values", "float32", (spec.entries * spec.vectors * LANES,))
        self.places = emit.parameter("places", "uint16", (spec.entries,))
        self.pointers = emit.parameter("pointers", "int32", (spec.blocks + 1,))
        bias = optional(spec.after.bias, "bias", (last,))
        residual = optional(spec.after.residual, "residual", spec.out_shape)
        self.out: Output = Output(
            emit.parameter("out", "float32", spec.out_shape), spec.after, bias, residual
        )
        self.copy = emit.parameter("copy", "float32", (spec.copied,))
        self.pixels = [(line, x) for line in range(spec.lines) for x in range(spec.across)]

    def module(self) -> tvm.IRModule:
        """Return the module with its parameters in the order of the convention."""
        constants = [self.weights, self.places, self.pointers]
        given = present(self.data, self.out.residual, *constants, self.out.bias, self.out.to)
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one task: a tile of pixels by one block of output channels or by all."""
        spec = self.spec
        down, across = spec.grid
        number, block = split_task(task, spec.blocks) if spec.apart else (task, None)
        rest, column = split_task(number, across)
        n, line = split_task(rest, down)
        at = n, line * spec.lines, column * spec.across
        local = [*emit.allocate([self.copy]), *self.fill(at)] if spec.copies else []
        if block is not None:
            return [*local, *self.block(at, block)]
        return [*local, emit.loop("b", 0, spec.blocks, lambda b: self.block(at, b))]

    def fill(self, at: Place) -> list[Stmt]:
        """Return the copy of a tile's data; zeros outside of the image."""
        spec, window = self.spec, self.spec.window
        down, across = spec.taken

        def pixel(r: Expr, x: Expr) -> list[Stmt]:
            row = at[1] * window.strides[0] - window.pads[0] + r
            column = at[2] * window.strides[1] - window.pads[1] + x
            to = (r * across + x) * spec.pitch
            inside = [row >= 0, row < window.height, column >= 0, column < window.width]

            def copied(zero: bool) -> Stmt:
                def vector(c: Expr) -> list[Stmt]:
                    given = emit.load(self.data, at[0], row, column, c * LANES, lanes=LANES)
                    value = lit(0.0, LANES) if zero else given
                    return [emit.store(self.copy, value, to + c * LANES, lanes=LANES)]

                return emit.loop("c", 0, groups_of(spec.channels), vector)

            return [branch(inside, [copied(False)], [copied(True)])]

        return [emit.loop("r", 0, down, lambda r: [emit.loop("x", 0, across, lambda x: pixel(r, x))])]

    def block(self, at: Place, block: Expr) -> list[Stmt]:
        """Return the tile of one block of output channels."""
        spec, count = self.spec, len(self.pixels)
        tile = Tile.of(count * spec.splits, spec.vectors)
        first = block * spec.vectors
        start = [
            *tile.fill(count, lambda j: self.out.start((first + j) * LANES)),
            *Tile(tile.cells[count:]).fill(count * spec.splits, lambda j: lit(0.0, LANES)),
        ]
        turns = UNIT // spec.splits
        begin, end = (emit.load(self.pointers, b) * turns for b in (block, block + 1))
        summed = [
            tile.update(i, j, lambda v, i=i, j=j, s=s: v + tile.value(i + s * count, j))  # type: ignore[misc]
            for s in range(1, spec.splits) for i in range(count) for j in range(spec.vectors)
        ]  # fmt: skip
        return [
            *emit.allocate(tile.buffers),
            *start,
            emit.loop("e", begin, end - begin, lambda e: self.products(tile, at, e)),
            *summed,
            *(self.store(tile, at, first, i) for i in range(count)),
        ]

    def products(self, tile: Tile, at: Place, turn: Expr) -> list[Stmt]:
        """Return the products of as many taps as there are interleaved sums."""
        spec, count = self.spec, len(self.pixels)
        statements: list[Stmt] = []
        for split in range(spec.splits):
            entry = turn * spec.splits + split
            place = emit.load(self.places, entry).astype("int32")
            part = Tile(tile.cells[split * count : (split + 1) * count])
            statements += part.products(
                range(count),
                lambda i, place=place: self.read(at, i, place),  # type: ignore[misc]
                lambda j, entry=entry: emit.load(  # type: ignore[misc]
                    self.weights, (entry * spec.vectors + j) * LANES, lanes=LANES
                ),
            )
        return statements

    def read(self, at: Place, i: int, place: Expr) -> Expr:
        """Return the value of one pixel for a tap."""
        from tvm import tirx

        spec, window = self.spec, self.spec.window
        line, x = self.pixels[i]
        if spec.copies:
            step = line * window.strides[0] * spec.taken[1] + x * window.strides[1]
            return emit.load(self.copy, place + step * spec.pitch)
        column = at[2] + x
        if window.out_width % spec.across:
            column = tirx.min(column, window.width - 1)
        return emit.load(self.data, at[0], at[1] + line, column, place)

    def store(self, tile: Tile, at: Place, first: Expr, i: int) -> Stmt:
        """Return the stores of one pixel, which may lie behind the image."""
        spec, window = self.spec, self.spec.window
        line, x = self.pixels[i]
        y, column = at[1] + line, at[2] + x
        stored = [
            self.out.put(tile.value(i, j), at[0], y, column, (first + j) * LANES) for j in range(spec.vectors)
        ]
        conditions = [y < window.out_height] if window.out_height % spec.lines else []
        conditions += [column < window.out_width] if window.out_width % spec.across else []
        return branch(conditions, stored) if conditions else emit.sequence(stored)
