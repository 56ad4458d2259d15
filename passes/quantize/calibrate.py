"""Ranges of activations, streamed through the float model: reductions in the graph, or histograms.

The float model runs in onnxruntime with all its optimisations. Extremes come from ReduceMin/ReduceMax nodes
that are added to a copy of the graph, only for values whose range cannot be derived; histogram methods
fetch a bounded amount of activations per run and count them at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError
from ...compiler.ir import walk
from ...compiler.ir.quant import QuantSpec
from ...compiler.pass_api import Context
from .observers import Extremes, Histogram, Method, range_by
from .probe import Probe
from .scales import Range

Floats: TypeAlias = npt.NDArray[np.floating]

# What histogram methods fetch per run at most (more only when a single value is larger).
FETCH_BYTES = 64 << 20
_BATCH = 8

_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Sqrt", "HardSigmoid", "ReduceL2"})


def observe(
    model: ir.Model,
    values: Collection[str],
    samples: Samples,
    method: Method,
    *,
    spec: QuantSpec,
    percentile: float = 99.999,
    ctx: Context,
) -> dict[str, Range]:
    """Return the range of each value over the samples.

    Args:
        model: float model; not edited.
        values: names of values of the main graph.
        samples: calibration inputs, read once per group of values that fits `FETCH_BYTES`.
        method: how a range follows from what was seen.
        spec: integer format that `entropy` and `mse` optimise for.
        percentile: for `percentile`, in %.
        ctx: progress and cancellation.

    Raises:
        DataError: no samples, or an activation is not finite.
    """
    if len(samples) == 0:
        raise DataError("calibration-empty", "there are no calibration samples", "give at least one")
    wanted = [v for v in walk.values_of(model.graph) if v.name in set(values)]
    if not wanted:
        return {}
    if method in ("minmax", "moving"):
        seen = extremes(model, wanted, samples, ctx, per_sample=method == "moving")
        return {name: e.mean_range() if method == "moving" else e.range() for name, e in seen.items()}
    histograms = count(model, wanted, samples, ctx)
    return {name: range_by(h, method, spec, percentile) for name, h in histograms.items()}


def extremes(
    model: ir.Model, values: Sequence[ir.Value], samples: Samples, ctx: Context, *, per_sample: bool = False
) -> dict[str, Extremes]:
    """Return the extremes of values, reduced inside the graph; one run per sample or batch."""
    probe, names = _with_reductions(model, values)
    session = Probe(probe, ())
    found = {str(value.name): Extremes() for value in values}
    outputs = [name for pair in names.values() for name in pair if name]
    for batch in _batches(samples, 1 if per_sample else _BATCH, ctx):
        results = session.run(batch, outputs)
        for name, (low, high) in names.items():
            bounds = _finite(name, results[low] if low else 0.0, results[high])
            found[name].update(*bounds)
    return found


def _batches(samples: Samples, size: int, ctx: Context) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    size = size if samples.batchable else 1
    done = 0
    for batch in samples.batches(size):
        ctx.check_cancelled()
        yield batch
        done = min(done + size, len(samples))
        ctx.progress("calibrate", done, len(samples))


def _finite(name: str, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[float, float]:
    bounds = float(np.min(low)), float(np.max(high))
    if not np.isfinite(bounds).all():
        raise DataError(
            "calibration-not-finite",
            f"value {name!r} reaches {bounds[0]:g}..{bounds[1]:g} on the calibration samples",
            "check the scaling of the inputs, or exclude the layers around it",
        )
    return bounds


def _with_reductions(
    model: ir.Model, values: Sequence[ir.Value]
) -> tuple[ir.Model, dict[str, tuple[str, str]]]:
    """Return a copy whose outputs are the extremes of `values`, and value -> (low, high) output names.

    The low name is empty where the value cannot be negative.
    """
    probe = model.clone()
    graph = probe.graph
    by_name = {value.name: value for value in walk.values_of(graph)}
    graph.outputs.clear()
    names: dict[str, tuple[str, str]] = {}
    for value in values:
        source = by_name[value.name]
        low = "" if _is_non_negative(source) else _reduce(graph, source, "ReduceMin")
        names[str(value.name)] = (low, _reduce(graph, source, "ReduceMax"))
    return probe, names


def _is_non_negative(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "Clip":
        low = walk.scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and low >= 0
    return node.op_type in _NON_NEGATIVE


def _reduce(graph: ir.Graph, value: ir.Value, op: str) -> str:
    name = walk.unique_name(graph, f"{value.name}_{'low' if op == 'ReduceMin' else 'high'}")
    node = ir.node(op, [value], {"keepdims": 0}, name=name)
    result = node.outputs[0]
    result.name, result.type, result.shape = name, value.type, ir.Shape(())
    maker = value.producer()
    # Right behind its maker, so that the activation need not live until the end of the run.
    if maker is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(maker, node)
    graph.outputs.append(result)
    return name


def count(
    model: ir.Model, values: Sequence[ir.Value], samples: Samples, ctx: Context
) -> dict[str, Histogram]:
    """Return histograms of values; a run fetches at most `FETCH_BYTES` of them."""
    session = Probe(model, [str(value.name) for value in values])
    found = {str(value.name): Histogram() for value in values}
    for batch in _batches(samples, 1, ctx):
        for group in groups_of(values):
            for name, array in session.run(batch, group).items():
                flat = np.asarray(array, np.float32)
                _finite(name, flat.min(initial=0.0), flat.max(initial=0.0))
                found[name].update(flat)
    return found


def groups_of(values: Sequence[ir.Value]) -> Iterator[list[str]]:
    """Yield names of values that are fetched together; an unknown size counts as 1 MiB."""
    group: list[str] = []
    held = 0
    for value in values:
        shape = walk.static_shape(value)
        size = 4 * int(np.prod(shape)) if shape is not None else 1 << 20
        if group and held + size > FETCH_BYTES:
            yield group
            group, held = [], 0
        group.append(str(value.name))
        held += size
    if group:
        yield group
