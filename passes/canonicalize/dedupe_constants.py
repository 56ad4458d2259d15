"""Sharing of constants of equal content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.equal import equal_groups, share
from ...compiler.ir.walk import all_graphs
from ...compiler.pass_api import Context, Effect, PassStats


@dataclass(frozen=True)
class DedupeConstants:
    """Let nodes read one constant where several of one graph have the same dtype, shape and bytes.

    Exact. Constants are told apart by dtype and shape first, then by 4 KiB of content, and only then by
    a hash of everything, so that big weights are read only when they may be equal. Bits decide, not
    values: 0.0 and -0.0 differ, equal NaNs are equal. Graph inputs and outputs stay.
    """

    name: ClassVar[str] = "dedupe-constants"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        changed = saved = 0
        for graph in list(all_graphs(model)):
            ctx.check_cancelled()
            for group in list(equal_groups(graph)):
                saved += share(group)
                changed += len(group) - 1
        return PassStats(changed=changed, details={"bytes_saved": saved})
