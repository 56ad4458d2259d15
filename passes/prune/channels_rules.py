"""How channels go through operators: one rule per kind; an operator without a rule keeps what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from ...compiler.ir import walk
from . import channels_layers as layers
from . import channels_parts as parts
from .channels_graph import Graph, Labels
from .channels_reshape import reshape

Rule = Callable[[Graph, ir.Node], None]

_UNARY = (
    "Abs", "Acos", "Asin", "Atan", "BitShift", "Cast", "Ceil", "Celu", "Cos", "Dropout", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip


def propagate(graph: Graph) -> None:
    """Run through the main graph."""
    for node in graph.model.graph:
        rule = None if node.domain else RULES.get(node.op_type)
        if rule is None:
            graph.stop(node, f"{node.op_type} {node.name!r} is not understood")
        else:
            rule(graph, node)
    graph.finish()


def _unary(graph: Graph, node: ir.Node) -> None:
    graph.set(node.outputs[0], graph.of(node.inputs[0]))


def _broadcast(graph: Graph, node: ir.Node) -> None:
    """Tie what meets at each place; constants of full size are cut along."""
    shape = node.outputs[0].shape
    if shape is None:
        graph.stop(node, f"the shape of {node.outputs[0].name!r} is not known")
        return
    graph.set(
        node.outputs[0], [layers.meet(graph, node, range(len(node.inputs)), i) for i in range(-len(shape), 0)]
    )


def _normalization(graph: Graph, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization treat each channel alone."""
    axes = graph.of(node.inputs[0])
    labels = graph.axis(node.inputs[0], 1)
    for port in range(1, len(node.inputs)):
        if labels is not None and not layers.take_constant(graph, node, port, 0, labels):
            graph.fix(labels, f"{node.op_type} {node.name!r} has parameters that are not constant")
    graph.set(node.outputs[0], axes)


def _pool(graph: Graph, node: ir.Node) -> None:
    """Spatial axes are summed over."""
    axes = list(graph.of(node.inputs[0]))
    for index in range(2, len(axes)):
        _keep(graph, axes, index, node)
    for output in node.outputs:
        if output.name:
            graph.set(output, axes)


def _keep(graph: Graph, axes: list[Labels | None], index: int, node: ir.Node) -> None:
    graph.fix(axes[index], f"{node.op_type} {node.name!r} sums over or mixes the channels")
    axes[index] = None


def _softmax(graph: Graph, node: ir.Node) -> None:
    axes = list(graph.of(node.inputs[0]))
    if axes:
        _keep(graph, axes, walk.int_attribute(node, "axis", -1), node)
    graph.set(node.outputs[0], axes)


def _layer_norm(graph: Graph, node: ir.Node) -> None:
    axes = list(graph.of(node.inputs[0]))
    first = walk.int_attribute(node, "axis", -1) % max(len(axes), 1)
    for index in range(first, len(axes)):
        _keep(graph, axes, index, node)
    graph.set(node.outputs[0], axes)


def _reduction(graph: Graph, node: ir.Node) -> None:
    axes = list(graph.of(node.inputs[0]))
    given = walk.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and given is None:
        graph.stop(node, f"the axes of {node.op_type} {node.name!r} are not constant")
        return
    chosen = walk.ints_attribute(node, "axes") if given is None else given.reshape(-1).tolist()
    if not len(chosen) and walk.int_attribute(node, "noop_with_empty_axes", 0):
        graph.set(node.outputs[0], axes)
        return
    reduced = {int(a) % len(axes) for a in chosen} if len(chosen) and axes else set(range(len(axes)))
    for index in reduced:
        _keep(graph, axes, index, node)
    keeps = walk.int_attribute(node, "keepdims", 1)
    graph.set(node.outputs[0], [labels for i, labels in enumerate(axes) if keeps or i not in reduced])


def _transpose(graph: Graph, node: ir.Node) -> None:
    axes = graph.of(node.inputs[0])
    order = walk.ints_attribute(node, "perm") or tuple(reversed(range(len(axes))))
    graph.set(node.outputs[0], [axes[i] for i in order] if axes else ())


def _sized(shape_port: int) -> Rule:
    """Expand and Resize: channels keep their size, which the size of the output has to follow."""

    def rule(graph: Graph, node: ir.Node) -> None:
        axes = list(graph.of(node.inputs[0]))
        result = node.outputs[0]
        if all(labels is None for labels in axes):
            return
        sizes = node.inputs[shape_port] if len(node.inputs) > shape_port else None
        crops = walk.attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
        computed = sizes is not None and not walk.is_constant(sizes)
        if computed or crops or "axes" in node.attributes or result.shape is None:
            graph.stop(node, f"the size of {node.op_type} {node.name!r} cannot follow")
            return
        more = len(result.shape) - len(axes)
        for index, labels in enumerate(axes):
            if labels is not None and result.shape[more + index] != len(labels):
                _keep(graph, axes, index, node)
        graph.set(result, [*[None] * more, *axes])
        for position, labels in enumerate(axes, start=more):
            if labels is not None and sizes is not None:
                graph.size(node, shape_port, position, labels)

    return rule


def _reshape(graph: Graph, node: ir.Node) -> None:
    reshape(graph, node, 1)


def _flatten(graph: Graph, node: ir.Node) -> None:
    reshape(graph, node)


def _table(names: Sequence[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


RULES: Mapping[str, Rule] = {
    **_table(_UNARY, _unary),
    **_table(_BROADCAST, _broadcast),
    **_table(_POOLS, _pool),
    **_table(_REDUCTIONS, _reduction),
    **_table(("BatchNormalization", "InstanceNormalization"), _normalization),
    **_table(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _softmax),
    **_table(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **_table(("Flatten", "Squeeze", "Unsqueeze"), _flatten),
    **_table(("LSTM", "GRU", "RNN"), layers.cell),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Expand": _sized(1),
    "Resize": _sized(3),
    "Conv": layers.convolution,
    "ConvTranspose": layers.deconvolution,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "Concat": parts.concat,
    "Split": parts.split,
    "Slice": parts.slice_,
    "Gather": parts.gather,
    "Pad": parts.pad,
    "Constant": lambda graph, node: None,
}
