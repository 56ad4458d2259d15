"""bfloat16 for engines that have no kernels for it: float32 values, each rounded where it is made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..ir.walk import Names, all_graphs, replace_value, values_of

_BFLOAT16, _FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def has_bfloat16(model: ir.Model) -> bool:
    """Say whether any value is bfloat16."""
    return any(value.dtype == _BFLOAT16 for graph in all_graphs(model) for value in values_of(graph))


def write_out_bfloat16(model: ir.Model) -> None:
    """Make every bfloat16 value a float32 value of the same name that holds the same number, in place.

    Operators compute in float32 and two casts round what they make. Inputs and outputs of the model stay.
    """
    names = Names(model)
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.dtype == _BFLOAT16 and value.const_value is not None:
                array = value.const_value.numpy().astype(np.float32)
                value.const_value = ir.tensor(array, name=value.name)
                value.type = ir.TensorType(_FLOAT)
        for node in list(graph):
            for value in node.outputs:
                if value.dtype == _BFLOAT16 and not value.is_graph_output():
                    _round(node, value, names)


def _round(node: ir.Node, value: ir.Value, names: Names) -> None:
    if node.op_type != "Cast":
        value.type = ir.TensorType(_FLOAT)
    short = value if node.op_type == "Cast" else _cast(node, value, _BFLOAT16, names)
    maker = short.producer()
    assert maker is not None, "a rounded value is made by a node"
    replace_value(value, _cast(maker, short, _FLOAT, names))
    if short is not value:
        maker.replace_input_with(0, value)


def _cast(after: ir.Node, value: ir.Value, to: ir.DataType, names: Names) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(to)}, name=names.fresh(f"{value.name}_Cast"))
    result = node.outputs[0]
    result.name, result.type = names.fresh(f"{value.name}_rounded"), ir.TensorType(to)
    result.shape = None if value.shape is None else value.shape.copy()
    assert after.graph is not None, "a node in no graph"
    after.graph.insert_after(after, node)
    return result
