"""Functions that leave every element where it is: their results are their inputs' memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm import tirx

# Parameters of a function that reads one buffer and writes another.
_IN_AND_OUT = 2


def is_view(function: tirx.PrimFunc) -> bool:
    """Tell whether a function only reshapes, once or several times (the name is that of TVM's operator)."""
    from tvm import relax

    from .schedules.gemm_form import leaf_blocks

    if len(function.params) != _IN_AND_OUT:
        return False
    names = [str(block.name_hint) for block in leaf_blocks(function)]
    return all(name.startswith("T_reshape") for name in names) or bool(
        relax.analysis.has_reshape_pattern(function)
    )
