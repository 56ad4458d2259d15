"""Matrix product in float32 with bias, residual, activation: [M, K] x [K, N]; also pointwise convolution.

    out[m, n] = after(sum over k of data[m, k] * weight[k, n])

Layouts: data [M, Kp], out [M, Np]; weights by blocks [K, vectors, 16], which is `conv_f32`'s layout of a 1
x 1 kernel. With `weight_is_input` the right side is another activation [K, Np], read as it lies.

Tile: as in conv_f32, up to 14 rows x 32 columns; few rows (M <= 4) take up to 8 vectors and split K so that
8 accumulators or more hide the latency of the FMA: there the weights are the bound, each is read once. Rows
of 4096 bytes (K = 1024) put the 14 rows of a tile into one set of the 8-way first-level cache (31 instead
of 54 GMAC/s), so tiles of such rows are copied to the stack, where rows are one vector longer; so are rows
that are every other pixel of an image (a pointwise convolution with strides: 43 -> 55 GMAC/s for 512->1024).
Weights beyond the second-level cache are prefetched one block ahead (52 -> 56 GMAC/s for 49x2048x512).
Blocks of N run inside a task while all weights fit half the second-level cache, or a copy pays once for
all; then data is fetched once. Beyond that outside, so that weights are.

Measured on one core of Zen 4 (peak 58 GMAC/s; predicted 90-95 %), GMAC/s and times faster than onnxruntime
1.31.1 in the same interleaved run, as pointwise convolution: 64->64 and 64->256 at 56x56 51 and 53 (1.2x),
256->64 50 (1.2x), 512->128 and 128->512 at 28x28 54 (1.1x), 256->1024 at 14x14 55 (1.1x), 512->2048 at 7x7
50-54 (1.05x); 1024->256 at 14x14 53 (1.08x), 2048->512 at 7x7 49 (1.10x). 128x256x1024 54 (1.04x). One row,
weights in cache: 512x512 50 GB/s (1.1x), 2048x1000 77 GB/s of 98 (1.15x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .window import LANES, groups_of, interleave, padded, padded_vector, split_groups, tile_size

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Buffer, Stmt, Var

    from ..isa import Isa
    from .tile_f32 import Output, Tile

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

FEW_ROWS = 4
WEIGHTS_INSIDE_BYTES = 512 << 10
ROWS_OF_TASK = 112
CONFLICT_BYTES = 4096
CONFLICT_ROWS = 9
TILE_ROWS = 14
COPY_BYTES = 160 << 10
# Weights from here on come from beyond the second-level cache.
PREFETCHED_BYTES = 512 << 10
ACCUMULATORS = 28


@dataclass(frozen=True)
class Pixels:
    """Every `strides`-th pixel of images of `height` x `width`, from the first on."""

    height: int
    width: int
    strides: tuple[int, int]

    @property
    def across(self) -> int:
        """Pixels taken of an image row."""
        return -(-self.width // self.strides[1])

    @property
    def taken(self) -> int:
        """Pixels taken of an image."""
        return -(-self.height // self.strides[0]) * self.across


@dataclass(frozen=True)
class GemmF32Spec:
    """Static shape of one product; parameters: data, weight (if input), residual?, weights, bias?, out.

    Attributes:
        pixels: the rows are some pixels of images: a pointwise convolution with strides.
    """

    rows: int
    depth: int
    columns: int
    after: After = field(default_factory=After)
    weight_is_input: bool = False
    pixels: Pixels | None = None

    @property
    def data_rows(self) -> int:
        """Rows of the data in memory."""
        if self.pixels is None:
            return self.rows
        return self.rows // self.pixels.taken * self.pixels.height * self.pixels.width

    @property
    def out_shape(self) -> tuple[int, int]:
        """Shape of the output in memory."""
        return self.rows, padded(self.columns)

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Vectors per block of columns, whole blocks, vectors of the last block or 0."""
        wide = (8, 7, 6, 5, 4) if self.rows <= FEW_ROWS else (2, 3)
        return split_groups(groups_of(self.columns), wide)

    @property
    def inside(self) -> bool:
        """Whether the blocks run inside a task."""
        small = padded(self.columns) * self.depth * 4 <= WEIGHTS_INSIDE_BYTES
        return self.rows > FEW_ROWS and (small or self.copies)

    @property
    def copies(self) -> bool:
        """Whether the rows of a tile are copied: they lie apart, or fight for one cache set."""
        if self.pixels is not None or not fits_stack(self.depth):
            return self.pixels is not None
        many = self.rows >= CONFLICT_ROWS and self.columns > LANES
        return many and padded(self.depth) * 4 % CONFLICT_BYTES == 0

    @property
    def chunk(self) -> int:
        """Rows of a task: where the weights are read once per tile anyhow, two tiles."""
        if self.inside:
            return min(self.rows, 2 * tile_size(self.rows, TILE_ROWS))
        return tile_size(self.rows, ROWS_OF_TASK)

    def tasks(self) -> int:
        """Length of the parallel loop: chunks of rows, times blocks of columns where these run outside."""
        _, whole, rest = self.blocks
        chunks = -(-self.rows // self.chunk)
        return chunks if self.inside else chunks * (whole + (rest > 0))

    def macs(self) -> int:
        """Multiply-accumulates of the product."""
        return self.rows * self.depth * self.columns

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        out = self.rows * padded(self.columns) * (1 + self.after.residual)
        return 4 * (self.rows * padded(self.depth) + self.depth * padded(self.columns) + out)


def accumulators(isa: Isa) -> int:
    """Return how many 16-lane accumulators stay in registers: 28 of 32 zmm, else 6 (12 of 16 ymm)."""
    return ACCUMULATORS if isa.vector_bytes >= 64 else 6


def fits_stack(depth: int) -> bool:
    """Tell whether the rows of a tile can be copied to the stack."""
    return padded(depth) * TILE_ROWS * 4 <= COPY_BYTES


def supports(spec: GemmF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if min(spec.rows, spec.depth, spec.columns) < 1:
        return Verdict.no(f"an empty product: {spec.rows} x {spec.depth} x {spec.columns}")
    if spec.pixels is not None and not fits_stack(spec.depth):
        return Verdict.no(f"strides over pixels of {spec.depth} channels")
    return Verdict.yes()


def pack(spec: GemmF32Spec, weight: Floats | None, bias: Floats | None = None) -> list[Array]:
    """Return the constants: weights of [K, N] in kernel layout (None if an input), and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    assert (weight is None) == spec.weight_is_input, "the spec says whether the weights are constant"
    constants: list[Array] = []
    if weight is not None:
        wide = np.zeros((spec.depth, padded(spec.columns)), np.float32)
        wide[:, : spec.columns] = weight
        constants.append(interleave(wide.reshape(spec.depth, -1, LANES).transpose(1, 0, 2), spec.blocks))
    return constants if bias is None else [*constants, padded_vector(bias)]


def build(spec: GemmF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `GemmF32Spec`, then `begin` and `end`."""
    return _Gemm(spec, isa).module()


class _Gemm:
    """The kernel being written."""

    def __init__(self, spec: GemmF32Spec, isa: Isa) -> None:
        from . import emit
        from .tile_f32 import Output, optional

        self.spec, self.isa = spec, isa
        last = padded(spec.columns)
        self.data = emit.parameter("data", "float32", (spec.data_rows, padded(spec.depth)))
        shape = (spec.depth, last) if spec.weight_is_input else (spec.depth * last,)
        self.weight = emit.parameter("weight", "float32", shape)
        bias = optional(spec.after.bias, "bias", (last,))
        residual = optional(spec.after.residual, "residual", spec.out_shape)
        self.out: Output = Output(
            emit.parameter("out", "float32", spec.out_shape), spec.after, bias, residual
        )
        self.copy = self.copy_buffer()

    def copy_buffer(self) -> Buffer | None:
        """Return the stack copy of a tile's rows, where they would fight for one cache set."""
        from . import emit

        if not self.spec.copies:
            return None
        size = self.tile_rows(self.spec.blocks[0])
        # Flat: TVM would trim the rows.
        return emit.parameter("copy", "float32", (size * self.pitch,))

    @property
    def pitch(self) -> int:
        """Values from one copied row to the next."""
        return padded(self.spec.depth) + LANES

    def tile_rows(self, vectors: int) -> int:
        """Return the rows of a tile of `vectors` columns."""
        return tile_size(self.spec.chunk, max(1, accumulators(self.isa) // vectors))

    def splits(self, rows: int, vectors: int) -> int:
        """Return into how many interleaved sums K is cut, so that there are at least 8 accumulators."""
        wanted = -(-8 // (rows * vectors))
        most = max(1, accumulators(self.isa) // (rows * vectors))
        return max(1, min(wanted, most, self.spec.depth))

    def module(self) -> tvm.IRModule:
        from . import emit
        from .tile_f32 import present

        spec, weight = self.spec, [self.weight]
        before, behind = (weight, []) if spec.weight_is_input else ([], weight)
        given = [
            self.data,
            *before,
            *present(self.out.residual),
            *behind,
            *present(self.out.bias),
            self.out.to,
        ]
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one task: a chunk of rows by one block or by all."""
        from tvm import tirx

        from . import emit
        from .tile_f32 import either, split_task

        spec = self.spec
        chunks = -(-spec.rows // spec.chunk)
        block, chunk = (None, task) if spec.inside else split_task(task, chunks)
        rest = spec.rows % spec.chunk
        copied = emit.allocate([self.copy]) if self.copy is not None else []
        if not rest or chunks == 1:
            return [*copied, *self.rows(chunk * spec.chunk, spec.chunk, block)]
        full = self.rows(chunk * spec.chunk, spec.chunk, block)
        last = self.rows(tirx.const((chunks - 1) * spec.chunk, "int32"), rest, block)
        return [*copied, either(chunk < chunks - 1, full, last)]

    def rows(self, first: Expr, count: int, block: Expr | None) -> list[Stmt]:
        """Return the tiles of `count` rows."""
        from . import emit

        size = min(self.tile_rows(self.spec.blocks[0]), count)
        whole, rest = divmod(count, size)
        statements = [emit.loop("m", 0, whole, lambda m: self.band(first + m * size, size, block))]
        return statements + ([*self.band(first + whole * size, rest, block)] if rest else [])

    def band(self, row: Expr, size: int, block: Expr | None) -> list[Stmt]:
        """Return one tile of rows by its block of columns, or by all of them."""
        from . import emit
        from .tile_f32 import either

        vectors, whole, rest = self.spec.blocks
        copied = self.copy_rows(row, size)
        if block is None:
            every = emit.loop("b", 0, whole, lambda b: self.tile(row, size, b, vectors))
            last = self.tile(row, size, _int(whole), rest) if rest else []
            return [*copied, every, *last]
        full = self.tile(row, size, block, vectors)
        if not rest:
            return [*copied, *full]
        return [*copied, either(block < whole, full, self.tile(row, size, block, rest))]

    def copy_rows(self, row: Expr, size: int) -> list[Stmt]:
        """Return the copy of a tile's rows to the stack."""
        from . import emit

        if self.copy is None:
            return []
        copy, data, lanes, pitch = self.copy, self.data, LANES, self.pitch

        def vector(i: Expr, c: Expr) -> Stmt:
            value = emit.load(data, place_of(row + i, self.spec.pixels), c * lanes, lanes=lanes)
            return emit.store(copy, value, i * pitch + c * lanes, lanes=lanes)

        def one(i: Expr) -> list[Stmt]:
            return [emit.loop("c", 0, padded(self.spec.depth) // lanes, lambda c: [vector(i, c)])]

        return [emit.loop("i", 0, size, one)]

    def tile(self, row: Expr, size: int, block: Expr, vectors: int) -> list[Stmt]:
        """Return one tile: start from the bias, add up, store."""
        from . import emit
        from .math_f32 import lit
        from .tile_f32 import Tile

        first = block * self.spec.blocks[0]
        splits = self.splits(size, vectors)
        tile = Tile.of(size * splits, vectors)
        start = [
            *tile.fill(size, lambda j: self.out.start((first + j) * LANES)),
            *Tile(tile.cells[size:]).fill(size * splits, lambda j: lit(0.0, LANES)),
        ]
        sums = [
            tile.update(i, j, lambda v, i=i, j=j, s=s: v + tile.value(i + s * size, j))  # type: ignore[misc]
            for s in range(1, splits) for i in range(size) for j in range(vectors)
        ]  # fmt: skip
        stored = [self.store(tile, row, first, i, j) for i in range(size) for j in range(vectors)]
        return [
            *emit.allocate(tile.buffers),
            *start,
            *self.depth(tile, row, size, first, splits),
            *sums,
            *stored,
        ]

    def store(self, tile: Tile, row: Expr, first: Expr, i: int, j: int) -> Stmt:
        """Return the store of one accumulator."""
        return self.out.put(tile.value(i, j), row + i, (first + j) * LANES)

    def depth(self, tile: Tile, row: Expr, size: int, first: Expr, splits: int) -> list[Stmt]:
        """Return the loop over K in steps of `splits`, and what is left of it."""
        from . import emit

        whole, rest = divmod(self.spec.depth, splits)

        def products(k: Expr, split: int) -> list[Stmt]:
            part = type(tile)(tile.cells[split * size : (split + 1) * size])
            vectors = len(tile.cells[0])
            summed = part.products(range(size), self.left(row, k), self.right(first, k, vectors))
            return [*summed, *self.ahead(first, k, vectors)]

        body: Callable[[Var], list[Stmt]] = lambda k: [  # noqa: E731
            statement for s in range(splits) for statement in products(k * splits + s, s)
        ]
        tail = [statement for s in range(rest) for statement in products(_int(whole * splits + s), s)]
        return [emit.loop("k", 0, whole, body), *tail]

    def left(self, row: Expr, k: Expr) -> Callable[[int], Expr]:
        """Return the reader of the data's values at depth `k`."""
        from . import emit

        copy, data, pitch = self.copy, self.data, self.pitch
        if copy is not None:
            return lambda i: emit.load(copy, i * pitch + k)
        return lambda i: emit.load(data, row + i, k)

    def right(self, first: Expr, k: Expr, vectors: int) -> Callable[[int], Expr]:
        """Return the reader of the weights' vectors at depth `k`."""
        from . import emit

        weight = self.weight
        if self.spec.weight_is_input:
            return lambda j: emit.load(weight, k, (first + j) * LANES, lanes=LANES)
        origin = first * self.spec.depth + k * vectors
        return lambda j: emit.load(weight, (origin + j) * LANES, lanes=LANES)

    def ahead(self, first: Expr, k: Expr, vectors: int) -> list[Stmt]:
        """Return the prefetches of the next block's weights at depth `k`, if no near cache holds all."""
        from . import emit

        spec = self.spec
        if spec.weight_is_input or spec.rows <= FEW_ROWS or spec.depth * spec.columns * 4 < PREFETCHED_BYTES:
            return []
        place = (first + vectors) * spec.depth + k * vectors
        return [emit.prefetch(self.weight, (place + j) * LANES) for j in range(vectors)]


def place_of(row: Expr, pixels: Pixels | None) -> Expr:
    """Return where a row of the product lies in the data."""
    from .tile_f32 import split_task

    if pixels is None:
        return row
    image, pixel = split_task(row, pixels.taken)
    y, x = split_task(pixel, pixels.across)
    down, across = pixels.strides
    return (image * pixels.height + y * down) * pixels.width + x * across


def _int(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "int32")
