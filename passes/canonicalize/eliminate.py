"""Removal of nodes that change nothing and of detours in data movement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .common import can_be_output, forward, is_op, label, live_nodes
from .no_ops import same_as_input
from .rearrange import merge


@dataclass(frozen=True)
class Eliminate:
    """Remove no-ops and shorten chains that only move data.

    Exact. No-ops: Identity, Dropout in inference, Cast to the same type, Relu of what is never negative,
    Clip without bounds, Reshape, Slice, Transpose, Pad and the like that leave everything in place,
    arithmetic with 0 or 1. Chains: Transpose, Reshape (Flatten, Squeeze, Unsqueeze) and Slice after their
    like become one. A Sum of two is an Add.
    """

    name: ClassVar[str] = "eliminate"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        removed = merged = renamed = 0
        for node in live_nodes(model, ctx):
            if _removed(node, stats):
                removed += 1
            elif merge(model, node):
                merged += 1
            elif is_op(node, "Sum") and len(node.inputs) == 2:
                # The same addition, and the one that later passes and kernels look for.
                node.op_type = "Add"
                renamed += 1
        stats.changed = removed + merged + renamed
        stats.details = {"no_ops": removed, "merged": merged, "renamed": renamed}
        return stats


def _removed(node: ir.Node, stats: PassStats) -> bool:
    verdict = same_as_input(node)
    if isinstance(verdict, str):
        stats.refused.append(Refusal(label(node), verdict))
        return False
    if verdict is None or _carries_an_output_name(node, verdict):
        return False
    forward(node, verdict)
    return True


def _carries_an_output_name(node: ir.Node, same: ir.Value) -> bool:
    """An Identity that makes an input or constant an output is needed."""
    output = node.outputs[0]
    return is_op(node, "Identity") and output.is_graph_output() and not can_be_output(same, output.graph)
