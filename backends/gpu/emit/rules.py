"""The one table of operators that the GPU backend takes."""

from __future__ import annotations

from collections.abc import Mapping

from . import elementwise, lowbit, moves, products, quantized, reductions
from .walk import Rule

_PLAIN = {**elementwise.RULES, **moves.RULES, **products.RULES, **reductions.RULES}

# (domain, operator) -> rule
RULES: Mapping[tuple[str, str], Rule] = {
    **{("", op): rule for op, rule in _PLAIN.items()}, **quantized.RULES, **lowbit.RULES,
}  # fmt: skip
