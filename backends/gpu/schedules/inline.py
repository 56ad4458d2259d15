"""Brings what stands before and behind a block into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm import s_tir
    from tvm.s_tir.schedule import SBlockRV


def inline_into_readers(schedule: s_tir.Schedule, block: SBlockRV) -> None:
    """Compute in place whatever produces what a block reads, back to the function's inputs."""
    producers = list(schedule.get_producers(block))
    while producers:
        producer = producers.pop()
        before = list(schedule.get_producers(producer))
        schedule.compute_inline(producer)
        producers = [*before, *(p for p in producers if p not in before)]


def inline_into_writers(schedule: s_tir.Schedule, block: SBlockRV) -> None:
    """Let a block write what its consumers would, to the function's output."""
    while consumers := schedule.get_consumers(block):
        inner = [c for c in consumers if schedule.get_consumers(c)]
        if len(consumers) > 1 and inner:
            # Read twice (`x * sigmoid(x)`): one of the ways goes into what joins them.
            schedule.compute_inline(inner[0])
            continue
        for other in _others(schedule, consumers[0], block):
            inline_into_readers(schedule, other)
            schedule.compute_inline(other)
        schedule.reverse_compute_inline(consumers[0])


def _others(schedule: s_tir.Schedule, consumer: SBlockRV, block: SBlockRV) -> list[SBlockRV]:
    """Return the producers of a consumer but `block` itself."""
    mine = schedule.get(block)
    return [p for p in schedule.get_producers(consumer) if not schedule.get(p).same_as(mine)]
