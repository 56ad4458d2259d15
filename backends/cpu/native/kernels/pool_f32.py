"""Maximum, average and global average over windows in float32.

Layouts: data [N, H, W, Cp], out [N, OH, OW, Cp]; the global average writes [N, Cp].

Tile: up to 8 columns x 16 channels, taps read straight from memory; an average divides by the number of
taps inside the data (or inside the padded data, `count_padding`), so its rounding is that of sum / count.
One task is one output row; of the global average 4 vectors of channels of one image, in 16 sums that hide
the latency of the addition. All are bound by memory.

Measured on one core of Zen 4 in the same interleaved run as onnxruntime 1.31.1: maximum 3x3 stride 2 of 64
ch 112x112 51 GB/s (2.3x faster), average 3x3 37 GB/s (2.2x), global 2048 ch 7x7 36 GB/s (2.4x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .window import LANES, Piece, Window, edge_verdict, groups_of, padded, pieces, tile_size

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt, Var

    from ..isa import Isa
    from .tile_f32 import Tile

Array = npt.NDArray[np.generic]

COLUMNS = 8
GLOBAL_VECTORS = 4
GLOBAL_SPLITS = 4


@dataclass(frozen=True)
class PoolF32Spec:
    """Static shape; parameters: data, out.

    Attributes:
        kind: `max`, `average`, or `global` (average over the whole image; the window says its size).
        count_padding: whether padding counts as zeros in an average.
    """

    window: Window
    channels: int
    kind: Literal["max", "average", "global"]
    count_padding: bool = False

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """Shape of the data in memory."""
        window = self.window
        return window.batch, window.height, window.width, padded(self.channels)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output in memory."""
        window = self.window
        if self.kind == "global":
            return window.batch, padded(self.channels)
        return window.batch, window.out_height, window.out_width, padded(self.channels)

    def tasks(self) -> int:
        """Length of the parallel loop."""
        if self.kind == "global":
            return self.window.batch * -(-groups_of(self.channels) // GLOBAL_VECTORS)
        return self.window.batch * self.window.out_height

    def macs(self) -> int:
        """Comparisons or additions."""
        if self.kind == "global":
            return int(np.prod(self.in_shape))
        return int(np.prod(self.out_shape)) * self.window.kernel[0] * self.window.kernel[1]

    def bytes(self) -> int:
        """Bytes of data and output, each counted once."""
        return 4 * (int(np.prod(self.in_shape)) + int(np.prod(self.out_shape)))


def _columns(spec: PoolF32Spec) -> int:
    return tile_size(spec.window.out_width, COLUMNS)


def supports(spec: PoolF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if spec.kind == "global":
        return Verdict.yes()
    if reason := spec.window.refusal():
        return Verdict.no(reason)
    extents = [(k - 1) * d + 1 for k, d in zip(spec.window.kernel, spec.window.dilations, strict=True)]
    if any(pad >= extents[i % 2] for i, pad in enumerate(spec.window.pads)):
        return Verdict.no(f"pads {spec.window.pads} leave windows of {tuple(extents)} without data")
    if any(taps == 0 for axis in (0, 1) for taps in _counts(spec, axis)):
        return Verdict.no(f"a window of {spec.window.kernel} reads no data")
    return edge_verdict(spec.window, _columns(spec))


def pack(spec: PoolF32Spec) -> list[Array]:
    """Return no constants."""
    return []


def build(spec: PoolF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel: data, out, `begin`, `end`."""
    return _global(spec) if spec.kind == "global" else _Pool(spec).module()


def _counts(spec: PoolF32Spec, axis: int) -> list[int]:
    """Return the taps of each window along an axis that an average divides by."""
    window = spec.window
    size = (window.height, window.width)[axis]
    before, behind = window.pads[axis], window.pads[axis + 2]
    low, high = (-before, size + behind) if spec.count_padding else (0, size)
    out = (window.out_height, window.out_width)[axis]
    starts = np.arange(out)[:, None] * window.strides[axis] - before
    read = starts + np.arange(window.kernel[axis])[None] * window.dilations[axis]
    return [int(n) for n in ((read >= low) & (read < high)).sum(1)]


class _Pool:
    """The kernel being written."""

    def __init__(self, spec: PoolF32Spec) -> None:
        from . import emit

        self.spec = spec
        self.data = emit.parameter("data", "float32", spec.in_shape)
        self.out = emit.parameter("out", "float32", spec.out_shape)

    def module(self) -> tvm.IRModule:
        from . import emit

        return emit.module(
            [self.data, self.out], lambda begin, end: [emit.loop("t", begin, end - begin, self.task)]
        )

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one output row."""
        from . import emit
        from .tile_f32 import Tile, split_task, tiles

        n, y = split_task(task, self.spec.window.out_height)
        tile = Tile.of(_columns(self.spec), 1)

        def groups(x: Expr, piece: Piece) -> list[Stmt]:
            every = groups_of(self.spec.channels)
            return [emit.loop("g", 0, every, lambda g: self.tile(tile, piece, (n, y, x), g * LANES))]

        cut = pieces(self.spec.window, _columns(self.spec))
        return [*emit.allocate(tile.buffers), *tiles(cut, groups)]

    def tile(self, tile: Tile, piece: Piece, at: tuple[Expr, Expr, Expr], c: Expr) -> Sequence[Stmt]:
        """Return one tile: start, take in the taps, store."""
        from tvm import tirx

        from . import emit
        from .math_f32 import lit
        from .tile_f32 import kernel_rows, taps

        n, y, x = at
        largest = self.spec.kind == "max"

        def row(_: Expr, line: Expr) -> Sequence[Stmt]:
            def tap(s: Expr, columns: Sequence[int], column: Callable[[int], Expr]) -> list[Stmt]:
                def read(i: int) -> Expr:
                    return emit.load(self.data, n, line, column(i), c, lanes=LANES)

                def join(i: int) -> Callable[[Expr], Expr]:
                    return lambda v: tirx.max(v, read(i)) if largest else v + read(i)

                return [tile.update(i, 0, join(i)) for i in columns]

            return taps(self.spec.window, x, piece, tap)

        start = lit(float("-inf") if largest else 0.0, LANES)
        stored = [
            emit.store(self.out, self.finish(tile.value(i, 0), y, x, piece, i), n, y, x + i, c, lanes=LANES)
            for i in range(piece.size)
        ]
        return [*tile.fill(piece.size, lambda j: start), *kernel_rows(self.spec.window, y, row), *stored]

    def finish(self, value: Expr, y: Expr, x: Expr, piece: Piece, i: int) -> Expr:
        """Return a maximum as it is, a sum divided by its count."""
        from tvm import tirx

        from .emit import splat

        if self.spec.kind == "max":
            return value
        across = _counts(self.spec, 1)[piece.start + i]
        rows = tirx.Cast("float32", self.rows(y) * across)
        return value / splat(rows, LANES)

    def rows(self, y: Expr) -> Expr:
        """Return the kernel rows that count for output row `y`."""
        from tvm import tirx

        counts = _counts(self.spec, 0)
        found = tirx.const(counts[len(counts) // 2], "int32")
        for line, count in enumerate(counts):
            if count != counts[len(counts) // 2]:
                found = tirx.Select(y == line, tirx.const(count, "int32"), found)
        return found


def _global(spec: PoolF32Spec) -> tvm.IRModule:
    """Return the average over all pixels."""
    from . import emit
    from .math_f32 import lit
    from .tile_f32 import Tile, either, split_task

    pixels = spec.window.height * spec.window.width
    shape = (spec.window.batch, pixels, padded(spec.channels))
    data, out = emit.parameter("data", "float32", shape), emit.parameter("out", "float32", spec.out_shape)
    whole, rest = divmod(groups_of(spec.channels), GLOBAL_VECTORS)
    splits = min(GLOBAL_SPLITS, pixels)

    def block(n: Expr, first: Expr, vectors: int) -> list[Stmt]:
        tile = Tile.of(splits, vectors)

        def add(p: Expr, i: int) -> list[Stmt]:
            def join(j: int) -> Callable[[Expr], Expr]:
                return lambda v: v + emit.load(data, n, p, (first + j) * LANES, lanes=LANES)

            return [tile.update(i, j, join(j)) for j in range(vectors)]

        steps, left = divmod(pixels, splits)
        body = emit.loop("p", 0, steps, lambda p: [s for i in range(splits) for s in add(p * splits + i, i)])
        tail = [s for i in range(left) for s in add(first * 0 + (steps * splits + i), i)]
        means = [
            emit.store(out, _mean(tile, j, pixels), n, (first + j) * LANES, lanes=LANES)
            for j in range(vectors)
        ]
        start = tile.fill(splits, lambda j: lit(0.0, LANES))
        return [*emit.allocate(tile.buffers), *start, body, *tail, *means]

    def task(task: Var) -> Sequence[Stmt]:
        n, b = split_task(task, whole + (rest > 0))
        full = block(n, b * GLOBAL_VECTORS, GLOBAL_VECTORS) if whole else []
        last = block(n, b * GLOBAL_VECTORS, rest) if rest else []
        if whole and rest:
            return [either(b < whole, full, last)]
        return full or last

    return emit.module([data, out], lambda begin, end: [emit.loop("t", begin, end - begin, task)])


def _mean(tile: Tile, j: int, pixels: int) -> Expr:
    """Return the sum of the partial sums of one vector, divided by the pixels."""
    from .math_f32 import lit

    total = tile.value(0, j)
    for i in range(1, len(tile.cells)):
        total = total + tile.value(i, j)
    return total / lit(float(pixels), LANES)
