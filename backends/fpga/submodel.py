"""Parts of a model, evaluated by the reference: the host's ends, constants, chains of float operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.blas import one_blas_thread
from ..reference import Evaluator

Array = npt.NDArray[np.generic]


def cut(
    graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], *, shaped: bool
) -> ir.Model:
    """Return a model of its own from `inputs` to `outputs`; weights are shared.

    Args:
        graph: the whole graph; not edited.
        inputs: values where the cut begins.
        outputs: values where it ends.
        shaped: keep the inputs' shapes; else any shape goes in.
    """
    if not outputs:
        part = ir.Graph([], [], nodes=[], name="empty", opset_imports=dict(graph.opset_imports))
        return ir.Model(part, ir_version=10)
    part = ir.convenience.extract(graph, inputs, outputs)
    for value in (*part.inputs, *part.outputs) if not shaped else ():
        rank = 0 if value.shape is None else len(value.shape)
        value.shape = ir.Shape([f"{value.name}_{axis}" for axis in range(rank)])
    return ir.Model(part, ir_version=10)


class Function:
    """A cut as a function of one array."""

    def __init__(self, source: ir.Value, result: ir.Value) -> None:
        graph = source.graph
        assert graph is not None, f"{source.name} is in no graph"
        self._evaluator = (
            None if source is result else Evaluator(cut(graph, [source], [result], shaped=False))
        )
        self._names = source.name or "", result.name or ""

    def __call__(self, x: Array) -> Array:
        """Evaluate with the arithmetic of docs/semantics.md."""
        if self._evaluator is None:
            return x
        with one_blas_thread():
            return self._evaluator.run({self._names[0]: x})[self._names[1]]


def constant_value(value: ir.Value) -> Array | None:
    """Return what a value is worth when no input of the model reaches it, else None."""
    if value.const_value is not None and not value.is_graph_input():
        return np.asarray(value.const_value.numpy())
    graph = value.graph
    if graph is None or value.producer() is None or _reached(value):
        return None
    found: Mapping[str, Array] = Evaluator(cut(graph, [], [value], shaped=True)).run({})
    return found[value.name or ""]


def _reached(value: ir.Value) -> bool:
    """Say whether a graph input lies above `value`."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current.is_graph_input():
            return True
        node = current.producer()
        above = [] if node is None else [v for v in node.inputs if v is not None and v not in seen]
        seen.update(above)
        pending.extend(above)
    return False
