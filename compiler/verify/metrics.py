"""Figures of merit over labelled samples: built-in ones, and the user's own by entry point."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from ..backend import Array, Arrays
from ..errors import DataError, PipelineError, nearest

Scores = npt.NDArray[np.float64]
UserMetric = Callable[[dict[str, Array], Array], float]
_RESAMPLES = 200


class Figure(Protocol):
    """Collects outputs batch by batch and gives one number."""

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        ...

    @property
    def unit(self) -> str:
        """`points` for shares of one hundred, else empty."""
        ...

    def add(self, outputs: Arrays, labels: Array) -> None:
        """Take the outputs of one batch and the labels of its samples (first axis)."""
        ...

    def value(self) -> float:
        """Return the figure over everything added."""
        ...

    def error_of_difference(self, other: Figure) -> float | None:
        """Return the standard error of the difference to `other` on the same samples; None if unknown."""
        ...


def main_output(outputs: Arrays) -> Array:
    """Return the output that metrics look at: the first."""
    return next(iter(outputs.values()))


@dataclass
class MeanOf:
    """The mean of one score per sample, times `scale`."""

    score: Callable[[Array, Array], Scores]
    higher_is_better: bool = True
    unit: str = ""
    scale: float = 1.0
    _scores: list[Scores] = field(default_factory=list)

    def add(self, outputs: Arrays, labels: Array) -> None:
        """Score one batch."""
        self._scores.append(self.score(main_output(outputs), labels))

    def value(self) -> float:
        """Return the mean score."""
        return self.scale * float(np.mean(np.concatenate(self._scores)))

    def error_of_difference(self, other: Figure) -> float | None:
        """Return the standard error of the mean of paired differences."""
        assert isinstance(other, MeanOf)
        pairs = np.concatenate(self._scores) - np.concatenate(other._scores)
        return self.scale * float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs)) if len(pairs) > 1 else None


@dataclass
class Auc:
    """Area under the ROC curve in points; one class against the rest, averaged, for more than two classes."""

    higher_is_better: bool = True
    unit: str = "points"
    _scores: list[Array] = field(default_factory=list)
    _labels: list[Array] = field(default_factory=list)

    def add(self, outputs: Arrays, labels: Array) -> None:
        """Keep the scores of one batch, [samples, classes]."""
        scores = main_output(outputs)
        self._scores.append(np.asarray(scores, np.float64).reshape(len(scores), -1))
        self._labels.append(_class_numbers(labels))

    def value(self) -> float:
        """Return the area; raises `DataError` when only one class is present."""
        return 100 * _area(np.concatenate(self._scores), np.concatenate(self._labels))

    def error_of_difference(self, other: Figure) -> float | None:
        """Return the standard error by a paired bootstrap with a fixed seed."""
        assert isinstance(other, Auc)
        labels = np.concatenate(self._labels)
        mine, theirs = np.concatenate(self._scores), np.concatenate(other._scores)
        rng = np.random.default_rng(0)
        found = []
        for _ in range(_RESAMPLES):
            pick = rng.integers(0, len(labels), len(labels))
            if len(np.unique(labels[pick])) == len(np.unique(labels)):
                found.append(_area(mine[pick], labels[pick]) - _area(theirs[pick], labels[pick]))
        return 100 * float(np.std(found, ddof=1)) if len(found) > 1 else None


@dataclass
class Custom:
    """The user's function of all outputs and labels; it sees them once, concatenated.

    The function may carry an attribute `higher_is_better = False`.
    """

    function: UserMetric
    unit: str = ""
    _outputs: dict[str, list[Array]] = field(default_factory=dict)
    _labels: list[Array] = field(default_factory=list)

    @property
    def higher_is_better(self) -> bool:
        """What the function says of itself; by default more is better."""
        return bool(getattr(self.function, "higher_is_better", True))

    def add(self, outputs: Arrays, labels: Array) -> None:
        """Keep one batch."""
        for name, array in outputs.items():
            self._outputs.setdefault(name, []).append(array)
        self._labels.append(labels)

    def value(self) -> float:
        """Call the function; its exceptions pass through."""
        outputs = {
            name: np.concatenate([np.atleast_1d(a) for a in found]) for name, found in self._outputs.items()
        }
        return float(self.function(outputs, np.concatenate(self._labels)))

    def error_of_difference(self, other: Figure) -> float | None:
        """Return None: nothing is known about the function."""
        return None


METRICS: Mapping[str, Callable[[], Figure]] = {
    "top1": lambda: MeanOf(lambda out, labels: _top(out, labels, 1), unit="points", scale=100),
    "top5": lambda: MeanOf(lambda out, labels: _top(out, labels, 5), unit="points", scale=100),
    "auc": Auc,
    "mse": lambda: MeanOf(_squared_error, higher_is_better=False),
    "cosine": lambda: MeanOf(_cosine),
}


def make_metric(name: str) -> Callable[[], Figure]:
    """Return a maker of fresh figures for a built-in name or an entry point `package.module:function`.

    Raises:
        PipelineError: `unknown-metric` or `metric-not-loadable`.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise PipelineError(
            "unknown-metric", f"unknown metric {name!r}", nearest(name, [*METRICS, "package.module:function"])
        )
    function = _entry_point(name)
    return lambda: Custom(function)


