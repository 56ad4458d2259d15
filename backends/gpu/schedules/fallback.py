"""What TVM's own rules (dlight) make of a function; the last of them takes every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Chip, Entry, target_of
from .gemm_form import leaf_blocks

if TYPE_CHECKING:
    import tvm
    from tvm import s_tir, tirx
    from tvm.s_tir import dlight


# The rules assert what they expect or stumble over what they do not, and some map loops to threads in ways
# that the lowering then refuses.
_NOT_EXPECTED = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _dlight(function: tirx.PrimFunc, chip: Chip) -> tirx.PrimFunc | None:
    import tvm
    from tvm.s_tir import dlight

    named = _sums_of_one_as_values(function).with_attr("global_symbol", "main")
    for rule in _rules(function):
        # Before sm_70 the rule for products leaves tensor cores alone; with them it loads for half a minute.
        with target_of("sm_60" if isinstance(rule, dlight.gpu.Matmul) else chip.arch):
            found = _tried(rule, tvm.IRModule({"main": named}))  # the pass edits the module it is given
        if found is not None:
            return found
    return None


def _rules(function: tirx.PrimFunc) -> list[dlight.base.ScheduleRule]:
    """Return the rules to try, the last of which takes every function.

    `dlight.gpu.GEMV` is not among them: where results are fewer than the rows of its blocks, it writes behind
    them (seen thread by thread, 4 results, 16 rows).
    """
    from tvm.s_tir.dlight import gpu

    # Where an axis is divided, this one splits it for itself and loses elements: seen thread by thread in a
    # depthwise layer of 3 to 6 channels with a window of 2x1.
    splitting = [] if _divides(function) else [gpu.Reduction()]
    return [gpu.Matmul(), *splitting, gpu.GeneralReduction(), gpu.Fallback()]


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


def _divides(function: tirx.PrimFunc) -> bool:
    """Tell whether a reduction reads where a division of its axes says."""
    import tvm_ffi
    from tvm import tirx

    found: list[tirx.FloorDiv] = []
    sums = [block for block in leaf_blocks(function) if block.init is not None]
    regions = [region for block in sums for region in block.reads]
    for part in (part for region in regions for part in region.region):
        tvm_ffi.structural_walk(part.min, [(tirx.FloorDiv, found.append)], order="post")
    return bool(found)


def _sums_of_one_as_values(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function whose reductions of one term are plain blocks: the term joined to its start.

    TVM takes such a block for a plain one and writes what follows into its start too: `x * w + bias` over
    one channel became `start = bias; start + x * w + bias`.
    """
    import tvm_ffi
    from tvm import s_tir

    body = tvm_ffi.structural_map(function.body, (s_tir.SBlock, _joined_to_start), order="post")
    return function.with_body(body)


def _joined_to_start(block: s_tir.SBlock) -> s_tir.SBlock:
    import tvm_ffi
    from tvm import ir, s_tir, tirx

    store, start = block.body, block.init
    sums = [axis for axis in block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    single = all(isinstance(axis.dom.extent, tirx.IntImm) and int(axis.dom.extent) == 1 for axis in sums)
    if start is None or not single or not isinstance(store, tirx.BufferStore):
        return block

    def started(load: ir.TensorLoad) -> tirx.Expr:
        return start.value if load.source.same_as(store.buffer) else load

    value = tvm_ffi.structural_map(store.value, (ir.TensorLoad, started), order="post")
    axes = [tirx.IterVar(axis.dom, axis.var, tirx.IterVar.DataPar) for axis in block.iter_vars]
    body = tirx.BufferStore(store.buffer, value, store.indices)
    return s_tir.SBlock(
        axes, block.reads, block.writes, block.name_hint, body, None, block.alloc_buffers,
        block.match_buffers, block.annotations,
    )  # fmt: skip


ENTRIES = (Entry("dlight", lambda function, chip: True, _dlight),)
