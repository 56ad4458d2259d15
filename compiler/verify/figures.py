"""Runs the float original and the artifact over the same samples and compares a figure of merit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..backend import Array, Arrays
from ..data import Samples
from ..errors import DataError
from .metrics import Figure, default_metric, main_output, make_metric
from .records import MetricResult

Run = Callable[[Arrays], Arrays]
Progress = Callable[[str, int, int], None]
_BATCH = 16
# Without labels the outputs of the original are the targets; only these figures make sense then.
_WITHOUT_LABELS = ("mse", "cosine")


def compare_metric(
    metric: str | None, reference: Run | None, run: Run, samples: Samples, *, progress: Progress | None = None
) -> MetricResult:
    """Evaluate `metric` for both on `samples` in one pass over them.

    Args:
        metric: a built-in name or an entry point; None chooses by labels and outputs.
        reference: the float original; None when it is not at hand.
        run: the artifact.
        samples: labelled, or not for `mse` and `cosine` (against the original's outputs).
        progress: called as `progress("metric", samples done, samples in all)`.

    Raises:
        DataError: `metric-labels`; labels are missing or do not fit the outputs.
        PipelineError: unknown metric.
    """
    makers: Callable[[], Figure] | None = None
    theirs: Figure | None = None
    for done, (inputs, labels) in enumerate(_labelled(samples), start=1):
        got = run(inputs)
        want = reference(inputs) if reference is not None else None
        targets = labels if labels is not None else _targets(metric, want)
        if makers is None:
            metric = metric or default_metric(main_output(got), targets)
            makers = make_metric(metric)
            mine, theirs = makers(), makers() if want is not None else None
        mine.add(got, targets)
        if theirs is not None and want is not None:
            theirs.add(want, targets)
        if progress is not None:
            progress("metric", min(done * _step(samples), len(samples)), len(samples))
    assert metric is not None, "samples are never empty"
    return _result(metric, mine, theirs, len(samples))


def _step(samples: Samples) -> int:
    return _BATCH if samples.batchable else 1


def _labelled(samples: Samples) -> Iterator[tuple[dict[str, Array], Array | None]]:
    """Yield batches with their labels; a fixed batch of b rows has b labels."""
    size = _step(samples)
    at = 0
    per_sample = 0 if samples.labels is None else len(samples.labels) // len(samples)
    for index, inputs in enumerate(samples.batches(size)):
        count = min(size, len(samples) - index * size) * per_sample
        yield inputs, None if samples.labels is None else samples.labels[at : at + count]
        at += count


def _targets(metric: str | None, want: Arrays | None) -> Array:
    if metric not in _WITHOUT_LABELS or want is None:
        raise DataError(
            "metric-labels",
            f"metric {metric!r} needs labels, and the data have none",
            f"add an array `labels`, or choose {' or '.join(_WITHOUT_LABELS)} against the float original",
        )
    return main_output(want)


def _result(metric: str, mine: Figure, theirs: Figure | None, samples: int) -> MetricResult:
    got = mine.value()
    if theirs is None:
        note = "the float original is not at hand, so there is no drop"
        return MetricResult(metric, None, got, None, mine.unit, samples, None, note)
    want = theirs.value()
    drop = want - got if mine.higher_is_better else got - want
    error = theirs.error_of_difference(mine)
    return MetricResult(
        metric, want, got, drop, mine.unit, samples, error, _trust(drop, error, samples, mine.unit)
    )


def _trust(drop: float, error: float | None, samples: int, unit: str) -> str:
    if error is None:
        return f"{samples} samples; the standard error of this metric is not known"
    if drop == error == 0:
        return f"{samples} samples, every one scored alike"
    verdict = (
        "beyond two standard errors"
        if abs(drop) > 2 * error
        else "within two standard errors, so it may be chance"
    )
    shown = f"{error:.2f} {unit}".strip() if unit else f"{error:.3g}"
    return f"{samples} samples, standard error of the difference {shown}: the difference is {verdict}"
