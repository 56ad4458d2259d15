"""What each method does to each layer, one layer at a time: error, size, work and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...passes.quantize.quantize import name_nodes
from ..backend import Array, Arrays
from ..data import Samples
from ..differences import Sqnr
from ..errors import DataError, ParedError
from ..exclusion import excluded_by
from ..ir.stats import count
from ..ir.walk import constant, constant_tensor
from ..manager import Manager
from ..ort import make_session, run_session
from ..pass_api import Context, Pass
from ..pipeline import parse_pipeline
from ..records import Metric
from ..registry import MACROS, PASSES
from ..verify.figures import compare_metric
from .layer_time import LayerTimes, layer_times

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
METHODS = (
    "quantize{bits=8}",
    "quantize{bits=4}",
    "prune{sparsity=0.5}",
    "prune{sparsity=0.8}",
    "lowrank{energy=0.9}",
)

Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Effect:
    """One method on one layer, all others left as they are.

    Attributes:
        layer, op: of the ONNX node.
        method: pipeline text.
        reason: why the method leaves the layer alone; the other figures are then None.
        sqnr_db: of the model's outputs on the samples.
        drop: of the metric on labelled data, in `SensitivityReport.unit`; None without labels.
        bytes_before, bytes_after: weights packed at their widths, zeros counted, in bytes.
        nonzero: share of the layer's weights that is left: nonzeros after over weights before.
        macs_before, macs_after: of the layer, zero weights counted.
        time_ratio: predicted time over that of the float layer (estimated), and measured where asked.
    """

    layer: str
    op: str
    method: str
    reason: str = ""
    sqnr_db: float | None = None
    drop: float | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    nonzero: float | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    predicted: Metric | None = None
    measured: Metric | None = None


@dataclass(frozen=True)
class SensitivityReport:
    """All effects, layer by layer; `samples` were run, `metric` is empty without labelled data."""

    model: str
    methods: tuple[str, ...]
    samples: int
    metric: str
    unit: str
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Probe:
    """How effects are judged.

    Attributes:
        samples: inputs for the SQNR.
        labelled: for the metric, or None.
        metric: its name; None chooses.
        timed: measure every layer by itself too.
    """

    samples: Samples
    labelled: Samples | None = None
    metric: str | None = None
    timed: bool = False


def analyse(
    model: ir.Model, name: str, methods: Sequence[str], probe: Probe, ctx: Context
) -> SensitivityReport:
    """Apply every method to every layer of a canonicalized float model, which is not edited.

    Raises:
        PipelineError: a method is no pipeline text.
        DataError: no layer with weights of its own, or labels do not fit.
    """
    model = model.clone()
    name_nodes(model.graph)
    layers = [node for node in model.graph if _has_weights(node)]
    wanted = [node for node in layers if not excluded_by(node.name or "", ctx.exclude)]
    if not wanted:
        raise DataError("no-layers", f"{name}: no Conv, Gemm, MatMul or recurrent cell with constant weights")
    parsed = {text: parse_pipeline(text, PASSES, MACROS) for text in methods}
    judge = _Judge(model, probe)
    effects: list[Effect] = []
    for node in wanted:
        others = tuple(str(other.name) for other in layers if other is not node)
        alone = dataclasses.replace(ctx, exclude=others, progress=_silent)
        for text, passes in parsed.items():
            ctx.check_cancelled()
            effects.append(_effect(judge, node, text, passes, alone))
            ctx.progress("layers", len(effects), len(wanted) * len(parsed))
    return SensitivityReport(
        name, tuple(methods), len(probe.samples), judge.metric, judge.unit, tuple(effects)
    )


def _silent(label: str, done: int, total: int) -> None:
    """Take the progress of one of many small runs, which nobody wants to see."""


def _has_weights(node: ir.Node) -> bool:
    if node.domain or node.op_type not in LAYERS or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    return weight is not None and constant_tensor(weight) is not None


def _effect(judge: _Judge, node: ir.Node, text: str, passes: Sequence[Pass], ctx: Context) -> Effect:
    start = Effect(str(node.name), node.op_type, text)
    try:
        result = Manager().run(judge.model, passes, ctx)
    except ParedError as error:
        return dataclasses.replace(start, reason=error.message)
    if not any(record.stats.changed for record in result.records):
        return dataclasses.replace(start, reason=_reason(node, result.records))
    after = result.model
    before_counts, after_counts = judge.counts, count(after)
    weights = _weights_of(node)
    times = judge.times(node, after)
    return dataclasses.replace(
        start,
        sqnr_db=judge.sqnr(after),
        drop=judge.drop(after),
        bytes_before=times.bytes_before,
        bytes_after=times.bytes_after,
        nonzero=_nonzero_share(weights, judge.model, after),
        macs_before=times.macs,
        macs_after=times.macs + after_counts.macs - before_counts.macs,
        predicted=times.predicted,
        measured=times.measured,
    )


def _reason(node: ir.Node, records: Sequence[object]) -> str:
    from ..manager import PassRecord

    refusals = [
        refusal
        for record in records
        if isinstance(record, PassRecord)
        for refusal in record.stats.refused
        if str(node.name) in refusal.node
    ]
    return refusals[0].reason if refusals else "nothing to change"


def _weights_of(node: ir.Node) -> list[Array]:
    arrays = [constant(value) for value in node.inputs[1:3]]
    return [array for array in arrays if array is not None and array.ndim > 1]


def _nonzero_share(weights: Sequence[Array], before: ir.Model, after: ir.Model) -> float:
    """Return nonzeros of the constants that are new, over the layer's own weights."""
    old = {id(value.const_value) for value in before.graph.initializers.values()}
    made = [
        constant(value)
        for value in after.graph.initializers.values()
        if id(value.const_value) not in old and value.shape is not None and len(value.shape) > 1
    ]
    size = sum(weight.size for weight in weights)
    left = sum(int(np.count_nonzero(array)) for array in made if array is not None)
    return left / size if size and made else 1.0


