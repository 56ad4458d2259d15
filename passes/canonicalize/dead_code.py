"""Removal of what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.walk import all_graphs, all_nodes, drop_unused_initializer, remove_if_dead
from ...compiler.pass_api import Context, Effect, PassStats


@dataclass(frozen=True)
class DeadCode:
    """Remove nodes, constants and functions that no graph output depends on.

    Exact. A node is judged by its uses, those by bodies of If, Loop and Scan included. Inputs and outputs
    of the graphs stay. onnx-ir's own pass does not count constants of bodies and rewrites optional
    outputs on the way, so this one is written out.
    """

    name: ClassVar[str] = "dead-code"
    effect: ClassVar[Effect] = Effect.EXACT

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        nodes = constants = 0
        # Outer graphs first: removing an If also frees what only its bodies used.
        for graph in list(all_graphs(model)):
            ctx.check_cancelled()
            nodes += sum(remove_if_dead(node) for node in reversed(list(graph)))
        for graph in list(all_graphs(model)):
            before = len(graph.initializers)
            for value in list(graph.initializers.values()):
                drop_unused_initializer(value)
            constants += before - len(graph.initializers)
        functions = _drop_functions(model)
        return PassStats(
            changed=nodes + constants + functions,
            details={
                "nodes_removed": nodes,
                "constants_removed": constants,
                "functions_removed": functions,
            },
        )


def _drop_functions(model: ir.Model) -> int:
    if not model.functions:
        return 0
    used: set[ir.OperatorIdentifier] = set()
    pending = [node.op_identifier() for node in all_nodes(model)]
    while pending:
        identifier = pending.pop()
        function = model.functions.get(identifier)
        if function is not None and identifier not in used:
            used.add(identifier)
            pending.extend(node.op_identifier() for node in all_nodes(function.graph))
    unused = [identifier for identifier in model.functions if identifier not in used]
    for identifier in unused:
        del model.functions[identifier]
    return len(unused)
