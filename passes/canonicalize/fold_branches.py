"""Branches whose condition follows from shapes and constants, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.shapes import infer_shapes
from ...compiler.ir.walk import all_nodes
from ...compiler.pass_api import Context, Effect, PassStats
from .common import is_op, live_nodes
from .fold_constants import FoldConstants
from .fold_shapes import FoldShapes
from .inline_if import inline_if

# What one branch yields can decide the next: exporters write chains of them ("if the rank is 2, ...").
_ROUNDS = 16


@dataclass(frozen=True)
class FoldBranches:
    """Replace every If whose condition can be told by the branch it takes.

    Exact. The shapes that an inlined branch makes known may decide the next If, so shapes and constants
    are folded in between, until no If is decided any more. Models without If are left untouched.
    """

    name: ClassVar[str] = "fold-branches"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats(details={"branches_inlined": 0})
        for _ in range(_ROUNDS):
            if not any(is_op(node, "If") for node in all_nodes(model)):
                break
            folded = FoldShapes().apply(model, ctx).changed + FoldConstants().apply(model, ctx).changed
            inlined = sum(inline_if(node) for node in live_nodes(model, ctx, "If"))
            stats.changed += folded + inlined
            if not inlined:
                break
            stats.details["branches_inlined"] = int(stats.details["branches_inlined"]) + inlined
            infer_shapes(model)
        return stats
