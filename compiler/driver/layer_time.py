"""Work and time of one layer by itself, before and after a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from ..backend import Array
from ..ir.quant import view
from ..ir.shapes import infer_shapes
from ..ir.stats import macs_of
from ..ir.walk import constant
from ..ort import make_session, run_session
from ..records import Metric, Origin

# What zeros anywhere gain on a CPU: share of weights left -> time over that of onnxruntime's dense code,
# median of the layers of docs/results/cpu_sparse_layers.md (engine native, kernels/sparse_f32.py).
_SPARSE = ((0.60, 0.83), (0.50, 0.69), (0.30, 0.43), (0.20, 0.31), (0.10, 0.19), (0.05, 0.117), (0.0, 0.05))
# Blocks of so many outputs that have their zeros in common cost what is left of them; also with few rows,
# where zeros anywhere gain nothing.
_BLOCK = 16
_FEW_ROWS = 4
# Multiply-accumulates per cycle relative to float32: 8-bit dot products 4, one bit with popcount 21.
_WIDTHS = {8: 4.0, 1: 21.0}
_SECONDS = 0.2
_MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Relu")


@dataclass(frozen=True)
class LayerTimes:
    """MACs and packed weights of the layer, and the ratios of time after to before."""

    macs: int
    bytes_before: int
    bytes_after: int | None
    predicted: Metric
    measured: Metric


def layer_times(
    before: ir.Model, after: ir.Model, node: ir.Node, batch: Mapping[str, Array], timed: bool
) -> LayerTimes:
    """Return the figures of the layer that makes `node`'s first output.

    Args:
        before: the float model.
        after: the same with this layer changed; the layer's input and output keep their names.
        node: the layer, in `before`.
        batch: inputs of the model, for the layer's real input.
        timed: run both forms by themselves.
    """
    data, made = node.inputs[0], node.outputs[0]
    assert data is not None, "a layer has an input"
    macs = macs_of(node) or 0
    name, result = str(data.name), str(made.name)
    if result not in _made(after) or not (name in _made(after) or data.is_graph_input()):
        why = "the layer's input or output is gone"
        nothing = _ratio("predicted", None, why), _ratio("measured", None, why)
        return LayerTimes(macs, packed_bytes(_alone(before, name, result)), None, *nothing)
    old, new = _alone(before, name, result), _alone(after, name, result)
    measured = _ratio("measured", None, "not asked for (--time)")
    if timed:
        measured = _measure(old, new, name, _input(before, name, batch))
    predicted = _ratio("predicted", _predict(new, macs), "MACs, width and sparsity", Origin.ESTIMATED)
    return LayerTimes(macs, packed_bytes(old), packed_bytes(new), predicted, measured)


def _ratio(name: str, value: float | None, how: str, origin: Origin = Origin.MEASURED) -> Metric:
    return Metric(f"time_ratio_{name}", value, "x", origin, how)


def _made(model: ir.Model) -> set[str]:
    return {str(value.name) for node in model.graph for value in node.outputs}


def _alone(model: ir.Model, data: str, result: str) -> ir.Model:
    graph = convenience.extract(model.graph, [data], [result])
    made = ir.Model(graph, ir_version=model.ir_version)
    infer_shapes(made)
    return made


def _predict(model: ir.Model, macs: int) -> float | None:
    """Return time over that of `macs` dense float32 multiplications."""
    total = 0.0
    for node in model.graph:
        work = macs_of(node)
        if work:
            total += work * _sparse(node) / _width(node)
    return total / macs if macs else None


def _width(node: ir.Node) -> float:
    widest = max((_bits(value) for value in node.inputs[:2]), default=32)
    return next((gain for bits, gain in sorted(_WIDTHS.items()) if widest <= bits), 1.0)


def _bits(value: ir.Value | None) -> int:
    """Return the width of what a layer multiplies; operators that only move data keep it."""
    while value is not None:
        found = view(value)
        if found is not None:
            return found.spec.bits
        maker = value.producer()
        value = maker.inputs[0] if maker is not None and maker.op_type in _MOVES else None
    return 32


def packed_bytes(model: ir.Model) -> int:
    """Return the bytes of all weights that layers multiply by, each at its own width, zeros counted."""
    weights = [
        value
        for node in model.graph
        if macs_of(node)
        for value in node.inputs[1:3]
        if value is not None and value.shape is not None and len(value.shape) > 1
    ]
    return sum(-(-math.prod(value.shape.numpy()) * _bits(value) // 8) for value in weights if value.shape)


def _sparse(node: ir.Node) -> float:
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.dtype.kind != "f" or weight.ndim < 2 or not weight.size:
        return 1.0
    axis = 0 if _outputs_first(node) else weight.ndim - 1
    kept = np.logical_or.reduceat(weight != 0, np.arange(0, weight.shape[axis], _BLOCK), axis=axis)
    blocks, left = float(kept.mean()), float(np.count_nonzero(weight)) / weight.size
    shares, times = zip(*reversed(_SPARSE), strict=True)
    anywhere = (
        float(np.interp(left, shares, times)) if left <= shares[-1] and not _has_few_rows(node) else 1.0
    )
    return min(blocks, anywhere)


def _outputs_first(node: ir.Node) -> bool:
    if node.op_type == "Gemm":
        turned = node.attributes.get("transB")
        return turned is not None and turned.as_int() == 1
    return node.op_type == "Conv"


def _has_few_rows(node: ir.Node) -> bool:
    """Tell whether a layer computes at most four rows or pixels; unknown sizes count as one."""
    shape = node.outputs[0].shape
    if shape is None:
        return False
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    return math.prod(sizes) // max(sizes[1 if node.op_type == "Conv" else -1], 1) <= _FEW_ROWS


def _input(model: ir.Model, name: str, batch: Mapping[str, Array]) -> Array:
    if name in batch:
        return batch[name]
    return run_session(make_session(model, extra_outputs=[name]), batch, [name])[name]


def _measure(before: ir.Model, after: ir.Model, name: str, value: Array) -> Metric:
    from ...bench.meter import compare_latency, pinned

    with pinned(1):
        first, second = make_session(before), make_session(after)
        compared = compare_latency(
            {
                "before": lambda: run_session(first, {name: value}),
                "after": lambda: run_session(second, {name: value}),
            },
            limit=_SECONDS,
        )
    how = "median of 5 interleaved rounds, the layer alone in onnxruntime, 1 thread"
    return _ratio("measured", compared.ratio("after", "before").median, how)