class _Judge:
    """The float model's outputs, known once, and what others are worth beside them."""

    def __init__(self, model: ir.Model, probe: Probe) -> None:
        self.model, self.counts = model, count(model)
        self.metric, self.unit = "", ""
        self._probe = probe
        self._batches = list(probe.samples.batches(1))
        self._run = _runner(model)
        self._want = [self._run(batch) for batch in self._batches]
        if probe.labelled is not None:
            found = compare_metric(probe.metric, self._run, self._run, probe.labelled)
            self.metric, self.unit = found.metric, found.unit

    def sqnr(self, model: ir.Model) -> float:
        """Return the SQNR of all float outputs together, in dB."""
        run, total = _runner(model), Sqnr()
        for batch, want in zip(self._batches, self._want, strict=True):
            got = run(batch)
            for name in (name for name, array in want.items() if array.dtype.kind == "f"):
                total.add(want[name], got[name])
        return total.sqnr_db

    def drop(self, model: ir.Model) -> float | None:
        """Return what the metric loses, None without labelled data."""
        if self._probe.labelled is None:
            return None
        return compare_metric(self.metric, self._run, _runner(model), self._probe.labelled).drop

    def times(self, node: ir.Node, after: ir.Model) -> LayerTimes:
        """Return the layer's work and time before and after."""
        return layer_times(self.model, after, node, self._batches[0], self._probe.timed)


def _runner(model: ir.Model) -> Callable[[Arrays], dict[str, Array]]:
    session = make_session(model)
    return lambda inputs: run_session(session, inputs)


def by_layer(report: SensitivityReport) -> Iterator[tuple[str, list[Effect]]]:
    """Yield layers in graph order with their effects in the order of the methods."""
    names = dict.fromkeys(effect.layer for effect in report.effects)
    for name in names:
        yield name, [effect for effect in report.effects if effect.layer == name]
