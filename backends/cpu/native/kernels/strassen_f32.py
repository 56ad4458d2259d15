"""Matrix product in float32 by one step of Strassen's scheme in Winograd's form: 7 block products, not 8.

    out[m, n] = after(sum over k of data[m, k] * weight[k, n]), [M, K] x [K, N] with K and N halved:

    S1 = A21 + A22, S2 = S1 - A11, S3 = A11 - A21, S4 = A12 - S2    (rows, while running)
    T1 = B12 - B11, T2 = B22 - T1, T3 = B22 - B12, T4 = T2 - B21    (weights, in float64 when compiled)
    C11 = A11 B11 + A12 B21                 C12 = (A11 B11 + S2 T2) + S1 T1 + S4 B22
    C21 = (A11 B11 + S2 T2) + S3 T3 - A22 T4    C22 = (A11 B11 + S2 T2) + S3 T3 + S1 T1

Layouts: data and out as `gemm_f32`; weights by blocks of 64 columns [7, K / 2, 2, 16], 7 / 4 of the bytes.

Tile: rows go in pairs of 14 + 14 neighbours (upper and lower half need not be far apart), columns in pairs
of 32 + 32. The sums S of 28 rows are formed once on the stack. Then per 64 columns seven products with the
tile of `gemm_f32`, 14 x 32 in 28 accumulators, run one into the other: the accumulators go on from P1 to
C11, from U2 to U3 to C21; only P1 (later U2) and U3 are kept, in the first-level cache. Half the depth must
hide the 8 stores and loads of a tile, so K >= 128. Weights are prefetched one product ahead. A task is one
tile of rows by some column blocks.

Predicted: 8/7 of `gemm_f32` less 2-4 %. Measured in a ResNet-50 on one core of Zen 4 (peak 58-60), GMAC/s
of the product as defined, beside `gemm_f32` in the same place: 196x256x1024 62 (55), 196x1024x256 64 (56),
784x128x512 62 (56), 784x512x128 63 (58), 3136x256x64 60 (58), 49x512x2048 62 (54): 54-55 done per ns, 92 %.
Prefetching into the first-level cache, 16-64 KiB ahead, cost 4 %: it drives out what is in use.

Error: that of a sum over K with the magnitudes of the formulas above (every minus read as a plus) in place
of |A| |B|; with random values about twice that of `gemm_f32`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .....compiler.backend import Verdict
from .after_f32 import After
from .gemm_f32 import CONFLICT_BYTES, Pixels, accumulators
from .window import LANES, padded_vector, tile_size

if TYPE_CHECKING:
    import tvm
    from tvm.ir import Expr
    from tvm.tirx import Buffer, Stmt, Var

    from ..isa import Isa
    from .tile_f32 import Output, Tile

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

VECTORS = 2
COLUMNS = 2 * VECTORS * LANES
PRODUCTS = 7
MOST_PAIRS = 14
LEAST_DEPTH, MOST_DEPTH = 128, 1024
LEAST_ROWS = 24
GROUP_BYTES = 2 << 20
TASKS = 8

# What the left side of each product is, in the order of computation: P1, P2, P6, P7, P4, P5, P3.
LEFTS = ("A11", "A12", "S2", "S3", "A22", "S1", "S4")
SUMS = ("S1", "S2", "S3", "S4")


@dataclass(frozen=True)
class StrassenF32Spec:
    """Static shape of one product; parameters: data, residual?, weights, bias?, out."""

    rows: int
    depth: int
    columns: int
    after: After = field(default_factory=After)
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
        return self.rows, self.columns

    @property
    def pairs(self) -> int:
        """Pairs of rows of a tile."""
        return tile_size(-(-self.rows // 2), MOST_PAIRS)

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return -(-self.rows // (2 * self.pairs))

    @property
    def groups(self) -> tuple[int, int]:
        """Column blocks of a task, and how many times that."""
        blocks = self.columns // COLUMNS
        size = PRODUCTS * self.depth // 2 * VECTORS * LANES * 4
        wanted = max(1, min(GROUP_BYTES // size, blocks, -(-blocks * self.tiles // TASKS)))
        while blocks % wanted:
            wanted -= 1
        return wanted, blocks // wanted

    @property
    def copied(self) -> tuple[str, ...]:
        """Left sides on the stack: sums, and data whose rows fight for one cache set or lie apart."""
        conflict = self.depth * 4 % CONFLICT_BYTES == 0
        return LEFTS if conflict or self.pixels is not None else SUMS

    def tasks(self) -> int:
        """Length of the parallel loop."""
        return self.tiles * self.groups[1]

    def macs(self) -> int:
        """Multiply-accumulates of the product as it is defined."""
        return self.rows * self.depth * self.columns

    def bytes(self) -> int:
        """Bytes of data, weights and output, each counted once."""
        out = self.rows * self.columns * (1 + self.after.residual)
        return 4 * (self.rows * self.depth + self.depth * self.columns * PRODUCTS // 4 + out)


def supports(spec: StrassenF32Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    if accumulators(isa) < MOST_PAIRS * VECTORS:
        return Verdict.no("needs 28 accumulators of 16 lanes")
    if spec.rows < LEAST_ROWS or spec.columns % COLUMNS or spec.depth % (2 * LANES):
        return Verdict.no(f"{spec.rows} x {spec.depth} x {spec.columns} does not halve into tiles")
    if not LEAST_DEPTH <= spec.depth <= MOST_DEPTH:
        return Verdict.no(f"a depth of {spec.depth}, not {LEAST_DEPTH} to {MOST_DEPTH}")
    return Verdict.yes()


def pack(spec: StrassenF32Spec, weight: Floats, bias: Floats | None = None) -> list[Array]:
    """Return the constants: the right sides of [K, N] in kernel layout, and the bias if any."""
    assert (bias is not None) == spec.after.bias, "the spec says whether there is a bias"
    half = spec.depth // 2
    parts = weight.astype(np.float64).reshape(2, half, -1, 2, VECTORS * LANES)
    b11, b12, b21, b22 = parts[0, :, :, 0], parts[0, :, :, 1], parts[1, :, :, 0], parts[1, :, :, 1]
    t1 = b12 - b11
    t2 = b22 - t1
    rights = np.stack([b11, b21, t2, b22 - b12, b21 - t2, t1, b22]).astype(np.float32)
    flat = rights.transpose(2, 0, 1, 3).reshape(-1)
    return [flat] if bias is None else [flat, padded_vector(bias)]


def build(spec: StrassenF32Spec, isa: Isa) -> tvm.IRModule:
    """Return the kernel; parameters as in `StrassenF32Spec`, then `begin` and `end`."""
    return _Strassen(spec).module()


class _Strassen:
    """The kernel being written."""

    def __init__(self, spec: StrassenF32Spec) -> None:
        from . import emit
        from .tile_f32 import Output, optional

        self.spec, self.half = spec, spec.depth // 2
        self.data = emit.parameter("data", "float32", (spec.data_rows, spec.depth))
        self.weight = emit.parameter("weight", "float32", (PRODUCTS * self.half * spec.columns // 2,))
        bias = optional(spec.after.bias, "bias", (spec.columns,))
        residual = optional(spec.after.residual, "residual", spec.out_shape)
        self.out: Output = Output(
            emit.parameter("out", "float32", spec.out_shape), spec.after, bias, residual
        )
        # Odd in vectors, so that rows lie in different cache sets.
        self.pitch = self.half // LANES // 2 * 2 * LANES + LANES
        slot = spec.pairs * self.pitch
        self.slots = {name: index * slot for index, name in enumerate(spec.copied)}
        self.sums = emit.parameter("sums", "float32", (len(spec.copied) * slot,))
        size = spec.pairs * VECTORS * LANES
        self.kept = [emit.parameter(name, "float32", (size,)) for name in ("first", "second")]

    def module(self) -> tvm.IRModule:
        from . import emit
        from .tile_f32 import present

        given = present(self.data, self.out.residual, self.weight, self.out.bias, self.out.to)
        return emit.module(given, lambda begin, end: [emit.loop("t", begin, end - begin, self.task)])

    def task(self, task: Var) -> Sequence[Stmt]:
        """Return one task: a tile of rows by a group of column blocks."""
        from tvm import tirx

        from . import emit
        from .tile_f32 import either, split_task

        spec = self.spec
        group, tile = split_task(task, spec.tiles)
        size, count = 2 * spec.pairs, spec.groups[0]

        def rows(first: Expr, real: int) -> list[Stmt]:
            upper = (real + 1) // 2
            every = emit.loop("b", 0, count, lambda b: self.block(group * count + b, first, upper, real))
            return [*self.prepare(first, upper, real), every]

        local = emit.allocate([self.sums, *self.kept])
        rest = spec.rows - (spec.tiles - 1) * size
        last = tirx.const((spec.tiles - 1) * size, "int32")
        if rest == size:
            return [*local, *rows(tile * size, size)]
        if spec.tiles == 1:
            return [*local, *rows(last, rest)]
        return [*local, either(tile < spec.tiles - 1, rows(tile * size, size), rows(last, rest))]

    def source(self, row: Expr) -> Expr:
        """Return where a row lies in the data."""
        from .gemm_f32 import place_of

        return place_of(row, self.spec.pixels)

    def prepare(self, first: Expr, upper: int, real: int) -> list[Stmt]:
        """Return the sums of a tile's rows; an odd last row is a pair with itself."""
        from . import emit

        def pair(i: Expr, below: Expr) -> list[Stmt]:
            above = self.source(first + i)
            return [emit.loop("c", 0, self.half // LANES, lambda c: self.sum(i, above, below, c * LANES))]

        def far(i: Expr) -> Expr:
            return self.source(first + (i + upper))

        whole = real - upper
        loops = [emit.loop("i", 0, whole, lambda i: pair(i, far(i)))]
        if whole < upper:
            loops += pair(emit.const(whole), self.source(first + whole))
        return loops

    def sum(self, i: Expr, above: Expr, below: Expr, c: Expr) -> list[Stmt]:
        """Return the stores of all sums of one vector of a pair of rows."""
        from . import emit

        def read(row: Expr, half: int) -> Expr:
            return emit.load(self.data, row, c + half * self.half, lanes=LANES)

        cells = {n: emit.register(n, "float32", LANES) for n in LEFTS if n[0] == "A"}
        cells |= {n: emit.register(n, "float32", LANES) for n in (*SUMS, "A21")}
        held = {n: emit.load(cell, 0, lanes=LANES) for n, cell in cells.items()}
        values = {
            "A11": read(above, 0), "A12": read(above, 1), "A21": read(below, 0), "A22": read(below, 1),
            "S1": held["A21"] + held["A22"], "S2": held["S1"] - held["A11"],
            "S3": held["A11"] - held["A21"], "S4": held["A12"] - held["S2"],
        }  # fmt: skip
        made = [emit.store(cells[n], value, 0, lanes=LANES) for n, value in values.items()]
        kept = [
            emit.store(self.sums, held[n], i * self.pitch + (c + self.slots[n]), lanes=LANES)
            for n in self.spec.copied
        ]
        return [*emit.allocate(list(cells.values())), *made, *kept]

    def block(self, block: Expr, first: Expr, upper: int, real: int) -> list[Stmt]:
        """Return the seven products of a tile of rows with 64 columns; see the formulas above."""
        from . import emit
        from .math_f32 import lit
        from .tile_f32 import Tile

        tile, (one, two) = Tile.of(upper, VECTORS), self.kept
        lower = real - upper

        def products(number: int) -> list[Stmt]:
            return self.products(tile, block, first, upper, number)

        def store(rows: int, below: bool, right: int, add: Buffer | None = None) -> list[Stmt]:
            start = first + upper if below else first
            return [
                self.store(tile, start, block, i, j, right, add) for i in range(rows) for j in range(VECTORS)
            ]

        zero = tile.fill(upper, lambda j: lit(0.0, LANES))
        return [
            *emit.allocate(tile.buffers),
            *zero, *products(0), *self.keep(tile, one), *products(1), *store(upper, False, 0),
            *self.again(tile, one), *products(2), *self.keep(tile, one),
            *products(3), *self.keep(tile, two), *products(4), *store(lower, True, 0),
            *zero, *products(5), *store(lower, True, 1, two),
            *self.add(tile, one), *products(6), *store(upper, False, 1),
        ]  # fmt: skip

    def products(self, tile: Tile, block: Expr, first: Expr, upper: int, number: int) -> list[Stmt]:
        """Return one product, added to the accumulators."""
        from . import emit

        size = self.half * VECTORS
        start = (block * PRODUCTS + number) * size
        left = self.left(LEFTS[number], first, upper)

        def step(k: Expr) -> list[Stmt]:
            place = start + k * VECTORS
            ahead = [emit.prefetch(self.weight, (place + (size + j)) * LANES) for j in range(VECTORS)]
            added = tile.products(
                range(len(tile.cells)),
                lambda i: left(i, k),
                lambda j: emit.load(self.weight, (place + j) * LANES, lanes=LANES),
            )
            return [*added, *ahead]

        return [emit.loop("k", 0, self.half, step)]

    def left(self, name: str, first: Expr, upper: int) -> Callable[[int, Expr], Expr]:
        """Return the reader of a left side."""
        from tvm import tirx

        from . import emit

        if name in self.slots:
            slot = self.slots[name]
            return lambda i, k: emit.load(self.sums, k + (slot + i * self.pitch))
        below, right = name[1] == "2", (name[2] == "2") * self.half
        last = self.spec.rows - 1

        def row(i: int) -> Expr:
            return tirx.min(first + (i + upper), last) if below else first + i

        return lambda i, k: emit.load(self.data, row(i), k + right)

    def keep(self, tile: Tile, to: Buffer) -> list[Stmt]:
        """Return the stores of the accumulators."""
        from . import emit

        return [emit.store(to, tile.value(i, j), at, lanes=LANES) for i, j, at in _cells(tile)]

    def again(self, tile: Tile, kept: Buffer) -> list[Stmt]:
        """Return the accumulators' start from kept values."""
        from . import emit

        return [
            tile.update(i, j, lambda _, at=at: emit.load(kept, at, lanes=LANES))  # type: ignore[misc]
            for i, j, at in _cells(tile)
        ]

    def add(self, tile: Tile, kept: Buffer) -> list[Stmt]:
        """Return the addition of kept values to the accumulators."""
        from . import emit

        return [
            tile.update(i, j, lambda v, at=at: v + emit.load(kept, at, lanes=LANES))  # type: ignore[misc]
            for i, j, at in _cells(tile)
        ]

    def store(
        self, tile: Tile, first: Expr, block: Expr, i: int, j: int, right: int, add: Buffer | None
    ) -> Stmt:
        """Return the store of one accumulator, plus a kept value if any."""
        from . import emit

        channel = block * COLUMNS + (right * VECTORS + j) * LANES
        value = tile.value(i, j)
        if add is not None:
            value = value + emit.load(add, (i * VECTORS + j) * LANES, lanes=LANES)
        return self.out.put(value + self.out.start(channel), first + i, channel)


def _cells(tile: Tile) -> list[tuple[int, int, int]]:
    """Return row, column and place of every accumulator."""
    columns = len(tile.cells[0])
    return [(i, j, (i * columns + j) * LANES) for i in range(len(tile.cells)) for j in range(columns)]
