"""Products and convolutions on tensor cores, with everything behind them in the same kernel.

for every tile of C (one block of threads):
    for k in steps of 64 bytes:            the next ones are on their way (pipeline.py)
        A, B: device memory -> shared memory, 16 bytes per thread; pads and layouts are resolved here
        shared memory -> fragments -> products
    fragments -> shared memory -> bias, rounding, residual, activation -> device memory
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from .base import Chip, Entry, Named
from .gemm_form import Product, Role, product_of
from .inline import inline_into_readers, inline_into_writers
from .matrices import fused, to_matrices
from .pipeline import LEAST_BYTES, Way, ahead, copy_ahead, is_copy, through_registers
from .tiles import Tile, ranked
from .wmma import SIZE, SUMS, Intrinsics, intrinsics

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import LoopRV, SBlockRV

# Products smaller than this are bound by launch or by memory; other schedules take them.
_MIN_I, _MIN_J, _MIN_K = 12, 8, 16
_WARP = 32
_VECTOR_BYTES = 16
# Results that a thread writes at once.
_OUTPUTS = 4
# Tiles that a device may time.
_TIMED = 5


def takes(function: tirx.PrimFunc, chip: Chip) -> bool:
    """Tell whether a function is a product, or convolution, large enough and of the types of tensor cores."""
    product = product_of(function)
    if product is None or product.dtypes[0] != product.dtypes[1] or product.dtypes[0] not in SUMS:
        return False
    large = product.extent("i") >= _MIN_I and product.extent("j") >= _MIN_J and product.extent("k") >= _MIN_K
    return large and product.dtypes[2] == SUMS[product.dtypes[0]]


def _apply(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    product, tiles = _tiles(function, chip)
    return tiled(function, product, tiles[0], chip)


def _others(function: tirx.PrimFunc, chip: Chip) -> Named:
    product, tiles = _tiles(function, chip)
    if product.extent("k") > tiles[0].k:
        yield "tensor-core registers", tiled(function, product, tiles[0], chip, "registers")
    for tile in tiles[1:_TIMED]:
        yield f"tensor-core {tile.i}x{tile.j}", tiled(function, product, tile, chip)


def _tiles(function: tirx.PrimFunc, chip: Chip) -> tuple[Product, list[Tile]]:
    product = product_of(function)
    assert product is not None, "taken without a product"
    size = (product.extent("s"), product.extent("i"), product.extent("j"), product.extent("k"))
    return product, ranked(size, product.width(0), chip)


def tiled(
    function: tirx.PrimFunc, product: Product, tile: Tile, chip: Chip, way: Way = "copies"
) -> tirx.PrimFunc:
    """Return a function with `product` mapped to blocks of threads that compute a tile each.

    Raises:
        ScheduleError: what stands around the product is not to be transformed.
    """
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    steps = -(-product.extent("k") // tile.k)
    _Tiled(schedule, product, tile).run(ahead(tile, product.width(0), steps, chip), way)
    return schedule.mod["main"]


class _Tiled:
    """One function on its way to threads."""

    def __init__(self, schedule: s_tir.Schedule, product: Product, tile: Tile) -> None:
        self._schedule, self._product, self._tile = schedule, product, tile
        self._by_columns = product.runs[1][1] == "k"
        self._steps: Intrinsics = intrinsics(product.dtypes[0], b_by_columns=self._by_columns)
        self._block: SBlockRV = schedule.get_sblock(product.block)

    def run(self, steps: int, way: Way) -> None:
        """Schedule everything; operands are copied `steps` ahead, or wait in registers for the next one."""
        self._to_matrices()
        depth, warp = self._split()
        fetched = [self._fetch(side, depth) for side in (0, 1)]
        for block in fetched:
            inline_into_readers(self._schedule, block)
        if steps:
            self._overlap(depth, fetched, steps, way)
        self._load_fragments()
        self._store(warp)
        self._multiply(depth)

    def _to_matrices(self) -> None:
        """Make the block a product of matrices, filled up to whole tiles."""
        schedule, tile = self._schedule, self._tile
        self._result_axes = to_matrices(schedule, self._product, self._block, b_by_columns=self._by_columns)
        schedule.pad_einsum(self._block, [1, tile.i, tile.j, tile.k])

    def _split(self) -> tuple[LoopRV, LoopRV]:
        """Split the loops; returns the loop over steps along k and the one that stands for warps."""
        schedule, tile = self._schedule, self._tile
        s, i, j, k = schedule.get_loops(self._block)
        i, i_in = schedule.split(i, [None, SIZE])
        j, j_in = schedule.split(j, [None, SIZE])
        k, k_in = schedule.split(k, [None, SIZE])
        schedule.reorder(i, j, k, i_in, j_in, k_in)
        self._inner, self._block = self._block, schedule.blockize(i_in)
        i0, i1, i2 = schedule.split(i, [None, tile.warps_i, tile.i // tile.warps_i // SIZE])
        j0, j1, j2 = schedule.split(j, [None, tile.warps_j, tile.j // tile.warps_j // SIZE])
        k0, self._k1 = schedule.split(k, [None, tile.k // SIZE])
        schedule.reorder(s, i0, j0, i1, j1, k0, self._k1, i2, j2)
        warp = schedule.fuse(i1, j1)
        schedule.bind(s, "blockIdx.z")
        schedule.bind(j0, "blockIdx.x")
        schedule.bind(i0, "blockIdx.y")
        schedule.bind(warp, "threadIdx.y")
        for loop in (self._k1, i2, j2):
            schedule.unroll(loop)
        return k0, warp

    def _fetch(self, side: int, depth: LoopRV) -> SBlockRV:
        """Copy a tile of an operand to shared memory, whole vectors per thread."""
        schedule, tile = self._schedule, self._tile
        block = schedule.cache_read(self._block, side, "shared.dyn")
        schedule.compute_at(block, depth)
        fused = schedule.fuse(*schedule.get_loops(block)[-2:])
        _, warp, lane, inner = schedule.split(fused, [None, tile.warps, _WARP, self._vector(side)])
        schedule.bind(lane, "threadIdx.x")
        schedule.bind(warp, "threadIdx.y")
        schedule.vectorize(inner)
        # Rows of 16 bytes more than a power of two lie in different banks of shared memory.
        width = self._product.width(side)
        schedule.storage_align(block, 0, axis=-2, factor=32 // width, offset=16 // width)
        return block

    def _overlap(self, depth: LoopRV, fetched: list[SBlockRV], steps: int, way: Way) -> None:
        """Let operands be on their way while others are multiplied."""
        # Single elements would take too many registers, and no copy is that small.
        if min(self._vector(side) * self._product.width(side) for side in (0, 1)) < LEAST_BYTES:
            return
        if way == "copies" and all(is_copy(self._schedule.get(block)) for block in fetched):
            copy_ahead(self._schedule, depth, steps)
        else:
            through_registers(self._schedule, depth, fetched)

    def _vector(self, side: int) -> int:
        """Return how many elements a thread copies at once: up to 16 bytes of one stretch of memory."""
        count = self._tile.k * (self._tile.j if side else self._tile.i)
        run, role = self._product.runs[side]
        wanted = _VECTOR_BYTES // self._product.width(side)
        along: Role = "k" if side == 0 or self._by_columns else "j"
        whole = gcd(run, wanted) if role == along else 1
        return gcd(whole, max(count // (self._tile.warps * _WARP), 1))

    def _load_fragments(self) -> None:
        schedule = self._schedule
        for side, scope, name in (
            (0, "wmma.matrix_a", self._steps.load_a),
            (1, "wmma.matrix_b", self._steps.load_b),
        ):
            block = schedule.cache_read(self._block, side, scope)
            schedule.compute_at(block, self._k1)
            schedule.tensorize(self._by_fragments(block), name)

    def _by_fragments(self, block: SBlockRV) -> LoopRV:
        """Split a block's two loops into fragments; returns the first loop within one."""
        schedule = self._schedule
        first, second = schedule.get_loops(block)[-2:]
        first, first_in = schedule.split(first, [None, SIZE])
        second, second_in = schedule.split(second, [None, SIZE])
        schedule.reorder(first, second, first_in, second_in)
        schedule.unroll(first)
        schedule.unroll(second)
        return first_in

    def _store(self, warp: LoopRV) -> None:
        """Write fragments to shared memory; from there the epilogue goes on, one vector per thread."""
        schedule = self._schedule
        shared = schedule.cache_write(self._block, 0, "shared.dyn")
        fragments = schedule.cache_write(self._block, 0, "wmma.accumulator")
        schedule.reverse_compute_at(fragments, warp)
        schedule.reverse_compute_at(shared, warp)
        tiles = schedule.blockize(self._by_fragments(fragments))
        schedule.tensorize(tiles, self._steps.store)
        # On the block that stays: tensorize drops what its inner block says.
        schedule.storage_align(tiles, 0, axis=-2, factor=16, offset=4)
        inline_into_writers(schedule, shared)
        rows, columns = schedule.get_loops(shared)[-2:]
        lanes = min(_WARP, self._tile.j // self._tile.warps_j // _OUTPUTS)
        rows, row = schedule.split(rows, [None, _WARP // lanes])
        columns, column, inner = schedule.split(columns, [None, lanes, _OUTPUTS])
        schedule.reorder(rows, columns, row, column, inner)
        lane = schedule.fuse(row, column)
        schedule.bind(lane, "threadIdx.x")
        self._write_vectors(shared, lane, inner)

    def _write_vectors(self, shared: SBlockRV, lane: LoopRV, inner: LoopRV) -> None:
        """Let a thread compute its elements into registers and write them at once."""
        schedule, axes = self._schedule, self._result_axes
        written = schedule.get(shared).writes[0].source
        shape = [self._product.axes[number].extent for number in axes]
        if [int(size) for size in written.shape] != shape:
            return
        copy = schedule.cache_write(shared, 0, "local")
        schedule.transform_layout(shared, ("write", 0), fused(self._product, axes, ("s", "i", "j")))
        schedule.unroll(inner)
        schedule.reverse_compute_at(copy, lane)
        schedule.vectorize(schedule.get_loops(copy)[-1])

    def _multiply(self, depth: LoopRV) -> None:
        schedule = self._schedule
        first = schedule.decompose_reduction(self._block, depth)
        (fill,) = schedule.get_child_blocks(first)
        schedule.tensorize(schedule.get_loops(fill)[-2], self._steps.fill)
        schedule.tensorize(schedule.get_loops(self._inner)[-3], self._steps.multiply)


ENTRIES = (Entry("tensor-core", takes, _apply, _others),)
