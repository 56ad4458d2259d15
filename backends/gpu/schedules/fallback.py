"""What TVM's own rules (dlight) make of a function; the last of them takes every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Chip, Entry, target_of

if TYPE_CHECKING:
    from tvm import tirx


def _dlight(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    import tvm
    from tvm.s_tir import dlight

    rules = [
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    ]
    module = tvm.IRModule({"main": function})
    with target_of(chip.arch):
        return dlight.ApplyDefaultSchedule(*rules)(module)["main"]


ENTRIES = (Entry("dlight", lambda function, chip: True, _dlight),)
