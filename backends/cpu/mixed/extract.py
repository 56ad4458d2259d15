"""Makes a region a model of its own."""

from __future__ import annotations

import onnx_ir as ir

from ....compiler.partition import Region
from .draft import Draft


def region_model(draft: Draft, region: Region) -> ir.Model:
    """Return a region as a model; weights are shared with the draft's.

    Inputs and outputs keep their names. Constants and dequantizers that the region reads come along.
    """
    graph = ir.convenience.extract(draft.model.graph, region.inputs, region.outputs)
    for value in (*graph.inputs, *graph.outputs):
        shape = draft.border(value)
        if shape is not None:
            value.shape = ir.Shape(shape)
    return ir.Model(graph, ir_version=draft.model.ir_version)
