"""The one table of operators that the GPU backend takes."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    attention,
    dynamic,
    elementwise,
    lookups,
    loops,
    lowbit,
    lowbit_bits,
    lowbit_blocks,
    lowbit_sparse,
    moves,
    norms,
    pools,
    products,
    quantized,
    recurrent,
    reductions,
    resize,
)
from .walk import Rule

_PLAIN = {
    **dynamic.RULES, **elementwise.RULES, **lookups.RULES, **loops.RULES, **moves.RULES, **norms.RULES,
    **pools.RULES, **products.RULES, **recurrent.RULES, **reductions.RULES, **resize.RULES,
}  # fmt: skip

# (domain, operator) -> rule
RULES: Mapping[tuple[str, str], Rule] = {
    **{("", op): rule for op, rule in _PLAIN.items()}, **quantized.RULES, **lowbit.RULES, **lowbit_bits.RULES,
    **attention.RULES, **lowbit_blocks.RULES, **lowbit_sparse.RULES,
}  # fmt: skip
