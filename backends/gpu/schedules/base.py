"""What every schedule starts from: the chip, and what a function says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

# What a thread block may use on every chip from sm_80 on, without asking the driver for more.
SHARED_BYTES = 49152
_LIMITS = {"max_threads_per_block": 1024, "max_num_threads": 1024, "thread_warp_size": 32}

# Where an emitter marks a function: `te.compute(..., attrs={MARK: "w4a16"})`. It stays through fusion.
MARK = "pared.mark"


@dataclass(frozen=True)
class Chip:
    """What schedules ask about a chip.

    Attributes:
        arch: `sm_90` and the like.
        sms: streaming multiprocessors of the largest common product: A100 108, L40S 142, H100 SXM 132
            (NVIDIA's data sheets); only the number of blocks is chosen by it.
    """

    arch: str
    sms: int


_SMS = {"sm_80": 108, "sm_86": 84, "sm_89": 142, "sm_90": 132}


def chip_of(arch: str) -> Chip:
    """Return the facts of a chip; one that is not listed counts as an sm_80."""
    return Chip(arch, _SMS.get(arch, _SMS["sm_80"]))


def target_of(arch: str) -> tvm.target.Target:
    """Return TVM's target for a chip such as `sm_90`."""
    import tvm

    return tvm.target.Target(
        {"kind": "cuda", "arch": arch, "max_shared_memory_per_block": SHARED_BYTES, **_LIMITS}, host="llvm"
    )


Named: TypeAlias = "Iterator[tuple[str, tirx.PrimFunc]]"
Takes: TypeAlias = "Callable[[tirx.PrimFunc, Chip], bool]"
Apply: TypeAlias = "Callable[[tirx.PrimFunc, Chip], tirx.PrimFunc | None]"


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: shown in the artifact's report.
        takes: whether the function is of this kind; cheap.
        apply: returns the scheduled function, or None where it is none of this schedule's after all.
        others: yields it with other sizes, by name, the most promising first: what a device may time.
    """

    name: str
    takes: Takes
    apply: Apply
    others: Callable[[tirx.PrimFunc, Chip], Named] | None = None


def marks(function: tirx.PrimFunc) -> frozenset[str]:
    """Return what emitters marked the blocks of an unscheduled function with."""
    import tvm_ffi
    from tvm import s_tir

    found: set[str] = set()

    def visit(block: s_tir.SBlock) -> None:
        if MARK in block.annotations:
            found.add(str(block.annotations[MARK]))

    tvm_ffi.structural_walk(function.body, [(s_tir.SBlock, visit)], order="post")
    return frozenset(found)


def marked(name: str) -> Takes:
    """Return the predicate of functions that an emitter marked with `name`."""
    return lambda function, chip: name in marks(function)
