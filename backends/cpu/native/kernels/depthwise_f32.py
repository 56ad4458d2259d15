"""Depthwise convolution in float32 with bias, residual and activation, any window.

    out[n, y, x, c] = after(sum over r, s of data[n, iy, ix, c] * weight[c, r, s])
    iy = y*sh + r*dh - top, ix = x*sw + s*dw - left

Layouts: data [N, H, W, Cp], weights [kh, kw, Cp], out [N, OH, OW, Cp].

Tile: up to 8 columns x 16 channels. Every product reads its data from memory as the FMA's operand; Zen 4
loads one 512-bit vector per cycle and starts one FMA, so the peak is reached only out of the first-level
cache; the weights of a tap are loaded once per 8 products. Tiles run outside, channels inside: a tile's
pixels lie together. Tiles at the padding have code of their own. One task is one output row.

Measured on one core of Zen 4 (peak 58 GMAC/s; predicted: the second-level cache's 60-75 %), GMAC/s and
times faster than onnxruntime 1.31.1 in the same interleaved run, Relu6 fused: 3x3 32 ch 112x112 43 (2.6x),
144 ch 56x56 40 (2.7x), 192 ch 28x28 34 (2.5x), 960 ch 7x7 26 (2.6x), 96 ch 112x112 stride 2 23 (3.1x, 52
GB/s); 5x5 240 ch 14x14 44 (2.3x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .window import LANES, Piece, Window, edge_verdict, groups_of, padded, padded_vector, pieces, tile_size

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt, Var

    from ..isa import Isa
    from .tile_f32 import Output, Tile

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

COLUMNS = 8


@dataclass(frozen=True)
class DepthwiseF32Spec:
    """Static shape; parameters: data, residual?, weights, bias?, out."""

    window: Window
    channels: int
    after: After = field(default_factory=After)

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """Shape of the data in memory."""
        window = self.window
        return window.batch, window.height, window.width, padded(self.channels)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output in memory."""
        window = self.window
        return window.batch, window.out_height, window.out_width, padded(self.channels)

    def tasks(self) -> int:
        """Length of the parallel loop: output rows."""
        return self.window.batch * self.window.out_height

    def macs(self) -> int:
        """Multiply-accumulates of the layer, taps in the padding included."""
        window = self.window
        return self.tasks() * window.out_width * window.kernel[0] * window.kernel[1] * self.channels

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        weights = self.window.kernel[0] * self.window.kernel[1] * padded(self.channels)
        sizes = int(np.prod(self.in_shape)) + int(np.prod(self.out_shape)) * (1 + self.after.residual)
        return 4 * (sizes + weights)


def _columns(spec: DepthwiseF32Spec) -> int:
    return tile_size(spec.window.out_width, COLUMNS)


def supports(spec: DepthwiseF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if reason := spec.window.refusal():
        return Verdict.no(reason)
    return edge_verdict(spec.window, _columns(spec))


def pack(spec: DepthwiseF32Spec, weight: Floats, bias: Floats | None = None) -> list[Array]:
    """Return the constants: weights of [C, 1, kh, kw] in kernel layout, and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    packed = np.zeros((*spec.window.kernel, padded(spec.channels)), np.float32)
    packed[..., : spec.channels] = weight[:, 0].transpose(1, 2, 0)
    return [packed] if bias is None else [packed, padded_vector(bias)]


def build(spec: DepthwiseF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `DepthwiseF32Spec`, then `begin` and `end`."""
    return _Depthwise(spec).module()


class _Depthwise:
    """The kernel being written."""

    def __init__(self, spec: DepthwiseF32Spec) -> None:
        from . import emit
        from .tile_f32 import Output, optional

        self.spec = spec
        last = padded(spec.channels)
        self.data = emit.parameter("data", "float32", spec.in_shape)
        self.weight = emit.parameter("weight", "float32", (*spec.window.kernel, last))
        bias = optional(spec.after.bias, "bias", (last,))
        residual = optional(spec.after.residual, "residual", spec.out_shape)
        self.out: Output = Output(
            emit.parameter("out", "float32", spec.out_shape), spec.after, bias, residual
        )

    def module(self) -> tvm.IRModule:
        from . import emit
        from .tile_f32 import present

        given = present(self.data, self.out.residual, self.weight, self.out.bias, self.out.to)
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

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
        """Return one tile: start from the bias, add the taps, store."""
        from . import emit
        from .tile_f32 import kernel_rows, unrolled_taps

        n, y, x = at

        def tap(r: Expr, line: Expr) -> Callable[..., list[Stmt]]:
            def products(s: Expr, columns: Sequence[int], column: Callable[[int], Expr]) -> list[Stmt]:
                weight = emit.load(self.weight, r, s, c, lanes=LANES)
                return [
                    tile.add(i, 0, emit.load(self.data, n, line, column(i), c, lanes=LANES), weight)
                    for i in columns
                ]

            return products

        def row(r: Expr, line: Expr) -> Sequence[Stmt]:
            return unrolled_taps(self.spec.window, x, piece, tap(r, line))

        stored = [self.out.put(tile.value(i, 0), n, y, x + i, c) for i in range(piece.size)]
        return [
            *tile.fill(piece.size, lambda j: self.out.start(c)),
            *kernel_rows(self.spec.window, y, row),
            *stored,
        ]
