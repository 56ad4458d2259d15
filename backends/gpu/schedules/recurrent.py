"""A step of a recurrent cell: a warp sums one unit's gates, lane by lane, then closes with the formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Chip, Entry, marked

if TYPE_CHECKING:
    from tvm import tirx

# Units of a thread block: a warp each. Few, so that a state of a hundred units reaches many processors.
_UNITS = 4
_LANES = 32


def _step(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    """Map `sums` [batch, gates, units | k] and `states` [results, batch, units] to one kernel."""
    from tvm import s_tir

    sch = s_tir.Schedule(function)
    sums, states = sch.get_sblock("sums"), sch.get_sblock("states")
    rows, batch, unit = sch.get_loops(states)
    outer, inner = sch.split(unit, [None, _UNITS])
    sch.reorder(batch, outer, inner, rows)
    sch.bind(batch, "blockIdx.y")
    sch.bind(outer, "blockIdx.x")
    sch.bind(inner, "threadIdx.y")
    _, lane = sch.split(rows, [None, _LANES])  # so that the lanes beyond the rows are shut out
    sch.bind(lane, "threadIdx.x")
    sch.compute_at(sums, inner)
    sch.set_scope(sums, 0, "local")
    *_, k = sch.get_loops(sums)
    _, lanes = sch.split(k, [None, _LANES])
    sch.bind(lanes, "threadIdx.x")
    return sch.mod["main"]


ENTRIES = (Entry("recurrent", marked("recurrent"), _step),)
