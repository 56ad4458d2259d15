"""Products with few rows, bound by reading the matrix: a group of lanes per column, whole vectors along k.

for a few columns of C (one block of threads, a group of lanes each):
    for k in steps of lanes x 16 bytes:    B and the rows of A: device memory -> registers, multiply
    the lanes' sums are added by shuffles; bias, rounding, activation -> device memory
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from .base import Chip, Entry
from .gemm_form import Product, product_of
from .inline import inline_into_readers, inline_into_writers
from .matrices import to_matrices
from .wmma import dot4

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import LoopRV, SBlockRV

_DTYPES = {"int8": "int32", "float16": "float32", "bfloat16": "float32", "float32": "float32"}
# More rows keep tensor cores busy.
_MAX_ROWS = 11
_VECTOR_BYTES = 16
_WARP, _WARPS = 32, 4
# Loops that stand for blocks and for the columns of one.
_OUTER = 3


def _takes(function: tirx.PrimFunc, chip: Chip) -> bool:
    product = product_of(function)
    if product is None or product.dtypes[0] != product.dtypes[1] or product.dtypes[0] not in _DTYPES:
        return False
    along_k = all(role == "k" for _, role in product.runs)
    fits = product.extent("i") <= _MAX_ROWS and product.extent("k") >= _WARP
    return along_k and fits and product.dtypes[2] == _DTYPES[product.dtypes[0]]


def _apply(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    from tvm import s_tir

    product = product_of(function)
    assert product is not None, "taken without a product"
    schedule = s_tir.Schedule(function)
    columns, lanes, vector = shares(product, chip)
    block = schedule.get_sblock(product.block)
    to_matrices(schedule, product, block, b_by_columns=True)
    schedule.pad_einsum(block, [1, 1, columns, lanes * vector])
    by_fours = product.dtypes[0] == "int8" and vector % 4 == 0
    _map(schedule, block, columns, lanes, vector, by_fours)
    return schedule.mod["main"]


def shares(product: Product, chip: Chip) -> tuple[int, int, int]:
    """Return how many columns a block of threads has, how many lanes each, and a lane's vector."""
    k, runs = product.extent("k"), gcd(*(length for length, _ in product.runs))
    vector = gcd(runs, _VECTOR_BYTES // product.width(0))
    while vector > 1 and k < _WARP * vector:
        vector //= 2
    few = product.extent("s") * product.extent("j") < 2 * chip.sms
    if few and k >= _WARP * _WARPS * vector:
        return 1, _WARP * _WARPS, vector
    return min(_WARPS, product.extent("j")), _WARP, vector


def _map(
    schedule: s_tir.Schedule, block: SBlockRV, columns: int, lanes: int, vector: int, by_fours: bool
) -> None:
    *_, k = schedule.get_loops(block)
    _, lane, _ = schedule.split(k, [None, lanes, vector])
    partial = schedule.rfactor(lane, 0)
    own = _sum_lanes(schedule, block, columns)
    _sum_steps(schedule, partial, own, by_fours)


def _sum_lanes(schedule: s_tir.Schedule, block: SBlockRV, columns: int) -> LoopRV:
    """Add the lanes' sums and compute what follows, one result per thread; returns the loop of columns."""
    result = schedule.cache_write(block, 0, "shared")
    batch, row, column, lane = schedule.get_loops(block)
    outer, own = schedule.split(column, [None, columns])
    schedule.reorder(batch, outer, own, row, lane)
    schedule.bind(batch, "blockIdx.y")
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(own, "threadIdx.y")
    schedule.bind(lane, "threadIdx.x")
    schedule.reverse_compute_at(result, outer, preserve_unit_loops=True)
    inline_into_writers(schedule, result)  # from here on columns beyond the last are shut out
    lanes = int(schedule.get(lane).extent)
    fused = schedule.fuse(*schedule.get_loops(result)[2:])
    _, warp, thread = schedule.split(fused, [None, columns, lanes])
    schedule.bind(warp, "threadIdx.y")
    schedule.bind(thread, "threadIdx.x")
    return own


def _sum_steps(schedule: s_tir.Schedule, partial: SBlockRV, own: LoopRV, by_fours: bool) -> None:
    """Multiply and add in registers; operands are loaded as vectors before each step."""
    schedule.compute_at(partial, own, preserve_unit_loops=True)
    schedule.set_scope(partial, 0, "local")
    lane, batch, row, column, step, inner = schedule.get_loops(partial)[_OUTER:]
    schedule.reorder(lane, batch, column, step, row, inner)
    schedule.bind(lane, "threadIdx.x")
    inner, four = schedule.split(inner, [None, 4]) if by_fours else (inner, None)
    for loop in (row, inner):
        schedule.unroll(loop)
    for side in (0, 1):
        copy = schedule.cache_read(partial, side, "local")
        schedule.compute_at(copy, step, preserve_unit_loops=True)
        *_, rows, vector = schedule.get_loops(copy)
        schedule.unroll(rows)
        schedule.vectorize(vector)
        inline_into_readers(schedule, copy)
    schedule.decompose_reduction(partial, step)
    if four is not None:
        schedule.tensorize(four, dot4())


ENTRIES = (Entry("gemv", _takes, _apply),)
