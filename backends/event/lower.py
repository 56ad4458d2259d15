"""Compile time: from a model to a payload, with what is exact stated and checked on calibration data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...compiler.backend import Array, Payload
from ...compiler.errors import ModelError
from ...compiler.ir.compact import compact
from ...compiler.ir.export import to_bytes
from ...compiler.ops import expand_custom_ops
from .build import LIBRARY, build, features_of
from .graph import EventGraph, Integers, Layer
from .ledger import ledger
from .modes import check_mode
from .pack import FILE, pack
from .read import read
from .simulate import Counts, accumulate, graded

if TYPE_CHECKING:
    from ...compiler.pass_api import Context
    from ...compiler.target import Target

REPORT = "events.json"
_NAMES = "names.json"
_CHECKED_SAMPLES = 32


def lower(model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
    """Lower a quantized model; `model` is not edited.

    The attachment `events.json` lists the layers: exactness, accumulator bits, activity on calibration data.
    The graph goes along as `model.onnx`, which layers are verified against.
    """
    graph = read(model)
    if engine != "graded":
        check_mode(graph, engine)
    seen = _observe(graph, ctx)
    plain = model.clone()
    if expand_custom_ops(plain):
        RemoveUnusedNodesPass()(plain)
    names = json.dumps(compact(plain), indent=0) + "\n"
    report = json.dumps(describe(graph, seen, target), indent=1) + "\n"
    files = {FILE: pack(graph), "model.onnx": to_bytes(plain)}
    features = features_of(target)
    native = engine == "graded"
    library = build(features) if native else None
    slow = (
        () if library is not None or not native else ("no C compiler is here: NumPy runs the layers, slowly",)
    )
    if library is not None:
        files[LIBRARY] = library
    options = {"features": " ".join(features)}
    return Payload(engine, files, options, {_NAMES: names, REPORT: report}, notes=(*notes(graph), *slow))


def _observe(graph: EventGraph, ctx: Context) -> Counts | None:
    """Run calibration samples and check the count invariant of every layer on them."""
    if ctx.calibration is None:
        return None
    few = ctx.calibration.head(_CHECKED_SAMPLES)
    batches = list(few.batches(1))
    inputs: Mapping[str, Array] = {
        entry.name: np.concatenate([np.asarray(batch[entry.name]) for batch in batches])
        for entry in graph.inputs
    }
    counts = graded(graph, inputs)
    for layer in graph.layers:
        check_invariant(graph, layer, counts)
    return counts


def check_invariant(graph: EventGraph, layer: Layer, counts: Counts) -> None:
    """Check that each neuron's accumulator lies between the thresholds around its count, and in its bounds.

    Raises:
        ModelError: `event-invariant`, naming the layer.
    """
    total = accumulate(graph, layer, counts)
    if total.size and not layer.bounds[0] <= total.min() <= total.max() <= layer.bounds[1]:
        _broken(layer, f"accumulators {total.min()} to {total.max()} leave the bounds {layer.bounds}")
    if layer.ladder is None:
        return
    found = counts[layer.name]
    below, above = threshold_at(layer, found), threshold_at(layer, found + 1)
    wrong = int(np.count_nonzero((total < below) | (total >= above)))
    if wrong:
        _broken(layer, f"{wrong} counts are not those of their accumulators")


def _broken(layer: Layer, what: str) -> None:
    raise ModelError(
        "event-invariant", f"event layer {layer.name!r}: {what}", "report it with the model; use target cpu"
    )


def threshold_at(layer: Layer, counts: Integers) -> Integers:
    """Return the accumulator from which on neurons have these counts [samples, channels, ...]."""
    ladder = layer.ladder
    assert ladder is not None, "a readout has no thresholds"
    rows = np.broadcast_to(ladder.thresholds, (layer.channels, ladder.thresholds.shape[1]))
    edge = np.full((layer.channels, 1), np.iinfo(np.int64).max)
    ends = np.concatenate([-edge, rows, edge], axis=1)
    channel = np.arange(layer.channels).reshape(1, -1, *[1] * (counts.ndim - 2))
    return np.asarray(ends[channel, counts - ladder.low])


def notes(graph: EventGraph) -> tuple[str, ...]:
    """Say where the model's own float arithmetic could decide otherwise."""
    open_ = [layer for layer in graph.layers if layer.ladder is not None and layer.ladder.ties]
    if not open_:
        return ()
    count = sum(layer.ladder.ties for layer in open_ if layer.ladder is not None)
    return (
        f"{count} thresholds of {len(open_)} layers lie so near a reachable accumulator that float rounding "
        "of the model as written could decide otherwise there; all other counts are equal for every input "
        "(pass short-scales behind quantize leaves none open)",
    )


def describe(graph: EventGraph, seen: Counts | None, target: Target) -> dict[str, object]:
    """Return the report: one entry per layer; with calibration data, operations and modelled energy."""
    report: dict[str, object] = {"layers": [_entry(layer, seen) for layer in graph.layers]}
    if seen is not None:
        report["ledger"] = ledger(graph, seen, target.energy)
    return report


def _entry(layer: Layer, seen: Counts | None) -> dict[str, object]:
    ladder = layer.ladder
    entry: dict[str, object] = {
        "name": layer.name,
        "shape": list(layer.shape),
        "covers": list(layer.covers),
        "accumulator_bits": layer.accumulator_bits,
        "counts": None if ladder is None else [ladder.low, ladder.high],
        "exact": ladder is None or not ladder.ties,
        "open_thresholds": 0 if ladder is None else ladder.ties,
    }
    if seen is not None and ladder is not None:
        entry["activity"] = float(np.count_nonzero(seen[layer.name]) / seen[layer.name].size)
    return entry
