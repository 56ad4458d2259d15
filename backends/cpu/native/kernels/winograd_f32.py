"""3 x 3 convolution with stride 1 in float32 by Winograd's F(4x4, 3x3): 36 products per 16 outputs, not 144.

    Y = A^T [ sum over c of (G w G^T) * (B^T d B) ] A, d a 6 x 6 patch of the data, Y 4 x 4 outputs
    (Lavin and Gray 2016; points 0, 1, -1, 2, -2, infinity). U = G w G^T is made in float64 at compile time.

Layouts: data and out as conv_f32; U by blocks of output channels [36, C, vectors, 16].

One task is a block of up to 28 patches: (1) their transforms V [36, patches, Cp + 16], vectors over
channels; (2) per block of 32 output channels 36 matrix products with tiles of up to 14 patches x 32
channels into M [36, patches, 32], which stays in the second-level cache, and (3) the transform back with
the epilogue. V lies on the stack up to 64 channels, else in scratch memory with a slot per task. An image of
one block of patches (14x14) is two tasks for half of the output channels each: the transform is done twice,
2 % of the work, and two threads share the layer. Patches that reach over an edge take a branch per value.

Measured on one core of Zen 4 (peak 58 GMAC/s), GMAC/s of the direct convolution's work, and times faster
than onnxruntime 1.31.1 in the same interleaved run: 64 ch 56x56 136 (3.3x), 128 ch 28x28 120 (2.7x), 256 ch
14x14 127 (2.6x), 512 ch 7x7 89 (2.1x); with weights prefetched one point ahead, in a ResNet-50, 193, 200 and
163. Four times the peak is the bound without the transforms; of the
products alone, whole patches counted, that is 59 %, 52 %, 72 % and 50 % of the peak (U of 512 channels, 38
MB, comes from memory).

Error: each of the transforms multiplies magnitudes, so the bound is that of a sum over c with |A^T| (|U| *
|B^T| |d| |B|) |A| in place of |w| |x|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .gemm_f32 import PREFETCHED_BYTES, accumulators
from .window import LANES, Window, groups_of, interleave, padded, padded_vector, split_groups, tile_size

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Buffer, Stmt, Var

    from ..isa import Isa
    from .tile_f32 import Output

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

POINTS = 36
STACK_CHANNELS = 64
PATCHES_ON_STACK = 14
PATCHES = 28
# Blocks of output channels from which on the transform of the data costs little beside the products.
LEAST_SPLIT = 8

FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float64) / 24
DATA = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], np.float64
)  # fmt: skip
BACK = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64
)


@dataclass(frozen=True)
class WinogradF32Spec:
    """Static shape; parameters: data, residual?, U, bias?, out, scratch (see `scratch`)."""

    window: Window
    channels: int
    out_channels: int
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
        return window.batch, window.out_height, window.out_width, padded(self.out_channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row of an image."""
        return -(-self.window.out_height // 4), -(-self.window.out_width // 4)

    @property
    def patches(self) -> int:
        """Patches of the whole batch."""
        return self.window.batch * self.grid[0] * self.grid[1]

    @property
    def on_stack(self) -> bool:
        """Whether the transformed data lies on the stack."""
        return self.channels <= STACK_CHANNELS

    @property
    def block(self) -> int:
        """Patches of a task."""
        return tile_size(self.patches, PATCHES_ON_STACK if self.on_stack else PATCHES)

    @property
    def pitch(self) -> int:
        """Values from one patch to the next; odd in vectors, so that patches lie in different cache sets."""
        return groups_of(self.channels) // 2 * 2 * LANES + LANES

    @property
    def scratch(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the float32 scratch buffers behind the output: one slot per task, or none."""
        return () if self.on_stack else ((self.tasks() * POINTS * self.block * self.pitch,),)

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Vectors per block of output channels, whole blocks, vectors of the last block or 0."""
        return split_groups(groups_of(self.out_channels))

    @property
    def patch_blocks(self) -> int:
        """Blocks of patches."""
        return -(-self.patches // self.block)

    @property
    def split(self) -> bool:
        """Whether two tasks share the only block of patches, each with half of the output channels."""
        blocks = self.blocks[1]
        return self.patch_blocks == 1 and blocks % 2 == 0 and self.blocks[2] == 0 and blocks >= LEAST_SPLIT

    def tasks(self) -> int:
        """Length of the parallel loop: blocks of patches, or halves of the output channels."""
        return 2 if self.split else self.patch_blocks

    def macs(self) -> int:
        """Multiply-accumulates of the convolution as the model counts them (direct)."""
        pixels = self.window.batch * self.window.out_height * self.window.out_width
        return pixels * 9 * self.channels * self.out_channels

    def products(self) -> int:
        """Multiply-accumulates that are really done, without the transforms."""
        return self.patch_blocks * self.block * POINTS * self.channels * padded(self.out_channels)

    def bytes(self) -> int:
        """Bytes of data, U and output, each counted once."""
        weights = POINTS * self.channels * padded(self.out_channels)
        sizes = int(np.prod(self.in_shape)) + int(np.prod(self.out_shape)) * (1 + self.after.residual)
        return 4 * (sizes + weights)


def supports(spec: WinogradF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    window = spec.window
    if reason := window.refusal():
        return Verdict.no(reason)
    if window.kernel != (3, 3) or window.strides != (1, 1) or window.dilations != (1, 1):
        return Verdict.no(
            f"3 x 3 with stride and dilation 1, not {window.kernel} {window.strides} {window.dilations}"
        )
    return Verdict.yes()


def pack(spec: WinogradF32Spec, weight: Floats, bias: Floats | None = None) -> list[Array]:
    """Return the constants: U of weights [OC, C, 3, 3] in kernel layout, and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    turned = np.einsum("ir,ocrs,js->oijc", FILTER, weight.astype(np.float64), FILTER, optimize=True)
    wide = np.zeros((padded(spec.out_channels), POINTS * spec.channels), np.float32)
    wide[: spec.out_channels] = turned.reshape(spec.out_channels, -1)
    flat = interleave(wide.reshape(-1, LANES, wide.shape[1]).transpose(0, 2, 1), spec.blocks)
    return [flat] if bias is None else [flat, padded_vector(bias)]


def build(spec: WinogradF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `WinogradF32Spec`, then `begin` and `end`."""
    return _Winograd(spec, isa).module()


class _Winograd:
    """The kernel being written."""

    def __init__(self, spec: WinogradF32Spec, isa: Isa) -> None:
        from . import emit
        from .tile_f32 import Output, optional

        self.spec, self.isa = spec, isa
        last = padded(spec.out_channels)
        self.data = emit.parameter("data", "float32", spec.in_shape)
        self.weight = emit.parameter("weight", "float32", (POINTS * spec.channels * last,))
        bias = optional(spec.after.bias, "bias", (last,))
        residual = optional(spec.after.residual, "residual", spec.out_shape)
        self.out: Output = Output(
            emit.parameter("out", "float32", spec.out_shape), spec.after, bias, residual
        )
        self.slot = POINTS * spec.block * spec.pitch
        size = self.slot if spec.on_stack else spec.scratch[0][0]
        self.turned = emit.parameter("turned", "float32", (size,))
        self.sums = emit.parameter("sums", "float32", (POINTS * spec.block * spec.blocks[0] * LANES,))

    def module(self) -> tvm.IRModule:
        from . import emit
        from .tile_f32 import present

        given = present(self.data, self.out.residual, self.weight, self.out.bias, self.out.to)
        own = [] if self.spec.on_stack else [self.turned]
        return emit.module([*given, *own], lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one task: transform the patches, then multiply and transform back per block of channels."""
        from tvm import tirx

        from . import emit

        spec = self.spec
        vectors, whole, rest = spec.blocks
        first = (tirx.const(0, "int32") if spec.split else task) * spec.block
        count = tirx.min(spec.patches - first, spec.block)
        slot = tirx.const(0, "int32") if spec.on_stack else task * self.slot
        local = [self.sums, self.turned] if spec.on_stack else [self.sums]

        def block(b: Expr, width: int) -> list[Stmt]:
            return [
                *self.multiply(b * vectors, width, slot),
                emit.loop("p", 0, count, lambda p: self.back(first + p, p, b * vectors, width)),
            ]

        last = block(tirx.const(whole, "int32"), rest) if rest else []
        turn = emit.loop("p", 0, count, lambda p: self.turn(first + p, slot + p * spec.pitch))
        begin, most = (task * (whole // 2), whole // 2) if spec.split else (0, whole)
        return [*emit.allocate(local), turn, emit.loop("b", begin, most, lambda b: block(b, vectors)), *last]

    def place(self, patch: Expr) -> tuple[Expr, Expr, Expr]:
        """Return image, first output row and first output column of a patch."""
        from .tile_f32 import split_task

        down, across = self.spec.grid
        n, rest = split_task(patch, down * across)
        y, x = split_task(rest, across)
        return n, y * 4, x * 4

    def turn(self, patch: Expr, to: Expr) -> Sequence[Stmt]:
        """Return the transform of one patch for all channels, with and without edges."""
        from . import emit
        from .tile_f32 import branch

        window, groups = self.spec.window, groups_of(self.spec.channels)
        n, y, x = self.place(patch)
        top, left = y - window.pads[0], x - window.pads[1]
        inside = [top >= 0, left >= 0, top + 5 < window.height, left + 5 < window.width]

        def every(edge: bool) -> Stmt:
            return emit.loop("c", 0, groups, lambda c: self.turn_vector((n, top, left), c * LANES, to, edge))

        return [branch(inside, [every(False)], [every(True)])]

    def turn_vector(self, at: tuple[Expr, Expr, Expr], c: Expr, to: Expr, edge: bool) -> Sequence[Stmt]:
        """Return the transform of one patch for 16 channels."""
        from . import emit
        from . import winograd_tir as wt

        patch, half = wt.grid("d", 6, 6), wt.grid("h", 6, 6)
        loads = [self.fetch(patch[i][j], at, i, j, c, edge) for i in range(6) for j in range(6)]
        down = [
            s for j in range(6) for s in wt.turn([wt.get(patch[i][j]) for i in range(6)], wt.setter(half, j))
        ]

        def keep(i: int) -> Callable[[int, Expr], Stmt]:
            step = self.spec.block * self.spec.pitch
            return lambda j, value: emit.store(self.turned, value, to + ((i * 6 + j) * step + c), lanes=LANES)

        across = [s for i in range(6) for s in wt.turn([wt.get(cell) for cell in half[i]], keep(i))]
        return [*wt.allocate_grids(patch, half), *loads, *down, *across]

    def fetch(self, cell: Buffer, at: tuple[Expr, Expr, Expr], i: int, j: int, c: Expr, edge: bool) -> Stmt:
        """Return the load of one value of a patch; zero outside the data."""
        from . import emit
        from .math_f32 import lit
        from .tile_f32 import branch

        window = self.spec.window
        n, y, x = at[0], at[1] + i, at[2] + j
        load = emit.store(cell, emit.load(self.data, n, y, x, c, lanes=LANES), 0, lanes=LANES)
        if not edge:
            return load
        inside = [y >= 0, y < window.height, x >= 0, x < window.width]
        return branch(inside, [load], [emit.store(cell, lit(0.0, LANES), 0, lanes=LANES)])

    def multiply(self, first: Expr, vectors: int, slot: Expr) -> list[Stmt]:
        """Return the 36 products of all patches with one block of output channels."""
        from . import emit

        block = self.spec.block
        size = tile_size(block, max(1, accumulators(self.isa) // vectors))
        whole, rest = divmod(block, size)

        def point(k: Expr) -> list[Stmt]:
            def tile(row: Expr, rows: int) -> Sequence[Stmt]:
                return self.tile(k, row, rows, first, vectors, slot)

            tail = [] if not rest else [*tile(k * 0 + whole * size, rest)]
            return [emit.loop("m", 0, whole, lambda m: tile(m * size, size)), *tail]

        return [emit.loop("k", 0, POINTS, point)]

    def tile(self, k: Expr, row: Expr, rows: int, first: Expr, vectors: int, slot: Expr) -> Sequence[Stmt]:
        """Return one tile of the product of point `k`."""
        from . import emit
        from .math_f32 import lit
        from .tile_f32 import Tile

        spec, tile = self.spec, Tile.of(rows, vectors)
        left = slot + (k * spec.block + row) * spec.pitch
        right = first * (POINTS * spec.channels) + k * (spec.channels * vectors)
        to = (k * spec.block + row) * vectors

        far = spec.channels * vectors
        ahead = range(vectors) if self.weight.shape[0] * 4 >= PREFETCHED_BYTES else ()

        def products(c: Expr) -> list[Stmt]:
            place = right + c * vectors
            summed = tile.products(
                range(rows),
                lambda i: emit.load(self.turned, left + i * spec.pitch + c),
                lambda j: emit.load(self.weight, (place + j) * LANES, lanes=LANES),
            )
            return [*summed, *(emit.prefetch(self.weight, (place + (far + j)) * LANES) for j in ahead)]

        stored = [
            emit.store(self.sums, tile.value(i, j), (to + (i * vectors + j)) * LANES, lanes=LANES)
            for i in range(rows) for j in range(vectors)
        ]  # fmt: skip
        start = tile.fill(rows, lambda j: lit(0.0, LANES))
        return [*emit.allocate(tile.buffers), *start, emit.loop("c", 0, spec.channels, products), *stored]

    def back(self, patch: Expr, p: Expr, first: Expr, vectors: int) -> Sequence[Stmt]:
        """Return the transform back of one patch, with and without edges."""
        from . import emit
        from .tile_f32 import branch

        window, (n, y, x) = self.spec.window, self.place(patch)
        step = self.spec.block * vectors * LANES

        def every(edge: bool) -> Stmt:
            def one(v: Expr) -> Sequence[Stmt]:
                return self.back_vector((n, y, x), (p * vectors + v) * LANES, step, (first + v) * LANES, edge)

            return emit.loop("v", 0, vectors, one)

        inside = [y + 3 < window.out_height] if window.out_height % 4 else []
        inside += [x + 3 < window.out_width] if window.out_width % 4 else []
        return [branch(inside, [every(False)], [every(True)])] if inside else [every(False)]

    def back_vector(
        self, at: tuple[Expr, Expr, Expr], start: Expr, step: int, channel: Expr, edge: bool
    ) -> Sequence[Stmt]:
        """Return the transform back of one patch for 16 channels."""
        from . import emit
        from . import winograd_tir as wt

        half = wt.grid("b", 4, 6)

        def point(k: int) -> Expr:
            return emit.load(self.sums, start + k * step, lanes=LANES)

        down = [
            s for j in range(6) for s in wt.back([point(i * 6 + j) for i in range(6)], wt.setter(half, j))
        ]  # fmt: skip
        across = [
            self.keep(at[0], at[1] + i, at[2] + j, channel, value, edge)
            for i in range(4) for j, value in enumerate(wt.back_values([wt.get(cell) for cell in half[i]]))
        ]  # fmt: skip
        return [*wt.allocate_grids(half), *down, *across]

    def keep(self, n: Expr, y: Expr, x: Expr, channel: Expr, value: Expr, edge: bool) -> Stmt:
        """Return the store of one output vector; of a patch at the edge only if it lies inside."""
        from .tile_f32 import branch

        store = self.out.put(value + self.out.start(channel), n, y, x, channel)
        inside = [y < self.spec.window.out_height, x < self.spec.window.out_width]
        return branch(inside, [store]) if edge else store
