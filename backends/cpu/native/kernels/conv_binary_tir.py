"""The statements of the popcount convolution; what it computes, and its tile, stand in conv_binary.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm.ir import Expr
from tvm.tirx import Buffer, IfThenElse, Stmt, popcount, truncdiv, truncmod
from tvm.tirx import max as larger
from tvm.tirx import min as smaller

from . import emit
from .bits import Code, words_of
from .conv_binary import LANES, ConvBinarySpec
from .planes_tir import planes_of
from .real_end import RealEnd
from .real_end_tir import Half, RealWriter

MAX_PIXELS = 14
# With ternary weights on binary data LLVM handles wide tiles badly: at 64 ch 56x56, 14 pixels take 304 us, 7
# pixels 188, 8 pixels 141.
MAX_PIXELS_COUNTED = 8


@dataclass(frozen=True)
class Run:
    """`count` tiles of equal code from pixel `start` on; `valid[s]` are the pixels whose tap s reads data."""

    start: int
    count: int
    pixels: int
    valid: tuple[tuple[int, ...], ...]

    @property
    def whole(self) -> bool:
        """Whether every tap of every pixel reads data."""
        return all(len(pixels) == self.pixels for pixels in self.valid)


def tile_width(spec: ConvBinarySpec) -> int:
    """Return the pixels per tile: the least recomputed pixels, then the widest tile."""
    columns = spec.out_width
    widths = range(min(columns, MAX_PIXELS_COUNTED if spec.counted else MAX_PIXELS), 0, -1)
    return min(widths, key=lambda width: (-(-columns // width) * width * (1 + 0.3 / width), -width))


def runs_of(spec: ConvBinarySpec) -> list[Run]:
    """Cut a row into tiles, the last one overlapping its neighbour where it must, and join equal ones."""
    pixels = tile_width(spec)
    starts = [min(i * pixels, spec.out_width - pixels) for i in range(-(-spec.out_width // pixels))]
    runs: list[Run] = []
    for start in starts:
        valid = _valid(spec, start, pixels)
        last = runs[-1] if runs else None
        if last and last.valid == valid and start == last.start + last.count * pixels:
            runs[-1] = Run(last.start, last.count + 1, pixels, valid)
        else:
            runs.append(Run(start, 1, pixels, valid))
    return runs


def _valid(spec: ConvBinarySpec, start: int, pixels: int) -> tuple[tuple[int, ...], ...]:
    def reads(pixel: int, tap: int) -> bool:
        column = (start + pixel) * spec.strides[1] + tap * spec.dilations[1] - spec.pads[1]
        return 0 <= column < spec.width

    return tuple(tuple(i for i in range(pixels) if reads(i, s)) for s in range(spec.kernel[1]))


class Writer:
    """Writes the statements of one kernel."""

    def __init__(self, spec: ConvBinarySpec) -> None:
        self.spec = spec
        words = words_of(spec.channels)
        shape = (spec.batch, spec.height, spec.width, words * spec.data.planes)
        self.data = emit.parameter("data", "uint32", shape)
        packed = (spec.blocks, *spec.kernel, words, spec.weight.planes, LANES)
        self.weights = emit.parameter("weights", "uint32", packed)
        tables = (spec.blocks, *spec.kernel, LANES)
        self.counts = [emit.parameter("counts", "int32", tables)] if spec.counted else []
        self.present = emit.register("present", "int32", LANES)
        self.thresholds = self._thresholds()
        self.out = emit.parameter("out", spec.out_dtype, spec.out_shape)
        self.real = RealWriter(spec, spec.output) if isinstance(spec.output, RealEnd) else None
        pixels = tile_width(spec)
        self.sums = [emit.register(f"sum{i}", "int32", LANES) for i in range(pixels)]

    def _thresholds(self) -> list[Buffer]:
        if not isinstance(self.spec.output, Code):
            return []
        shape = (self.spec.output.thresholds, self.spec.blocks * LANES)
        return [emit.parameter("thresholds", "int32", shape)]

    def module(self) -> tvm.IRModule:
        """Write the loop over tasks."""
        parameters = [self.data, self.weights, *self.counts, *self.thresholds, self.out]
        if self.real is not None:
            constants = [self.weights, *self.counts, *self.real.constants]
            parameters = [self.data, *self.real.inputs, *constants, *self.real.outputs]
        return emit.module(parameters, lambda begin, end: [emit.loop("task", begin, end - begin, self._task)])

    def _task(self, task: Expr) -> list[Stmt]:
        spec = self.spec
        rows = spec.batch * spec.out_height
        block, row = truncdiv(task, rows), truncmod(task, rows)
        place = _Place(block, truncdiv(row, spec.out_height), truncmod(row, spec.out_height))
        held = [*self.sums, *(self.real.registers if self.real else [])]
        statements = emit.allocate([*held, self.present] if spec.counted else held)
        for run in runs_of(spec):
            statements += self._run(place, run)
        return statements

    def _run(self, place: _Place, run: Run) -> list[Stmt]:
        if run.count == 1:
            return self._tile(place, emit.const(run.start), run)
        tile = lambda i: self._tile(place, i * run.pixels + run.start, run)  # noqa: E731
        return [emit.loop("tile", 0, run.count, tile)]

    def _rows(self, y: Expr) -> tuple[Expr, Expr]:
        """Return the first kernel row that reads data and how many do."""
        spec, const = self.spec, emit.const
        if spec.pads[0] == 0 and spec.pads[2] == 0:
            return const(0), const(spec.kernel[0])
        above, step = spec.pads[0] - y * spec.strides[0], spec.dilations[0]
        first = truncdiv(larger(above, const(0)) + (step - 1), const(step))
        end = smaller(
            truncdiv(larger(above + spec.height, const(0)) + (step - 1), const(step)), const(spec.kernel[0])
        )
        return first, larger(end - first, const(0))

    def _tile(self, place: _Place, x: Expr, run: Run) -> list[Stmt]:
        first, rows = self._rows(place.y)
        zero = emit.splat(emit.const(0), LANES)
        statements = [emit.store(total, zero, 0, lanes=LANES) for total in self.sums]
        statements.append(emit.loop("r", first, rows, lambda r: self._kernel_row(place, r, x, run)))
        before: tuple[int, ...] = ()
        for pixel in range(run.pixels):
            taps = tuple(s for s, valid in enumerate(run.valid) if pixel in valid)
            if self.counts and (pixel == 0 or taps != before):
                statements += self._present(place, first, rows, taps)
            before = taps
            statements += self._finish(place, x + pixel, pixel, rows * (len(taps) * self.spec.channels))
        return statements

    def _present(self, place: _Place, first: Expr, rows: Expr, taps: Sequence[int]) -> list[Stmt]:
        """Return what adds up the weights that are not zero over the taps that read data."""

        def row(r: Expr) -> list[Stmt]:
            total = emit.load(self.present, 0, lanes=LANES)
            for s in taps:
                total = total + emit.load(self.counts[0], place.block, r, s, 0, lanes=LANES)
            return [emit.store(self.present, total, 0, lanes=LANES)]

        zero = emit.splat(emit.const(0), LANES)
        return [emit.store(self.present, zero, 0, lanes=LANES), emit.loop("r", first, rows, row)]

    def _kernel_row(self, place: _Place, r: Expr, x: Expr, run: Run) -> list[Stmt]:
        every = tuple(range(run.pixels))
        if run.whole:
            taps = self.spec.kernel[1]
            return [emit.loop("s", 0, taps, lambda s: self._words(place, r, s, x, every))]
        statements: list[Stmt] = []
        for s, pixels in enumerate(run.valid):
            if pixels:
                statements += self._words(place, r, emit.const(s), x, pixels)
        return statements

    def _words(self, place: _Place, r: Expr, s: Expr, x: Expr, pixels: Sequence[int]) -> list[Stmt]:
        spec = self.spec
        line = place.y * spec.strides[0] + r * spec.dilations[0] - spec.pads[0]
        column = x * spec.strides[1] + s * spec.dilations[1] - spec.pads[1]

        def body(k: Expr) -> list[Stmt]:
            weights = [
                emit.load(self.weights, place.block, r, s, k, plane, 0, lanes=LANES)
                for plane in range(spec.weight.planes)
            ]
            statements = []
            for pixel in pixels:
                words = [
                    emit.splat(
                        emit.load(self.data, place.n, line, column + pixel * spec.strides[1], word), LANES
                    )
                    for word in (k * spec.data.planes + plane for plane in range(spec.data.planes))
                ]
                total = emit.load(self.sums[pixel], 0, lanes=LANES)
                statements.append(
                    emit.store(self.sums[pixel], total + self._product(words, weights), 0, lanes=LANES)
                )
            return statements

        return [emit.loop("k", 0, words_of(spec.channels), body)]

    def _product(self, data: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
        """Return what one word adds: mismatches for binary data, else the dot product."""
        if self.spec.products == 1:
            differing = data[0] ^ weights[0]
            return _count(differing & weights[1] if self.spec.counted else differing)
        if self.spec.products == 2:
            masks = [planes[1] for planes in (data, weights) if len(planes) == 2]
            both = masks[0] & masks[1] if len(masks) == 2 else masks[0]
            return _count(both) - _count(both & (data[0] ^ weights[0])) * 2
        high = [-2 if code is Code.INT2 else 2 for code in (self.spec.data, self.spec.weight)]
        low = _count(data[0] & weights[0])
        mixed = _count(data[1] & weights[0]) * high[0] + _count(data[0] & weights[1]) * high[1]
        return low + mixed + _count(data[1] & weights[1]) * (high[0] * high[1])

    def _finish(self, place: _Place, x: Expr, pixel: int, terms: Expr) -> list[Stmt]:
        spec = self.spec
        total = emit.load(self.sums[pixel], 0, lanes=LANES)
        present = emit.load(self.present, 0, lanes=LANES) if spec.counted else emit.splat(terms, LANES)
        dot = present - total * 2 if spec.products == 1 else total
        if isinstance(spec.output, Code):
            return self._codes(place, x, dot)
        statements = [emit.store(self.sums[pixel], dot, 0, lanes=LANES)]
        if self.real is not None:
            return statements + self._reals(self.real, place, x, pixel)
        # In two halves: the last block may hold 16 channels only.
        return statements + [self._half(place, x, pixel, half) for half in (0, 16)]

    def _reals(self, real: RealWriter, place: _Place, x: Expr, pixel: int) -> list[Stmt]:
        at = Half(place.n, place.y, x, place.block)
        sums = [emit.load(self.sums[pixel], half, lanes=16) for half in (0, 16)]
        return real.finish(at, sums)

    def _codes(self, place: _Place, x: Expr, dot: Expr) -> list[Stmt]:
        code = self.spec.output
        assert isinstance(code, Code), "only codes have thresholds"
        reached = [
            emit.reinterpret(
                "uint32", dot >= emit.load(self.thresholds[0], i, place.block * LANES, lanes=LANES)
            )
            for i in range(code.thresholds)
        ]
        planes = planes_of(code, reached)
        first = place.block * code.planes
        return [emit.store(self.out, word, place.n, place.y, x, first + i) for i, word in enumerate(planes)]

    def _half(self, place: _Place, x: Expr, pixel: int, half: int) -> Stmt:
        channel = place.block * LANES + half
        value = emit.load(self.sums[pixel], half, lanes=16)
        store = emit.store(self.out, value, place.n, place.y, x, channel, lanes=16)
        if half == 0 or self.spec.stored_channels % LANES == 0:
            return store
        return IfThenElse(channel < self.spec.stored_channels, store, None)


@dataclass(frozen=True)
class _Place:
    """Which output row of which block of channels."""

    block: Expr
    n: Expr
    y: Expr


def _count(word: Expr) -> Expr:
    return popcount(word).astype(f"int32x{LANES}")
