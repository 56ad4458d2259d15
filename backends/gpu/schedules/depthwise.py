"""Depthwise convolutions: a thread computes a few neighbours of a row for a few channels next to each other.

Its channels' weights stay in registers; data of a row is loaded once per row of the window, in vectors over
channels, and used by all its outputs. There is nothing to share between threads but what caches hold.
"""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING

from .base import Chip, Entry, marks
from .gemm_form import element_bytes, leaf_blocks
from .inline import inline_into_readers, inline_into_writers

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import LoopRV, SBlockRV

_NAME = "depthwise"
_THREADS = 128
# Loops that stand for blocks and threads.
_OUTER = 2
# Threads per SM that hide the time a load takes; fewer outputs per thread where there would be less.
_THREADS_PER_SM = 512
_VECTOR_BYTES, _ROW = 8, 4


def _takes(function: tirx.PrimFunc, chip: Chip) -> bool:
    if _NAME not in marks(function):
        return False
    sums = [block for block in leaf_blocks(function) if block.init is not None]
    if len(sums) != 1:
        return False
    data, weights = sums[0].reads
    whole = [int(size) for size in function.params[-1].ty.shape]
    same = [int(size) for size in sums[0].writes[0].source.shape] == whole
    return same and int(data.source.shape[-1]) == int(weights.source.shape[-1])


def _apply(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    block = schedule.get_sblock(_NAME)
    stated = schedule.get(block)
    shape = [int(size) for size in stated.writes[0].source.shape]
    vector, row = _shares(shape, element_bytes(str(stated.reads[0].source.dtype)), chip)
    thread = _to_threads(schedule, block, vector, row)
    _load(schedule, block, thread)
    _finish(schedule, block, thread)
    return schedule.mod["main"]


def _shares(shape: list[int], width: int, chip: Chip) -> tuple[int, int]:
    """Return how many channels and how many neighbours of a row a thread computes."""
    vector = gcd(shape[-1], _VECTOR_BYTES // width)
    row = min(_ROW, shape[-2])
    wanted = chip.sms * _THREADS_PER_SM
    while row > 1 and prod(shape) // (vector * row) < wanted:
        row //= 2
    while vector * width > 4 and vector % 2 == 0 and prod(shape) // (vector * row) < wanted:
        vector //= 2
    return vector, row


def _to_threads(schedule: s_tir.Schedule, block: SBlockRV, vector: int, row: int) -> LoopRV:
    """Split the loops; returns the one of threads, within which a thread's own follow."""
    *outer, x, channel = schedule.get_loops(block)[: -_taps(schedule, block)]
    taps = schedule.get_loops(block)[-_taps(schedule, block) :]
    x, own_x = schedule.split(x, [None, row])
    channel, own_channel = schedule.split(channel, [None, vector])
    schedule.reorder(*outer, x, channel, *taps, own_x, own_channel)
    grid, thread = schedule.split(schedule.fuse(*outer, x, channel), [None, _THREADS])
    schedule.bind(grid, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    for loop in (*taps, own_x, own_channel):
        schedule.unroll(loop)
    return thread


def _taps(schedule: s_tir.Schedule, block: SBlockRV) -> int:
    """Return how many axes the window has."""
    from tvm import tirx

    return sum(axis.iter_type == tirx.IterVar.CommReduce for axis in schedule.get(block).iter_vars)


def _load(schedule: s_tir.Schedule, block: SBlockRV, thread: LoopRV) -> None:
    """Bring weights into registers before all taps, data before the taps of a row."""
    taps = _taps(schedule, block)
    rows = schedule.get_loops(block)[_OUTER : _OUTER + taps - 1]
    for side, place in ((1, thread), (0, rows[-1] if rows else thread)):
        copy = schedule.cache_read(block, side, "local")
        schedule.compute_at(copy, place, preserve_unit_loops=True)
        *own, inner = schedule.get_loops(copy)[_OUTER + (0 if side else len(rows)) :]
        for loop in own:
            schedule.unroll(loop)
        schedule.vectorize(inner)
        inline_into_readers(schedule, copy)


def _finish(schedule: s_tir.Schedule, block: SBlockRV, thread: LoopRV) -> None:
    """Sum in registers, compute what follows there, and write vectors."""
    result = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(result, thread, preserve_unit_loops=True)
    inline_into_writers(schedule, result)
    copy = schedule.cache_write(result, 0, "local")
    for loop in schedule.get_loops(result)[_OUTER:]:
        schedule.unroll(loop)
    schedule.reverse_compute_at(copy, thread, preserve_unit_loops=True)
    *own, inner = schedule.get_loops(copy)[_OUTER:]
    for loop in own:
        schedule.unroll(loop)
    schedule.vectorize(inner)
    schedule.decompose_reduction(block, schedule.get_loops(block)[_OUTER])


ENTRIES = (Entry(_NAME, _takes, _apply),)
