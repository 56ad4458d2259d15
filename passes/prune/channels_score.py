"""What a unit of channels is worth: from its weights, from what it carries, or from what the outputs lose.

Scores add up over a layer's channels. Most are shares of what the layers have, so that layers of different
scales compare; `taylor` and `refit` are noise-to-signal ratios, of the outputs and of the layers behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.ir import walk
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context
from . import weights as pruning
from .channels_graph import Graph, Labels, Units, Weight
from .channels_refit import MAX_COLUMNS, eliminate
from .channels_select import Family
from .statistics import collect, parents_of, refuse_statistics

Floats = npt.NDArray[np.floating]
Criterion = Literal["auto", "magnitude", "activation", "refit", "taylor", "datafree", "fpgm"]
NEEDS_DATA = frozenset({"activation", "refit", "taylor"})

_TAYLOR_STEP = 0.25
"""Part of a channel that is taken away to see what the outputs do."""
_TAYLOR_RUNS = 4096
"""Inferences at most; fewer samples are used when there are many units."""
_REDUNDANCY_DAMPING = 1e-3


def score(
    graph: Graph, units: Units, groups: Sequence[Family], criterion: Criterion, ctx: Context, *, centred: bool
) -> Floats:
    """Return the worth of every unit, `[units]`, at least 0.

    Args:
        graph: labels.
        units: solved.
        groups: what can go.
        criterion: not `auto`.
        ctx: calibration data where the criterion needs some.
        centred: the mean of what goes is not lost (biases are fitted).
    """
    if criterion == "taylor":
        assert ctx.calibration is not None, "checked before"
        return _taylor(graph, units, groups, ctx.calibration, ctx)
    if criterion == "refit":
        return _refit(graph, units, ctx, centred=centred)
    if criterion == "magnitude":
        found = _sum(units, ((labels, _energies(w, axis)) for w, axis, labels in _axes(graph)))
    elif criterion == "activation":
        found = _sum(units, _carried(graph, ctx, centred=centred))
    else:
        measure = _distances if criterion == "fpgm" else _residuals
        columns = (
            (labels, _energies(w, axis)) for w, axis, labels in _axes(graph) if w.roles[axis] == "column"
        )
        rows = ((labels, measure(w, axis)) for w, axis, labels in _axes(graph) if w.roles[axis] == "row")
        read = _sum(units, columns)
        found = _sum(units, rows) * np.where(read > 0, read, 1.0)
    return _shared(found, groups)


def _shared(scores: Floats, groups: Sequence[Family]) -> Floats:
    """Make scores of a family add up to 1."""
    found = scores.copy()
    for family in groups:
        total = scores[family.units].sum()
        found[family.units] = scores[family.units] / total if total > 0 else 0.0
    return found


def _axes(graph: Graph) -> Iterator[tuple[Weight, int, Labels]]:
    for weight in graph.weights.values():
        for axis, labels in enumerate(weight.axes):
            if labels is not None:
                yield weight, axis, labels


def _sum(units: Units, parts: Iterator[tuple[Labels, Floats]]) -> Floats:
    total = np.zeros(units.count)
    for labels, values in parts:
        mean = max(float(values.mean()), 1e-30)
        total += np.bincount(units.of[labels], values / mean, minlength=units.count)
    return total


def _slices(weight: Weight, axis: int) -> Floats:
    """A weight as `[channels along the axis, everything else]`, float64."""
    array = walk.constant(weight.value)
    assert array is not None, weight.value
    moved: Floats = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    return moved


def _energies(weight: Weight, axis: int) -> Floats:
    energies: Floats = np.square(_slices(weight, axis)).sum(axis=1)
    return energies


def _distances(weight: Weight, axis: int) -> Floats:
    """Sum of distances to all other filters: small near their geometric median (arXiv 1811.00250)."""
    rows = _slices(weight, axis)
    squares = np.square(rows).sum(axis=1)
    gaps = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0)
    distances: Floats = np.square(np.sqrt(gaps).sum(axis=1))
    return distances


def _residuals(weight: Weight, axis: int) -> Floats:
    """Squared error of each filter as the best combination of the others: 1 / diag((V V')^-1)."""
    rows = _slices(weight, axis)
    gram = rows @ rows.T
    damping = _REDUNDANCY_DAMPING * max(float(np.diag(gram).mean()), 1e-30)
    residuals: Floats = 1.0 / np.diag(np.linalg.inv(gram + damping * np.eye(len(gram))))
    return residuals


def _carried(graph: Graph, ctx: Context, *, centred: bool) -> Iterator[tuple[Labels, Floats]]:
    """Energy that each channel adds to the outputs of the layers that read it, on the data."""
    columns, seen = _readers(graph, ctx)
    assert ctx.calibration is not None, "checked before"
    for weight, inputs in collect(graph.model, seen, ctx.calibration, ctx, gram=False):
        labels = columns.pop(weight.value)[1]
        power = inputs.variance if centred else inputs.power
        energies = np.square(weight.matrix()).sum(axis=1) * power
        yield labels, energies.sum(axis=0).reshape(len(labels), -1).sum(axis=1)
    for value, (axis, labels) in columns.items():
        yield labels, _energies(graph.weights[value], axis)


def _readers(graph: Graph, ctx: Context) -> tuple[dict[ir.Value, tuple[int, Labels]], list[pruning.Weight]]:
    """Return the cut columns of each weight, and the weights whose inputs can be observed."""
    columns = {
        weight.value: (axis, labels)
        for weight, axis, labels in _axes(graph)
        if weight.roles[axis] == "column"
    }
    parents = parents_of(graph.model)
    weights = [w for w in pruning.find_weights(graph.model, [], ctx.exclude) if w.value in columns]
    return columns, [w for w in weights if refuse_statistics(w, parents) is None]


def _refit(graph: Graph, units: Units, ctx: Context, *, centred: bool) -> Floats:
    """What the layers behind lose although they are fitted again, summed over them."""
    columns, seen = _readers(graph, ctx)
    assert ctx.calibration is not None, "checked before"
    scores = np.zeros(units.count)
    small = [w for w in seen if w.view.columns <= MAX_COLUMNS]
    for weight, inputs in collect(graph.model, small, ctx.calibration, ctx, gram=True):
        labels = columns.pop(weight.value)[1]
        unit_of = np.where(units.free[units.of[labels]], units.of[labels], -1)
        unit_of = np.repeat(unit_of, weight.view.columns // len(labels))
        for matrix, gram, mean in zip(weight.matrix(), inputs.gram, inputs.mean, strict=True):
            ctx.check_cancelled()
            covariance = gram - np.outer(mean, mean) if centred else gram
            for unit, loss in eliminate(matrix, covariance, unit_of).items():
                scores[unit] += loss / weight.view.groups
    for value, (axis, labels) in columns.items():
        energies = _energies(graph.weights[value], axis)
        shares = energies / max(float(energies.sum()), 1e-30)
        scores += np.bincount(units.of[labels], shares, minlength=units.count)
    return scores


def _taylor(graph: Graph, units: Units, groups: Sequence[Family], samples: Samples, ctx: Context) -> Floats:
    """Noise-to-signal ratio of the outputs per squared part of a unit that is taken away."""
    probe, masks = _masked(graph)
    wanted = _observed(probe)
    session = make_session(probe, extra_outputs=wanted)
    scores = np.zeros(units.count)
    numbers = np.concatenate([family.units for family in groups]) if groups else np.zeros(0, np.int64)
    few = samples.head(max(1, min(16, _TAYLOR_RUNS // max(len(numbers), 1))))
    full = {name: np.ones(shape, dtype) for name, (_, shape, dtype) in masks.items()}
    for done, batch in enumerate(few.batches(1), start=1):
        want = run_session(session, {**batch, **full}, wanted)
        for unit in numbers:
            ctx.check_cancelled()
            less = {
                name: (1 - _TAYLOR_STEP * (units.of[labels] == unit)).astype(dtype).reshape(shape)
                for name, (labels, shape, dtype) in masks.items()
                if np.any(units.of[labels] == unit)
            }
            scores[unit] += (
                _noise(want, run_session(session, {**batch, **full, **less}, wanted)) / _TAYLOR_STEP**2
            )
        ctx.progress("channels", done, len(few))
    return scores


def _observed(probe: ir.Model) -> list[str]:
    """Names of the outputs, or of what comes before: probabilities hide what scores lose."""
    names: dict[str, None] = {}
    for output in probe.graph.outputs:
        maker = output.producer()
        squashed = maker is not None and maker.op_type in ("Softmax", "LogSoftmax", "Sigmoid")
        value = maker.inputs[0] if maker is not None and squashed else output
        names[str(value.name if value is not None else output.name)] = None
    return list(names)


def _noise(want: dict[str, npt.NDArray[np.generic]], got: dict[str, npt.NDArray[np.generic]]) -> float:
    """Sum of the outputs' noise-to-signal ratios."""
    total = 0.0
    for name, array in want.items():
        if array.dtype.kind == "f":
            a, b = array.astype(np.float64), got[name].astype(np.float64)
            total += float(np.square(a - b).sum() / max(np.square(a).sum(), 1e-30))
    return total


Masks = dict[str, tuple[Labels, tuple[int, ...], np.dtype[np.generic]]]


def _masked(graph: Graph) -> tuple[ir.Model, Masks]:
    """Return a copy that multiplies what layers read by further inputs, one factor per channel."""
    probe = graph.model.clone()
    twins = dict(zip(walk.all_nodes(graph.model), walk.all_nodes(probe), strict=True))
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    masks: Masks = {}
    for weight in graph.weights.values():
        for node, port, axis in weight.arriving:
            value = node.inputs[port]
            assert value is not None, node
            labels = graph.axis(value, axis)
            assert labels is not None, value
            if (value, axis) not in made:
                made[value, axis] = _mask(probe, twins[node], port, (axis, labels), masks)
            twins[node].replace_input_with(port, made[value, axis])
    return probe, masks


def _mask(probe: ir.Model, node: ir.Node, port: int, place: tuple[int, Labels], masks: Masks) -> ir.Value:
    axis, labels = place
    value = node.inputs[port]
    assert value is not None, node
    assert value.shape is not None, value
    shape = (len(labels), *[1] * (len(value.shape) - 1 - axis % len(value.shape)))
    name = walk.unique_name(probe, f"{value.name}_mask")
    mask = ir.Value(name=name, type=value.type, shape=ir.Shape(list(shape)))
    probe.graph.inputs.append(mask)
    product = ir.node("Mul", [value, mask], name=walk.unique_name(probe, f"{value.name}_masked"))
    product.outputs[0].name, product.outputs[0].type = f"{product.name}_value", value.type
    product.outputs[0].shape = value.shape.copy()
    probe.graph.insert_before(node, product)
    assert value.dtype is not None, value
    masks[name] = labels, shape, value.dtype.numpy()
    return product.outputs[0]
