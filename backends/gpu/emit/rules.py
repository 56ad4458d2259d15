"""The one table of operators that the GPU backend takes."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    elementwise,
    lookups,
    lowbit,
    lowbit_bits,
    moves,
    norms,
    pools,
    products,
    quantized,
    reductions,
    resize,
)
from .walk import Rule

_PLAIN = {
    **elementwise.RULES, **lookups.RULES, **moves.RULES, **norms.RULES, **pools.RULES, **products.RULES,
    **reductions.RULES, **resize.RULES,
}  # fmt: skip

# (domain, operator) -> rule
RULES: Mapping[tuple[str, str], Rule] = {
    **{("", op): rule for op, rule in _PLAIN.items()}, **quantized.RULES, **lowbit.RULES, **lowbit_bits.RULES,
}  # fmt: skip
