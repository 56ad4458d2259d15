"""The pass `prune-silent`: channels that never change leave the graph, what they add becomes bias."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import DataError, PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir import walk
from ...compiler.ir.stats import count
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context, Effect, PassStats
from ..quantize.bias_correct import add_to_bias, refuse_bias
from .channels_cut import cut, keeping, rename_cut
from .channels_graph import Graph, Mask, Units, Weight, solve
from .channels_rules import propagate
from .channels_select import families

REPORT = "silent.json"
_LAYERS = ("Conv", "Gemm", "MatMul")

Floats = npt.NDArray[np.floating]
Place = tuple[ir.Node, int, int]


@dataclass(frozen=True)
class Spans:
    """Least and largest value of each entry of an axis, over all samples: `[entries]` each."""

    low: Floats
    high: Floats

    def still(self, tolerance: float) -> Mask:
        """Tell which entries change by no more than a share of the axis's whole range."""
        reach = max(float(np.max(self.high)), 0.0) - min(float(np.min(self.low)), 0.0)
        return np.asarray(self.high - self.low <= tolerance * reach)

    @property
    def middle(self) -> Floats:
        """Return what stands for an entry that does not change."""
        return np.asarray((self.low.astype(np.float64) + self.high) / 2)


@dataclass(frozen=True)
class PruneSilent:
    """Remove channels whose values are the same for all calibration samples, as dead neurons' are.

    Lossy, edits the main graph, needs calibration data: with `tolerance` 0, outputs on them are equal up to
    rounding, on others where the channels stay silent too. A channel that is not 0 goes into the biases of
    the layers that read it, unless these pad. On event targets a silent neuron takes memory and a core.
    Works behind `canonicalize` and before `quantize`.

    Attributes:
        tolerance: share of the layer's range that a silent channel may move by.
        samples: calibration samples used at most.
    """

    name: ClassVar[str] = "prune-silent"
    effect: ClassVar[Effect] = Effect.LOSSY

    tolerance: float = 0.0
    samples: int = 1024

    def __post_init__(self) -> None:
        if not (0.0 <= self.tolerance < 1.0 and math.isfinite(self.tolerance)):
            raise PipelineError(
                "silent-option",
                f"prune-silent: tolerance must be at least 0, below 1, got {self.tolerance:g}",
            )
        if self.samples < 1:
            raise PipelineError(
                "silent-option", f"prune-silent: samples must be positive, got {self.samples}"
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place.

        Raises:
            DataError: `calibration-missing`.
        """
        if not ctx.calibration:
            raise DataError(
                "calibration-missing",
                "prune-silent looks for channels that never change, and no calibration data were given",
                "give --calib-data",
            )
        stats = PassStats()
        graph = Graph(model, lambda node: excluded_by(str(node.name), ctx.exclude) is not None)
        propagate(graph)
        units = solve(graph)
        spans = _observe(model, graph, ctx, self.samples)
        gone = _leave_some(graph, units, _silent(graph, units, spans, self.tolerance))
        stats.details = {"channels_cut": 0, "channels": _channels(graph)}
        if not gone.any():
            return stats
        before = count(model)
        stats.attachments[REPORT] = json.dumps(_report(graph, units, gone), indent=1)
        for weight in graph.weights.values():
            _into_bias(model, weight, units, gone, spans)
        left = _channels_lost(graph, units, gone)
        rename_cut(model, cut(graph, keeping(units, gone)))
        stats.changed = left
        stats.details |= {"channels_cut": left, "macs_saved": before.macs - count(model).macs}
        return stats


def _observe(model: ir.Model, graph: Graph, ctx: Context, most: int) -> dict[Place, Spans]:
    """Return the spans of what arrives at the columns of layers."""
    places = [
        place for weight in graph.weights.values() for place in weight.arriving if place[0].op_type in _LAYERS
    ]
    names = list(dict.fromkeys(str(_value(place).name) for place in places))
    outside = {str(value.name) for value in model.graph.inputs}
    inner = [name for name in names if name not in outside]
    assert ctx.calibration is not None, "asked before"
    session = make_session(model, extra_outputs=inner)
    found: dict[Place, Spans] = {}
    samples = ctx.calibration.head(most)
    for done, batch in enumerate(samples.batches(1)):
        ctx.check_cancelled()
        ctx.progress("prune-silent", done, len(samples))
        values = {**batch, **run_session(session, batch)}
        for place in places:
            now = _spans(np.asarray(values[str(_value(place).name)]), place[2])
            old = found.get(place)
            found[place] = now if old is None else Spans(
                np.minimum(old.low, now.low), np.maximum(old.high, now.high)
            )  # fmt: skip
    return found


def _value(place: Place) -> ir.Value:
    value = place[0].inputs[place[1]]
    assert value is not None, place
    return value


def _spans(array: Floats, axis: int) -> Spans:
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return Spans(rows.min(axis=1), rows.max(axis=1))


def _silent(graph: Graph, units: Units, spans: Mapping[Place, Spans], tolerance: float) -> Mask:
    """Return the units that can go: free, read somewhere, and still wherever they are read."""
    read, moving = np.zeros(units.count, np.bool_), np.zeros(units.count, np.bool_)
    for weight in graph.weights.values():
        for axis, labels in enumerate(weight.axes):
            if labels is None or weight.roles[axis] != "column":
                continue
            inside = units.of[labels]
            read[inside] = True
            if not weight.arriving:
                moving[inside] = True
            for place in weight.arriving:
                moving[inside[~_can_go(place, spans, tolerance, len(labels))]] = True
    return np.asarray(units.free & read & ~moving)


def _can_go(place: Place, spans: Mapping[Place, Spans], tolerance: float, size: int) -> Mask:
    """Tell which columns of a layer read what does not change and can be made up for."""
    found = spans.get(place)
    if found is None or len(found.low) != size:
        return np.zeros(size, np.bool_)
    still = found.still(tolerance)
    if refuse_bias(place[0]) is None and not _pads(place[0]):
        return still
    return np.asarray(still & (found.middle == 0))


def _pads(node: ir.Node) -> bool:
    """Tell whether zeros are put around what a layer reads."""
    if node.op_type != "Conv":
        return False
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    return auto.startswith("SAME") or any(pads)


def _leave_some(graph: Graph, units: Units, gone: Mask) -> Mask:
    """Keep one unit of every layer, and all that stand alone."""
    kept = np.zeros(units.count, np.bool_)
    for family in families(graph, units, 1):
        inside = gone[family.units]
        if inside.all():
            inside[0] = False
        kept[family.units[inside]] = True
    return kept


def _into_bias(
    model: ir.Model, weight: Weight, units: Units, gone: Mask, spans: Mapping[Place, Spans]
) -> None:
    """Add to the biases of a layer what its columns that go have added so far."""
    array = walk.constant(weight.value)
    assert array is not None, weight.value
    for axis, labels in enumerate(weight.axes):
        if labels is None or weight.roles[axis] != "column":
            continue
        lost = gone[units.of[labels]]
        for place in weight.arriving if lost.any() else ():
            still = spans[place].middle * lost
            if still.any():
                rows = np.moveaxis(array.astype(np.float64), axis, -1)
                by_row = (rows @ still).reshape(len(rows), -1).sum(axis=1)
                add_to_bias(model, place[0], by_row)


def _rows(graph: Graph) -> Iterator[tuple[ir.Node, npt.NDArray[np.int64]]]:
    yield from ((node, axes[0]) for node, axes in graph.layers.items())


def _channels(graph: Graph) -> int:
    return sum(len(labels) for _, labels in _rows(graph))


def _channels_lost(graph: Graph, units: Units, gone: Mask) -> int:
    return sum(int(gone[units.of[labels]].sum()) for _, labels in _rows(graph))


def _report(graph: Graph, units: Units, gone: Mask) -> list[dict[str, str | int]]:
    """Return a row per layer that loses outputs."""
    rows: list[dict[str, str | int]] = []
    for node, labels in _rows(graph):
        lost = gone[units.of[labels]]
        if lost.any():
            rows.append({"layer": str(node.name), "channels": len(lost), "channels_left": int((~lost).sum())})
    return rows
