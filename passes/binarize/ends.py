"""The first and the last layers of a model: what reads the inputs and what makes the outputs lose most."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..prune.weights import Weight


def end_layers(model: ir.Model, weights: Sequence[Weight]) -> frozenset[Weight]:
    """Return the weights with no other weight before them on any way, and those with none behind."""
    of = {use.node: weight for weight in weights for use in weight.uses}
    behind: dict[ir.Value, bool] = {}
    first, last = set[Weight](), set[Weight]()
    for node in model.graph:
        seen = any(behind.get(value, False) for value in node.inputs if value is not None)
        if node in of and not seen:
            first.add(of[node])
        for output in node.outputs:
            behind[output] = seen or node in of
    before = dict.fromkeys((value for value in model.graph.outputs), False)
    for node in reversed(model.graph):
        needed = any(before.get(output, False) for output in node.outputs)
        if node in of and not needed:
            last.add(of[node])
        for value in node.inputs:
            if value is not None:
                before[value] = before.get(value, False) or needed or node in of
    return frozenset(first | last)
