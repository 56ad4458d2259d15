"""`range=auto`: the method whose quantized model answers held-out samples with the best output SQNR."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.differences import Sqnr
from ...compiler.ir import walk
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context
from .calibrate import count
from .materialize import apply_plan
from .observers import Method, range_by
from .plan import QuantPlan
from .scales import Range, assign

Array: TypeAlias = npt.NDArray[np.generic]
Batch: TypeAlias = Mapping[str, Array]

# Tried in this order; a later one has to be better by this much, so that noise does not pick it.
_TRIED: tuple[Method, ...] = ("minmax", "moving", "percentile", "mse", "entropy")
_MARGIN_DB = 0.1

_HELD_OUT = 5  # one sample in so many judges the methods
_MAX_HELD_OUT = 64


def split(samples: Samples) -> tuple[Samples, int]:
    """Return the samples that ranges are taken from and how many of the rest judge them.

    With fewer than `_HELD_OUT` samples the same ones do both.
    """
    held = min(len(samples) // _HELD_OUT, _MAX_HELD_OUT)
    return (samples.head(len(samples) - held), held) if held else (samples, len(samples))


def held_out(samples: Samples, limit: int = 16) -> list[Batch]:
    """Return the samples that judge, at most `limit` of the last ones."""
    _, held = split(samples)
    start = len(samples) - min(held, limit)
    return list(itertools.islice(samples.batches(1), start, None))


def choose_method(
    model: ir.Model,
    plan: QuantPlan,
    values: Collection[str],
    shared: Mapping[str, str],
    samples: Samples,
    ctx: Context,
    percentile: float,
) -> tuple[Method, dict[str, Range]]:
    """Return the best method for this model and its ranges; one pass of histograms serves all methods."""
    seen, _ = split(samples)
    wanted = [value for value in walk.values_of(model.graph) if value.name in set(values)]
    histograms = count(model, wanted, seen, ctx)
    specs = {name: decision.spec for name, decision in plan.activations().items()}

    def ranges(method: Method) -> dict[str, Range]:
        return {
            name: range_by(histogram, method, specs[name], percentile)
            for name, histogram in histograms.items()
        }

    judge = Judge(model, held_out(samples, _MAX_HELD_OUT))
    best: tuple[float, Method, dict[str, Range]] | None = None
    for method in _TRIED:
        ctx.check_cancelled()
        found = ranges(method)
        score = judge.sqnr(assign(plan, model.graph, found, shared))
        if best is None or score > best[0] + _MARGIN_DB:
            best = (score, method, found)
    assert best is not None, "at least one method is tried"
    return best[1], best[2]


class Judge:
    """Compares quantized forms of a float model with it, on fixed samples."""

    def __init__(self, model: ir.Model, batches: Sequence[Batch]) -> None:
        self._model = model
        self._batches = batches
        self._outputs = compared_values(model.graph)
        session = make_session(model, extra_outputs=self._outputs)
        self._want = [run_session(session, batch, self._outputs) for batch in batches]

    def sqnr(self, plan: QuantPlan) -> float:
        """Return the SQNR of the planned model's outputs in dB, the lowest among the outputs."""
        draft = self._model.clone()
        apply_plan(draft, plan)
        session = make_session(draft, extra_outputs=self._outputs)
        got = (run_session(session, batch, self._outputs) for batch in self._batches)
        return sqnr_db(self._want, got, self._outputs)


def sqnr_db(want: Sequence[Batch], got: Iterator[Batch], names: Sequence[str]) -> float:
    """Return the SQNR in dB, the lowest among `names`; inf when equal."""
    sums = {name: Sqnr() for name in names}
    for reference, result in zip(want, got, strict=True):
        for name in names:
            sums[name].add(reference[name], result[name])
    return min((total.sqnr_db for total in sums.values()), default=math.inf)


def compared_values(graph: ir.Graph) -> list[str]:
    """Return the float outputs, by the operand of a final Softmax or Sigmoid where there is one.

    Probabilities saturate and hide errors; what goes in does not.
    """
    found: list[str] = []
    for output in graph.outputs:
        maker = output.producer()
        if maker is not None and maker.op_type in ("Softmax", "LogSoftmax", "Sigmoid") and not maker.domain:
            source = maker.inputs[0]
            found.append(str(source.name if source is not None else output.name))
        elif output.dtype is not None and output.dtype.is_floating_point():
            found.append(str(output.name))
    return list(dict.fromkeys(found))
