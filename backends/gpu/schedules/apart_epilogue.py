"""The second half of a product that is apart: parts are summed in order, then everything behind it.

for every few neighbours along j (one thread):
    sums of the parts, 16 bytes at a time -> bias, rounding, residual, activation -> device memory
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from .inline import inline_into_writers

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import LoopRV, SBlockRV

_VECTOR, _THREADS = 4, 128
# Loops that stand for blocks and for threads.
_OUTER = 2


def map_epilogue(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Map the second half of `apart.halve` to threads; raises what TVM's schedules raise."""
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    sums = next((block for block in blocks if schedule.get(block).init is not None), None)
    partial = function.params[0]
    reader = next(block for block in blocks if _place(schedule, block, partial) is not None)
    result = reader if sums is None else schedule.cache_write(sums, 0, "local")
    inline_into_writers(schedule, result)
    *rows, columns = schedule.get_loops(result)
    vector = gcd(int(schedule.get(columns).extent), _VECTOR)
    columns, inner = schedule.split(columns, [None, vector])
    schedule.unroll(inner)
    one = schedule.fuse(*rows, columns)
    _write(schedule, result, one)
    # Behind it, so that writing too is shut out beyond the last result.
    grid, thread = schedule.split(one, [None, _THREADS])
    schedule.bind(grid, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    if sums is None:
        _load(schedule, result, partial, thread)
    else:
        _add_up(schedule, sums, partial, thread)
    return schedule.mod["main"]


def _place(schedule: s_tir.Schedule, block: SBlockRV, buffer: tirx.Buffer) -> int | None:
    """Return which of a block's reads is of a buffer."""
    reads = [region.source for region in schedule.get(block).reads]
    return next((number for number, read in enumerate(reads) if read.same_as(buffer)), None)


def _write(schedule: s_tir.Schedule, result: SBlockRV, one: LoopRV) -> None:
    """Let a thread compute its results in registers and write them at once, where they are neighbours."""
    block = schedule.get(result)
    if not block.writes[0].region[-1].min.same_as(block.iter_vars[-1].var):
        return
    copy = schedule.cache_write(result, 0, "local")
    schedule.reverse_compute_at(copy, one, preserve_unit_loops=True)
    schedule.vectorize(schedule.get_loops(copy)[-1])


def _load(schedule: s_tir.Schedule, block: SBlockRV, partial: tirx.Buffer, loop: LoopRV) -> None:
    """Bring what a block reads of the parts into registers, a whole vector of it."""
    read = schedule.cache_read(block, _place(schedule, block, partial), "local")
    schedule.compute_at(read, loop, preserve_unit_loops=True)
    schedule.vectorize(schedule.get_loops(read)[-1])


def _add_up(schedule: s_tir.Schedule, sums: SBlockRV, partial: tirx.Buffer, thread: LoopRV) -> None:
    """Sum the parts of a thread's results, whole vectors of them, in registers."""
    schedule.compute_at(sums, thread, preserve_unit_loops=True)
    part, *_, inner = schedule.get_loops(sums)[_OUTER:]
    _load(schedule, sums, partial, part)
    schedule.unroll(inner)
    schedule.decompose_reduction(sums, part)
