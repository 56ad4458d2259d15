"""Bias correction: quantized weights shift the mean of a layer's output; its bias takes the shift back.

* `expected_shift`: analytic, `E[dy] = dW E[x]` per output channel (Nagel et al. 2019, arXiv 1906.04721
  eq. 17). Exact for the layer's own error, one pass over the data for all layers.
* `correct_biases`: empirical, on a finished quantized graph. Compares channel means with the float model's,
  so the errors of activations and of all layers before are in it too. Layers are corrected in order of
  depth, each depth with one pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import quant, walk
from ...compiler.ops.constants import constant_expression
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context, PassStats, Refusal
from .moments import Floats, Layer

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_INT32 = np.iinfo(np.int32)


def expected_shift(layer: Layer, delta: Floats, mean: Floats) -> Floats:
    """Mean output error `[out]` that the weight error `delta` causes.

    Args:
        layer: where.
        delta: quantized minus float weight, in the weight's layout.
        mean: `E[x]` of the input patches, `[groups, k]`.
    """
    matrix = layer.to_matrix(delta).astype(np.float64)
    shift: Floats = np.einsum("grk,gk->gr", matrix.reshape(layer.groups, -1, layer.columns), mean)
    return shift.reshape(-1)


def refuse_bias(node: ir.Node) -> str | None:
    """Say why a layer has no bias that could take a shift, or None; an absent one can be added."""
    if node.op_type not in _LAYERS:
        return f"{node.op_type} has no bias"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not walk.is_constant(bias):
        return f"bias {bias.name!r} is not constant"
    return None


def add_to_bias(model: ir.Model, node: ir.Node, change: Floats) -> None:
    """Add `change` `[out]` to the float bias of a Conv, ConvTranspose or Gemm, making one if need be."""
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = walk.constant(old)
    assert old is None or bias is not None, f"{node.name}: refuse_bias was not asked"
    new = (change if bias is None else bias.astype(np.float64) + change).astype(np.float32)
    assert isinstance(node.graph, ir.Graph), node
    base = f"{node.outputs[0].name}_bias" if old is None else str(old.name)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        # The changed bias keeps its name; a bias shared with other nodes stays for them.
        walk.rename(old, walk.unique_name(model, f"{base}_replaced"))
    else:
        base = walk.unique_name(model, base)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, walk.add_initializer(node.graph, base, new))
    if old is not None:
        _drop(old)


def _drop(value: ir.Value) -> None:
    """Remove a constant that is not read any more, be it an initializer or a node."""
    maker = value.producer()
    if maker is not None:
        walk.remove_if_dead(maker)
    else:
        walk.drop_unused_initializer(value)


@dataclass(frozen=True)
class _Target:
    """A layer of the quantized graph whose bias can be changed.

    Attributes:
        node: in the quantized graph.
        stored: what holds the numbers, the bias itself or the int32 tensor behind its DequantizeLinear.
        holder: the node that reads `stored`.
        index: and as which operand.
        unit: `[out]` value of one integer step; None for a float bias.
        depth: layers before it on the longest way from the inputs.
    """

    node: ir.Node
    stored: ir.Value
    holder: ir.Node
    index: int
    unit: Floats | None
    depth: int


def correct_biases(original: ir.Model, quantized: ir.Model, samples: Samples, ctx: Context) -> PassStats:
    """Correct the biases of `quantized` in place so that channel means are those of `original`.

    Layers are matched by node name. Means are reduced in the graph, so memory is flat.

    Args:
        original: float model.
        quantized: the same model after quantization; int32 biases are corrected to half a step.
        samples: calibration inputs.
        ctx: progress and cancellation.
    """
    stats = PassStats()
    counterparts = {node.name: node for node in original.graph}
    targets = [t for t in _targets(quantized, stats.refused) if _matches(t, counterparts, stats.refused)]
    outputs = {t.node.name: str(counterparts[t.node.name].outputs[0].name) for t in targets}
    wanted = channel_means(original, list(outputs.values()), samples, ctx)
    largest = 0.0
    for depth in sorted({t.depth for t in targets}):
        level = [t for t in targets if t.depth == depth]
        means = channel_means(quantized, [str(t.node.outputs[0].name) for t in level], samples, ctx)
        for target in level:
            shift = means[str(target.node.outputs[0].name)] - wanted[outputs[target.node.name]]
            largest = max(largest, float(np.abs(shift).max(initial=0.0)))
            stats.changed += _shift_stored(quantized, target, shift)
    stats.details |= {"biases_corrected": stats.changed, "largest_shift": largest}
    return stats


def _targets(model: ir.Model, refused: list[Refusal]) -> list[_Target]:
    found: list[_Target] = []
    depths: dict[ir.Value, int] = {}
    for node in model.graph:
        depth = max((depths.get(v, 0) for v in node.inputs if v is not None), default=0)
        is_layer = node.op_type in _LAYERS and not node.domain
        target = _target(node, depth) if is_layer else None
        if isinstance(target, _Target):
            found.append(target)
            depth += 1
        elif target is not None:
            refused.append(Refusal(str(node.name), target))
        for output in node.outputs:
            depths[output] = depth
    return found


def _target(node: ir.Node, depth: int) -> _Target | str:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return "no bias"
    if walk.is_constant(bias) and bias.dtype == ir.DataType.FLOAT:
        return _Target(node, bias, node, 2, None, depth)
    maker = walk.producer(bias, "DequantizeLinear")
    params = quant.view(bias)
    if maker is None or params is None or constant_expression(maker.inputs[0]) is None:
        return f"bias {bias.name!r} is not constant"
    stored = maker.inputs[0]
    assert stored is not None, maker
    return _Target(node, stored, maker, 0, np.asarray(params.scale, np.float64), depth)


def _matches(target: _Target, counterparts: Mapping[str | None, ir.Node], refused: list[Refusal]) -> bool:
    other = counterparts.get(target.node.name)
    if other is None or other.op_type != target.node.op_type:
        refused.append(Refusal(str(target.node.name), "no such layer in the float model"))
        return False
    channel = 1 if other.op_type.startswith("Conv") else -1
    shapes = [node.outputs[0].shape for node in (other, target.node)]
    sizes = [None if shape is None else shape[channel] for shape in shapes]
    if sizes[0] != sizes[1]:
        refused.append(
            Refusal(str(target.node.name), f"the float model has {sizes[0]} channels, not {sizes[1]}")
        )
        return False
    return True


def _shift_stored(model: ir.Model, target: _Target, shift: Floats) -> int:
    """Subtract `shift` from the stored bias; 1 when that changed a number."""
    old = walk.constant(target.stored)
    assert old is not None, target
    if target.unit is None:
        new = (old.astype(np.float64) - shift).astype(old.dtype)
    else:
        steps = np.rint(shift / target.unit)
        new = np.clip(old.astype(np.int64) - steps, _INT32.min, _INT32.max).astype(old.dtype)
    if np.array_equal(new, old):
        return 0
    graph = target.node.graph
    assert isinstance(graph, ir.Graph), target
    value = walk.add_initializer(graph, walk.unique_name(model, f"{target.stored.name}_corrected"), new)
    target.holder.replace_input_with(target.index, value)
    _drop(target.stored)
    return 1


def channel_means(
    model: ir.Model, values: Sequence[str], samples: Samples, ctx: Context
) -> dict[str, Floats]:
    """Mean per channel of layer outputs over samples and positions, reduced in the graph.

    Args:
        model: not edited.
        values: names of outputs of Conv, ConvTranspose (channels on axis 1), Gemm or MatMul (last axis).
        samples: read once.
        ctx: progress and cancellation.

    Returns:
        Value name -> `[channels]` float64.
    """
    sums: dict[str, Floats] = {name: np.zeros(()) for name in values}
    for results in _reduced(model, values, "ReduceMean", samples, ctx):
        sums = {name: total + results[name] for name, total in sums.items()}
    return {name: total / max(len(samples), 1) for name, total in sums.items()}


def channel_minima(
    model: ir.Model, values: Sequence[str], samples: Samples, ctx: Context
) -> dict[str, Floats]:
    """Return the smallest value per channel; arguments as for `channel_means`."""
    lows: dict[str, Floats] = {name: np.full((), np.inf) for name in values}
    for results in _reduced(model, values, "ReduceMin", samples, ctx):
        lows = {name: np.minimum(low, results[name]) for name, low in lows.items()}
    return lows


def _reduced(
    model: ir.Model, values: Sequence[str], op: str, samples: Samples, ctx: Context
) -> Iterator[dict[str, Floats]]:
    """Yield for each sample the values reduced to `[channels]` in the graph."""
    if not values:
        return
    probe, names = _with_reductions(model, values, op)
    session = make_session(probe)
    for done, batch in enumerate(samples.batches(1), start=1):
        ctx.check_cancelled()
        results = run_session(session, batch, list(names.values()))
        yield {name: results[output].astype(np.float64) for name, output in names.items()}
        ctx.progress("channels", done, len(samples))


def _with_reductions(model: ir.Model, values: Sequence[str], op: str) -> tuple[ir.Model, dict[str, str]]:
    probe = model.clone()
    graph = probe.graph
    by_name = {value.name: value for value in walk.values_of(graph)}
    graph.outputs.clear()
    names: dict[str, str] = {}
    for value in values:
        source = by_name[value]
        names[value] = walk.unique_name(graph, f"{value}_reduced")
        axes = walk.add_initializer(graph, walk.unique_name(graph, f"{value}_axes"), _other_axes(source))
        node = ir.node(op, [source, axes], {"keepdims": 0}, name=names[value])
        node.outputs[0].name, node.outputs[0].type = names[value], source.type
        node.outputs[0].shape = ir.Shape([None])
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return probe, names


def _other_axes(value: ir.Value) -> npt.NDArray[np.int64]:
    assert value.shape is not None, f"{value.name}: shapes are inferred before passes run"
    maker = value.producer()
    dense = maker is not None and maker.op_type in ("Gemm", "MatMul")
    channels = value.shape.rank() - 1 if dense else 1
    return np.array([axis for axis in range(value.shape.rank()) if axis != channels], np.int64)
