"""What TVM's own rules (dlight) make of a function; the last of them takes every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Chip, Entry, target_of

if TYPE_CHECKING:
    import tvm
    from tvm import tirx


# The rules assert what they expect or stumble over what they do not, and some map loops to threads in ways
# that the lowering then refuses.
_NOT_EXPECTED = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    named = function.with_attr("global_symbol", "main")
    for rule in rules:
        # Before sm_70 the rule for products leaves tensor cores alone; with them it loads for half a minute.
        with target_of("sm_60" if isinstance(rule, dlight.gpu.Matmul) else chip.arch):
            found = _tried(rule, tvm.IRModule({"main": named}))  # the pass edits the module it is given
        if found is not None:
            return found
    return None


def _tried(rule: object, module: tvm.IRModule) -> tirx.PrimFunc | None:
    """Return what a rule makes of a function; None where it is not for it."""
    import tvm
    from tvm import tirx
    from tvm.s_tir import dlight

    try:
        mapped = dlight.ApplyDefaultSchedule(rule)(module)
        if "tirx.is_scheduled" not in (mapped["main"].attrs or {}):
            return None
        if not isinstance(rule, dlight.gpu.Fallback):
            bound = tirx.transform.BindTarget(tvm.target.Target.current())(mapped)
            tirx.get_default_tir_pipeline(tvm.target.Target.current())[0](bound)
    except _NOT_EXPECTED:
        return None
    return mapped["main"]


ENTRIES = (Entry("dlight", lambda function, chip: True, _dlight),)
