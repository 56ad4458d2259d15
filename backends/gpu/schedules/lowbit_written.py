"""What a kernel written by hand consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..program import Dims

# Types in C++.
CPP = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}


@dataclass(frozen=True)
class Written:
    """A kernel's text and its launch.

    Attributes:
        template: file in `cuda/` with what kernels of the kind share.
        types: of the parameters, in C++.
        call: the statement in the kernel's body; `{0}` to `{n}` are its parameters.
        grid, block: launch sizes.
        exact: products and sums must round once each.
        schedule: name in the artifact's report.
    """

    template: str
    types: Sequence[str]
    call: str
    grid: Dims
    block: Dims
    exact: bool
    schedule: str