def _entry_point(name: str) -> UserMetric:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as err:
        raise PipelineError(
            "metric-not-loadable",
            f"metric {name!r} cannot be loaded: {err}",
            "the module must be importable: install it or set PYTHONPATH",
        ) from err
    if not callable(function):
        raise PipelineError("metric-not-loadable", f"metric {name!r} is not a function", "name a function")
    return cast(UserMetric, function)


def default_metric(output: Array, labels: Array) -> str:
    """Choose a metric by the shapes of one batch: class numbers give top1 or auc, values give mse.

    >>> default_metric(np.zeros((2, 10)), np.array([3, 4]))
    'top1'
    """
    whole = labels.dtype.kind in "iub" or bool((labels == np.floor(labels)).all())
    if labels.shape == output.shape and not (labels.ndim == 1 and whole):
        return "mse"
    per_label = output.size // max(labels.size, 1)
    if whole and per_label > 1:
        return "top1"
    return "auc" if whole and bool(((labels == 0) | (labels == 1)).all()) else "mse"


def _class_numbers(labels: Array) -> Array:
    numbers = np.asarray(labels)
    if numbers.dtype.kind == "f" and not (numbers == np.floor(numbers)).all():
        raise DataError(
            "metric-labels", "labels are not whole class numbers", "use mse for real-valued targets"
        )
    return numbers.astype(np.int64)


def _top(output: Array, labels: Array, k: int) -> Scores:
    """Score 1 where the label is among the `k` greatest of its classes (last axis), averaged per sample."""
    if labels.shape == output.shape and labels.ndim > 1:
        labels = labels.argmax(axis=-1)
    wanted = _class_numbers(labels)
    classes = output if output.shape[:-1] == wanted.shape else output.reshape(*wanted.shape, -1)
    if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < classes.shape[-1]:
        raise DataError(
            "metric-labels",
            f"labels go from {wanted.min()} to {wanted.max()}, the output has {classes.shape[-1]} classes",
            "renumber the labels, or choose another metric",
        )
    # A stable descending order: among equal scores the first class wins, as argmax does.
    best = np.argsort(-classes.astype(np.float64), axis=-1, kind="stable")[..., :k]
    hits = (best == wanted[..., None]).any(axis=-1)
    scores: Scores = hits.reshape(len(hits), -1).mean(axis=1, dtype=np.float64)
    return scores


def _rows(output: Array, labels: Array) -> tuple[Scores, Scores]:
    if output.size != labels.size or len(output) != len(labels):
        raise DataError(
            "metric-labels",
            f"labels have shape {list(labels.shape)}, the output {list(output.shape)}",
            "give one target per output element, or choose another metric",
        )
    return (
        np.asarray(output, np.float64).reshape(len(output), -1),
        np.asarray(labels, np.float64).reshape(len(output), -1),
    )


def _squared_error(output: Array, labels: Array) -> Scores:
    got, want = _rows(output, labels)
    errors: Scores = np.square(got - want).mean(axis=1)
    return errors


def _cosine(output: Array, labels: Array) -> Scores:
    got, want = _rows(output, labels)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    dots = (got * want).sum(axis=1)
    # Two zero vectors agree; a zero vector beside another does not.
    same: Scores = (got == want).all(axis=1).astype(np.float64)
    cosines: Scores = np.where(norms > 0, dots / np.where(norms > 0, norms, 1), same)
    return cosines


def _area(scores: Array, labels: Array) -> float:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError("metric-labels", "AUC needs samples of at least two classes", "use another test set")
    if scores.shape[1] <= 2:
        return _binary_area(scores[:, -1], labels == classes[-1])
    if not 0 <= classes[0] <= classes[-1] < scores.shape[1]:
        raise DataError(
            "metric-labels",
            f"labels go from {classes[0]} to {classes[-1]}, the output has {scores.shape[1]} classes",
            "renumber the labels, or choose another metric",
        )
    return float(np.mean([_binary_area(scores[:, c], labels == c) for c in classes]))


def _binary_area(scores: Array, positive: Array) -> float:
    """Return P(score of a positive > score of a negative), ties half (Mann-Whitney U by mean ranks)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    many = int(positive.sum())
    wins = float(mean_rank[inverse][positive].sum()) - many * (many + 1) / 2
    return wins / (many * (len(scores) - many))
