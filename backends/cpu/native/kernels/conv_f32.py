"""Direct convolution in float32 with bias, residual and activation in one pass.

    out[n, y, x, o] = after(sum over r, s, c of data[n, iy, ix, c] * weight[o, c, r, s])
    iy = y*sh + r*dh - top, ix = x*sw + s*dw - left

Layouts: data [N, H, W, Cp], or [N, C, H, W] with `nchw` (a model's input is read as it comes: the tile
broadcasts single values, so their distance does not matter); weights by blocks [kh, kw, input channels,
vectors, 16]; out [N, OH, OW, OCp].

Tile: up to 14 columns x 32 channels (9 x 48 where 3 divides the vectors, 28 x 16 for one), 28 accumulators,
2 weight vectors and 1 broadcast, 31 of 32 registers. Zen 4 starts one 512-bit FMA and two loads per cycle,
so 14 broadcasts and 2 vectors under 28 FMAs are free, and tails of 8 accumulators still hide the 4 cycles
of an FMA. 7 x 64 spills (39 of 58 GMAC/s). Tiles at the padding have code of their own that leaves those
taps out: nothing is padded or copied. One task is one output row of one block of channels, blocks
outermost, so a block's weights stay in the second-level cache. Pointwise layers are matrix products:
`gemm_f32`.

Measured on one core of Zen 4 (peak 58 GMAC/s; predicted 95-100 %), GMAC/s and times faster than onnxruntime
1.31.1 in the same interleaved run: 3x3 64 ch 56x56 51 (1.06x), 128 ch 28x28 55 (1.07x), 256 ch 14x14 59
(1.15x), 512 ch 7x7 60 (1.41x), 128 ch 56x56 stride 2 57 (1.08x); first layers 7x7 stride 2 of 3 channels
38-45 (1.0x), 3x3 stride 2 48 (1.3x). 88-100 % of the peak but for first layers, 66-83 %.

Grouped convolutions: groups of 16 output channels or more have blocks of their own; the last vector of a
group reaches back over lanes that are computed already (68 channels are 5 vectors, the last one 12 lanes
back), so no task writes another's lanes. Of narrower groups a block of 32 output channels reads the input
channels of all groups that it touches, with zero weights between (`waste`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from . import gemm_f32
from .after_f32 import After
from .gemm_f32 import GemmF32Spec, accumulators
from .window import (
    LANES,
    Piece,
    Window,
    edge_verdict,
    groups_of,
    interleave,
    padded,
    padded_vector,
    pieces,
    split_groups,
    tile_size,
)

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Stmt, Var

    from ..isa import Isa
    from .tile_f32 import Output, Tile

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

# Values of a pixel that are unrolled instead of looped over: first layers.
UNROLLED_CHANNELS = 4


@dataclass(frozen=True)
class ConvF32Spec:
    """Static shape of one convolution; parameters: data, residual?, weights, bias?, out."""

    window: Window
    channels: int
    out_channels: int
    groups: int = 1
    after: After = field(default_factory=After)
    nchw: bool = False

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output in memory."""
        window = self.window
        return window.batch, window.out_height, window.out_width, padded(self.out_channels)

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """Shape of the data in memory."""
        window = self.window
        if self.nchw:
            return window.batch, self.channels, window.height, window.width
        return window.batch, window.height, window.width, padded(self.channels)

    @property
    def by_group(self) -> bool:
        """Whether every group has blocks of its own."""
        return self.groups > 1 and self.out_channels // self.groups >= LANES

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Vectors per block of output channels (of a group), whole blocks, vectors of the last block or 0."""
        if self.by_group:
            return split_groups(groups_of(self.out_channels // self.groups), (3, 2))
        return split_groups(groups_of(self.out_channels))

    @property
    def streams(self) -> int:
        """How many times `blocks` there are."""
        return self.groups if self.by_group else 1

    @property
    def span(self) -> int:
        """Input channels that a block of output channels reads."""
        if self.by_group:
            return self.channels // self.groups
        wide = self.blocks[0] * LANES
        inner, outer = self.channels // self.groups, self.out_channels // self.groups
        starts = range(0, self.out_channels, wide)
        most = max((min(s + wide, self.out_channels) - 1) // outer - s // outer + 1 for s in starts)
        return most * inner

    @property
    def waste(self) -> float:
        """Products computed per product of the model; more than 1 with narrow groups."""
        lanes = self.streams * padded(self.out_channels // self.streams)
        return self.span * self.groups / self.channels * lanes / self.out_channels

    def tasks(self) -> int:
        """Length of the parallel loop: output rows times blocks of channels."""
        if (gemm := as_gemm(self)) is not None:
            return gemm.tasks()
        window = self.window
        _, whole, rest = self.blocks
        return self.streams * (whole + (rest > 0)) * window.batch * window.out_height

    def macs(self) -> int:
        """Multiply-accumulates of the layer, taps in the padding included."""
        pixels = self.window.batch * self.window.out_height * self.window.out_width
        taps = self.window.kernel[0] * self.window.kernel[1]
        return pixels * taps * self.out_channels * (self.channels // self.groups)

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        lanes = self.streams * padded(self.out_channels // self.streams)
        weights = lanes * self.span * self.window.kernel[0] * self.window.kernel[1]
        sizes = int(np.prod(self.in_shape)) + int(np.prod(self.out_shape)) * (1 + self.after.residual)
        return 4 * (sizes + weights)


def _columns(spec: ConvF32Spec, vectors: int, isa: Isa) -> int:
    most = max(1, accumulators(isa) // vectors)
    return tile_size(spec.window.out_width, most)


def as_gemm(spec: ConvF32Spec) -> GemmF32Spec | None:
    """Return the matrix product that a pointwise layer is; constants and memory are the same."""
    window = spec.window
    if not window.pointwise or spec.nchw or spec.groups > 1:
        return None
    return GemmF32Spec(
        window.batch * window.height * window.width, spec.channels, spec.out_channels, spec.after
    )


def supports(spec: ConvF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if reason := spec.window.refusal():
        return Verdict.no(reason)
    if spec.channels % spec.groups or spec.out_channels % spec.groups:
        return Verdict.no(f"{spec.channels} -> {spec.out_channels} channels in {spec.groups} groups")
    return edge_verdict(spec.window, _columns(spec, spec.blocks[0], isa))


def pack(spec: ConvF32Spec, weight: Floats, bias: Floats | None = None) -> list[Array]:
    """Return the constants: weights of [OC, C/groups, kh, kw] in kernel layout, and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    if (gemm := as_gemm(spec)) is not None:
        return gemm_f32.pack(gemm, weight.reshape(weight.shape[:2]).T, bias)
    if spec.by_group:
        flat = _packed_groups(spec, weight)
        return [flat] if bias is None else [flat, padded_vector(bias)]
    kh, kw = spec.window.kernel
    packed = np.zeros((groups_of(spec.out_channels), kh, kw, spec.span, LANES), np.float32)
    inner = spec.channels // spec.groups
    for o in range(spec.out_channels):
        group, first = o // (spec.out_channels // spec.groups), first_channel(spec, o)
        at = group * inner - first
        packed[o // LANES, :, :, at : at + inner, o % LANES] = weight[o].transpose(1, 2, 0)
    flat = interleave(packed.reshape(len(packed), -1, LANES), spec.blocks)
    return [flat] if bias is None else [flat, padded_vector(bias)]


def _packed_groups(spec: ConvF32Spec, weight: Floats) -> Floats:
    """Return the weights by groups, its last vector reaching back."""
    outer = spec.out_channels // spec.groups
    steps = weight.reshape(spec.groups, outer, *weight.shape[1:]).transpose(0, 1, 3, 4, 2)
    lanes = np.minimum(np.arange(groups_of(outer)) * LANES, outer - LANES)[:, None] + np.arange(LANES)
    vectors = steps.reshape(spec.groups, outer, -1)[:, lanes].transpose(0, 1, 3, 2)
    return np.concatenate([interleave(np.ascontiguousarray(group), spec.blocks) for group in vectors])


def first_channel(spec: ConvF32Spec, o: int) -> int:
    """Return the first input channel that the block of output channel `o` reads; not by group."""
    if spec.groups == 1:
        return 0
    wide = spec.blocks[0] * LANES
    group = o // wide * wide // (spec.out_channels // spec.groups)
    return min(group * (spec.channels // spec.groups), spec.channels - spec.span)


def build(spec: ConvF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `ConvF32Spec`, then `begin` and `end`."""
    gemm = as_gemm(spec)
    return _Conv(spec, isa).module() if gemm is None else gemm_f32.build(gemm, isa)


class _Conv:
    """The kernel being written."""

    def __init__(self, spec: ConvF32Spec, isa: Isa) -> None:
        from . import emit
        from .tile_f32 import Output, optional

        self.spec, self.isa, self.window = spec, isa, spec.window
        window, last = self.window, padded(spec.out_channels)
        shape = (window.batch, window.out_height, window.out_width, last)
        data = (
            spec.in_shape if spec.nchw else (window.batch, window.height, window.width, padded(spec.channels))
        )
        self.data = emit.parameter("data", "float32", data)
        self.steps = window.kernel[0] * window.kernel[1] * spec.span
        lanes = spec.streams * padded(spec.out_channels // spec.streams)
        self.weight = emit.parameter("weight", "float32", (self.steps * lanes,))
        bias = optional(spec.after.bias, "bias", (last,))
        residual = optional(spec.after.residual, "residual", shape)
        self.out: Output = Output(emit.parameter("out", "float32", shape), spec.after, bias, residual)

    def module(self) -> tvm.IRModule:
        from . import emit
        from .tile_f32 import present

        given = present(self.data, self.out.residual, self.weight, self.out.bias, self.out.to)
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

    def task(self, task: Var) -> Sequence[Stmt]:
        from .tile_f32 import either, split_task

        lines = self.window.out_height
        number, row = split_task(task, self.window.batch * lines)
        n, y = split_task(row, lines)
        vectors, whole, rest = self.spec.blocks
        stream, block = split_task(number, whole + (rest > 0)) if self.spec.by_group else (_int(0), number)
        full = _Block(self.spec, stream, block, vectors)
        if not rest:
            return self.line(full, n, y)
        last = _Block(self.spec, stream, block, rest)
        return [either(block < whole, self.line(full, n, y), self.line(last, n, y))]

    def line(self, block: _Block, n: Expr, y: Expr) -> Sequence[Stmt]:
        """Return one output row of one block."""
        from . import emit
        from .tile_f32 import Tile, tiles

        size = _columns(self.spec, block.vectors, self.isa)
        tile = Tile.of(size, block.vectors)
        cut = pieces(self.window, size)
        body = tiles(cut, lambda x, piece: self.tile(tile, piece, (block, n, y, x)))
        return [*emit.allocate(tile.buffers), *body]

    def tile(self, tile: Tile, piece: Piece, at: tuple[_Block, Expr, Expr, Expr]) -> list[Stmt]:
        """Return one tile: start from the bias, add all taps, store."""
        from .tile_f32 import kernel_rows, taps

        block, n, y, x = at

        def row(r: Expr, line: Expr) -> Sequence[Stmt]:
            return taps(
                self.window,
                x,
                piece,
                lambda s, columns, column: self.depth(tile, columns, column, (block, n, line, r, s)),
            )

        stored = [
            self.out.put(tile.value(i, j), n, y, x + i, block.lane(j))
            for i in range(piece.size)
            for j in range(block.vectors)
        ]
        start = tile.fill(piece.size, lambda j: self.out.start(block.lane(j)))
        padding = [self.clear(n, y, x + i) for i in range(piece.size)] if self.padding else []
        return [*start, *kernel_rows(self.window, y, row), *stored, *padding]

    @property
    def padding(self) -> int:
        """Lanes behind the channels that no vector of a group reaches; they are cleared."""
        channels = self.spec.out_channels
        return padded(channels) - channels if self.spec.by_group else 0

    def clear(self, *pixel: Expr) -> Stmt:
        """Return the store of zeros behind a pixel's channels."""
        from . import emit
        from .math_f32 import lit

        lanes = self.padding
        return emit.store(self.out.to, lit(0.0, lanes), *pixel, self.spec.out_channels, lanes=lanes)

    def depth(
        self,
        tile: Tile,
        columns: Sequence[int],
        column: Callable[[int], Expr],
        at: tuple[_Block, Expr, Expr, Expr, Expr],
    ) -> Sequence[Stmt]:
        """Return the products of all input channels for one tap."""
        from . import emit

        block, n, line, r, s = at
        origin, vectors = block.origin, block.vectors
        before = block.first * self.steps + (r * self.window.kernel[1] + s) * (self.spec.span * vectors)

        def channel(c: emit.Index) -> list[Stmt]:
            return tile.products(
                columns,
                lambda i: self.read(n, line, column(i), origin + c),
                lambda j: emit.load(self.weight, (before + c * vectors + j) * LANES, lanes=LANES),
            )

        if self.spec.span <= UNROLLED_CHANNELS:
            return [statement for c in range(self.spec.span) for statement in channel(c)]
        return [emit.loop("c", 0, self.spec.span, channel)]

    def read(self, n: Expr, y: Expr, x: Expr, c: Expr) -> Expr:
        """Return one value of the data."""
        from . import emit

        return emit.load(self.data, n, c, y, x) if self.spec.nchw else emit.load(self.data, n, y, x, c)


@dataclass(frozen=True)
class _Block:
    """Vectors of output channels that one task computes: the block `number` of group `stream`."""

    spec: ConvF32Spec
    stream: Expr
    number: Expr
    vectors: int

    @property
    def first(self) -> Expr:
        """Number of its first vector among all vectors of weights."""
        vectors = self.number * self.spec.blocks[0]
        if not self.spec.by_group:
            return vectors
        return self.stream * groups_of(self.spec.out_channels // self.spec.groups) + vectors

    def lane(self, j: int) -> Expr:
        """Return the output channel where vector `j` begins."""
        from tvm import tirx

        lane = (self.number * self.spec.blocks[0] + j) * LANES
        if not self.spec.by_group:
            return lane
        outer = self.spec.out_channels // self.spec.groups
        return self.stream * outer + tirx.min(lane, outer - LANES)

    @property
    def origin(self) -> Expr:
        """The first input channel that it reads."""
        from tvm import tirx

        spec = self.spec
        inner, outer = spec.channels // spec.groups, spec.out_channels // spec.groups
        if spec.groups == 1 or spec.by_group:
            return self.stream * inner
        group = tirx.truncdiv(self.number * (spec.blocks[0] * LANES), outer)
        return tirx.min(group * inner, spec.channels - spec.span)


def _int(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "int32")
