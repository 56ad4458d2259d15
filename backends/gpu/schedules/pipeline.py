"""How operands of the steps to come reach shared memory while one step is multiplied.

copies:      `cp.async` from device memory, some steps ahead; the tiles of all of them lie side by side
registers:   the next step's tiles wait in registers; shared memory holds two steps

A copy moves bytes as they are; constants in pads and beyond a matrix are stored beside it (copies.py).
Operands that are computed on the way go through registers; elements alone, of less than four bytes, wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .base import Chip
from .tiles import Tile

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import LoopRV, SBlockRV

# Fewest bytes that a copy moves, or that are worth registers of their own.
LEAST_BYTES = 4
# Steps copied ahead at most; four tiles per operand, so that the turn is `& 3`.
_AHEAD = 3
# Shared memory of an SM, and what the system keeps of it per block: CUDA C++ Programming Guide, compute
# capabilities.
_SHARED = {"sm_80": 164 << 10, "sm_86": 100 << 10, "sm_89": 100 << 10, "sm_90": 228 << 10}
_RESERVED = 1024
# Warps that an SM shall have room for: four for each of its tensor cores.
_WARPS = 16
_PAD_BYTES = 16

Way = Literal["copies", "registers"]


def ahead(tile: Tile, width: int, steps: int, chip: Chip) -> int:
    """Return how many steps are copied ahead; 0 where there is nothing to overlap.

    As many as are there and leave room for 16 warps on an SM, or fit into what the tile's results take
    afterwards.

    Args:
        tile: of a block of threads.
        width: bytes of an operand's element.
        steps: along k.
        chip: whose shared memory counts.
    """
    share = _SHARED.get(chip.arch, _SHARED["sm_86"]) * tile.warps // _WARPS - _RESERVED
    room = max(share, tile.i * tile.j * 4)
    one = (tile.i + tile.j) * (tile.k * width + _PAD_BYTES)
    return max(min(_AHEAD, room // one - 1, steps - 1), 0)


def is_copy(block: s_tir.SBlock) -> bool:
    """Tell whether a block writes what lies in memory, or a constant where a condition shuts it out."""
    from tvm import ir, tirx

    store = block.body
    if not isinstance(store, tirx.BufferStore):
        return False
    value = store.value
    while (inside := _or_constant(value)) is not None:
        value = inside
    return isinstance(value, ir.TensorLoad)


def _or_constant(value: tirx.Expr) -> tirx.Expr | None:
    """Return x of `if_then_else(condition, x, constant)`."""
    from tvm import ir, tirx

    if not isinstance(value, ir.Call) or getattr(value.op, "name", "") != "prim.if_then_else":
        return None
    _, inside, outside = value.args
    return inside if isinstance(outside, tirx.IntImm | tirx.FloatImm) else None


def copy_ahead(schedule: s_tir.Schedule, depth: LoopRV, steps: int) -> None:
    """Copy both operands `steps` ahead of the products; the loop's blocks are A, B and the products."""
    # Unrolled, the addresses of all steps would be in registers at once.
    schedule.annotate(depth, "disable_unroll", 1)
    schedule.annotate(depth, "software_pipeline_stage", [0, 0, steps])
    schedule.annotate(depth, "software_pipeline_order", [0, 1, 2])
    schedule.annotate(depth, "software_pipeline_async_stages", [0])


def through_registers(schedule: s_tir.Schedule, depth: LoopRV, fetched: list[SBlockRV]) -> None:
    """Load A and B of the next step into registers, multiply this one, then store A and B."""
    for block in fetched:
        schedule.annotate(block, "tirx.manifest_shared_memory_local_stage", 1)
        schedule.annotate(block, "double_buffer_scope", 0)
    schedule.annotate(depth, "software_pipeline_stage", [0, 0, 0, 0, 1])
    schedule.annotate(depth, "software_pipeline_order", [0, 3, 1, 4, 2])
