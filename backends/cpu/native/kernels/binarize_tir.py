"""The statements of the binarization; what it computes stands in binarize.py."""

from __future__ import annotations

import tvm
from tvm.ir import Expr
from tvm.tirx import Stmt

from . import emit
from .binarize import BinarizeSpec, spare_lanes
from .bits import WORD, words_of
from .planes_tir import planes_of


class Writer:
    """Writes one kernel: whole words by vectors, a last partial word value by value."""

    def __init__(self, spec: BinarizeSpec) -> None:
        self.spec = spec
        levels, channels = spec.output.thresholds, spec.channels
        self.data = emit.parameter("data", spec.dtype, (spec.pixels, spec.stored))
        self.thresholds = emit.parameter("thresholds", spec.number, (levels, channels))
        self.sign = emit.parameter("sign", spec.number, (channels,))
        words = words_of(channels) * spec.output.planes
        self.out = emit.parameter("out", "uint32", (spec.pixels, words))
        self.reached = [emit.register(f"reached{i}", "uint32", 1) for i in range(levels)]

    def module(self) -> tvm.IRModule:
        """Write the loop over pixels."""
        parameters = [self.data, self.thresholds, self.sign, self.out]
        return emit.module(
            parameters, lambda begin, end: [emit.loop("pixel", begin, end - begin, self._pixel)]
        )

    def _pixel(self, pixel: Expr) -> list[Stmt]:
        whole = self.spec.channels // WORD
        statements: list[Stmt] = emit.allocate(self.reached) if spare_lanes(self.spec) else []
        if whole:
            statements.append(emit.loop("word", 0, whole, lambda word: self._word(pixel, word)))
        if spare_lanes(self.spec):
            statements += self._last(pixel, emit.const(whole))
        return statements

    def _value(self, pixel: Expr, channel: Expr, lanes: int) -> Expr:
        dtype = self.spec.number + (f"x{lanes}" if lanes > 1 else "")
        value = emit.load(self.data, pixel, channel, lanes=lanes).astype(dtype)
        return value * emit.load(self.sign, channel, lanes=lanes)

    def _word(self, pixel: Expr, word: Expr) -> list[Stmt]:
        value = self._value(pixel, word * WORD, WORD)
        levels = range(self.spec.output.thresholds)
        reached = [
            emit.reinterpret("uint32", value >= emit.load(self.thresholds, i, word * WORD, lanes=WORD))
            for i in levels
        ]
        return self._store(pixel, word, reached)

    def _store(self, pixel: Expr, word: Expr, reached: list[Expr]) -> list[Stmt]:
        planes = planes_of(self.spec.output, reached)
        return [emit.store(self.out, plane, pixel, word * len(planes) + i) for i, plane in enumerate(planes)]

    def _last(self, pixel: Expr, word: Expr) -> list[Stmt]:
        statements = [emit.store(bits, emit.const(0, "uint32"), 0) for bits in self.reached]
        statements.append(
            emit.loop("lane", 0, spare_lanes(self.spec), lambda lane: self._bit(pixel, word, lane))
        )
        mask = emit.const((1 << spare_lanes(self.spec)) - 1, "uint32")
        planes = planes_of(self.spec.output, [emit.load(bits, 0) for bits in self.reached])
        stores = [
            emit.store(self.out, plane & mask, pixel, word * len(planes) + i)
            for i, plane in enumerate(planes)
        ]
        return statements + stores

    def _bit(self, pixel: Expr, word: Expr, lane: Expr) -> list[Stmt]:
        channel = word * WORD + lane
        value = self._value(pixel, channel, 1)
        return [
            emit.store(
                bits,
                emit.load(bits, 0)
                | (
                    (value >= emit.load(self.thresholds, i, channel)).astype("uint32")
                    << lane.astype("uint32")
                ),
                0,
            )
            for i, bits in enumerate(self.reached)
        ]
