"""Metrics against scikit-learn, and their refusals."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    mean_squared_error,
    roc_auc_score,
    top_k_accuracy_score,
)
from sklearn.metrics.pairwise import cosine_similarity

from pared.compiler.errors import DataError, PipelineError
from pared.compiler.verify.metrics import Figure, default_metric, make_metric

RNG = np.random.default_rng(3)
N, CLASSES = 60, 7
LABELS = np.concatenate([np.arange(CLASSES), RNG.integers(0, CLASSES, N - CLASSES)])
SCORES = np.eye(CLASSES)[LABELS] + RNG.normal(size=(N, CLASSES))
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)


def filled(name: str, output: np.ndarray, labels: np.ndarray, size: int = 16) -> Figure:
    figure = make_metric(name)()
    for at in range(0, len(output), size):
        figure.add({"out": output[at : at + size]}, labels[at : at + size])
    return figure


@pytest.mark.parametrize("size", [1, 16, 100])
@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("top1", 100 * accuracy_score(LABELS, SCORES.argmax(axis=1))),
        ("top5", 100 * top_k_accuracy_score(LABELS, SCORES, k=5)),
        ("auc", 100 * roc_auc_score(LABELS, PROBABILITIES, multi_class="ovr")),
    ],
)
def test_class_metrics_are_those_of_scikit_learn(name: str, want: float, size: int) -> None:
    output = PROBABILITIES if name == "auc" else SCORES
    assert filled(name, output, LABELS, size).value() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_binary_auc_is_that_of_scikit_learn(columns: int, ties: bool) -> None:
    labels = np.arange(40) % 3 == 0
    scores = RNG.normal(size=40) + labels
    scores = scores.round() if ties else scores
    shaped = {0: scores, 1: scores[:, None], 2: np.stack([-scores, scores], axis=1)}[columns]
    want = 100 * roc_auc_score(labels, scores)
    assert filled("auc", shaped, labels.astype(int)).value() == pytest.approx(want, rel=1e-12)


def test_mse_is_that_of_scikit_learn() -> None:
    targets = RNG.normal(size=SCORES.shape)
    want = mean_squared_error(targets, SCORES)
    assert filled("mse", SCORES, targets).value() == pytest.approx(want, rel=1e-12)


def test_cosine_is_the_mean_similarity_of_rows() -> None:
    targets = RNG.normal(size=SCORES.shape)
    want = np.diag(cosine_similarity(SCORES, targets)).mean()
    assert filled("cosine", SCORES, targets).value() == pytest.approx(want, rel=1e-12)


def test_cosine_of_zero_vectors_is_one_only_between_themselves() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert filled("cosine", zero, zero).value() == 1.0
    assert filled("cosine", zero, one).value() == 0.0


def test_one_hot_labels_are_class_numbers() -> None:
    assert filled("top1", SCORES, np.eye(CLASSES)[LABELS]).value() == filled("top1", SCORES, LABELS).value()


def test_labels_per_position_are_averaged_per_sample() -> None:
    output = np.zeros((2, 3, 4))
    output[..., 1] = 1
    labels = np.array([[1, 1, 1], [1, 0, 0]])
    assert filled("top1", output, labels).value() == pytest.approx(100 * (1 + 1 / 3) / 2)


def test_among_equal_scores_the_first_class_wins() -> None:
    assert filled("top1", np.zeros((1, 3)), np.array([0])).value() == 100
    assert filled("top1", np.zeros((1, 3)), np.array([1])).value() == 0


def test_uint8_scores_do_not_wrap() -> None:
    assert filled("top1", np.array([[0, 200, 100]], np.uint8), np.array([1])).value() == 100


@pytest.mark.parametrize(
    ("name", "output", "labels"),
    [
        ("top1", SCORES, LABELS + 1),
        ("top1", SCORES, LABELS - 1),
        ("top1", SCORES, LABELS + 0.5),
        ("auc", SCORES, LABELS + 1),
        ("auc", SCORES[:, :1], np.zeros(N, int)),
        ("mse", SCORES, LABELS),
        ("cosine", SCORES, LABELS),
    ],
)
def test_labels_that_do_not_fit_the_output_are_refused(
    name: str, output: np.ndarray, labels: np.ndarray
) -> None:
    with pytest.raises(DataError) as caught:
        filled(name, output, labels).value()
    assert caught.value.reason == "metric-labels"


def test_the_error_of_an_accuracy_difference_is_that_of_paired_samples() -> None:
    other = SCORES + RNG.normal(size=SCORES.shape)
    hits = [(s.argmax(axis=1) == LABELS).astype(float) for s in (SCORES, other)]
    want = 100 * np.std(hits[0] - hits[1], ddof=1) / np.sqrt(N)
    got = filled("top1", SCORES, LABELS).error_of_difference(filled("top1", other, LABELS))
    assert got == pytest.approx(want, rel=1e-12)


def test_equal_outputs_have_no_error_of_difference() -> None:
    for name in ("top1", "auc"):
        assert filled(name, SCORES, LABELS).error_of_difference(filled(name, SCORES, LABELS)) == 0


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_metric")
    monkeypatch.setitem(sys.modules, "my_metric", module)
    return module


def test_a_user_function_sees_all_outputs_by_name(user_module: types.ModuleType) -> None:
    def share(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
        return float((outputs["out"].argmax(axis=1) == labels).mean())

    user_module.share = share  # type: ignore[attr-defined]
    got = filled("my_metric:share", SCORES, LABELS)
    assert 100 * got.value() == pytest.approx(filled("top1", SCORES, LABELS).value())
    assert got.higher_is_better


def test_a_user_function_may_say_that_less_is_better(user_module: types.ModuleType) -> None:
    loss: Callable[..., float] = lambda outputs, labels: 1.0  # noqa: E731
    loss.higher_is_better = False  # type: ignore[attr-defined]
    user_module.loss = loss  # type: ignore[attr-defined]
    assert not make_metric("my_metric:loss")().higher_is_better


@pytest.mark.parametrize("name", ["my_metric:missing", "no.such.module:f", "sys:path", ":f"])
def test_a_function_that_cannot_be_loaded_is_refused(name: str, user_module: types.ModuleType) -> None:
    with pytest.raises(PipelineError) as caught:
        make_metric(name)
    assert caught.value.reason == "metric-not-loadable"


def test_a_mistyped_metric_gets_the_nearest() -> None:
    with pytest.raises(PipelineError, match="did you mean top1"):
        make_metric("top-1")


@pytest.mark.parametrize(
    ("output", "labels", "want"),
    [
        ((4, 10), np.array([0, 5, 9, 1]), "top1"),
        ((4, 2), np.array([0, 1, 1, 0]), "top1"),
        ((4, 10), np.array([0.0, 5.0, 9.0, 1.0]), "top1"),
        ((4, 1), np.array([0, 1, 1, 0]), "auc"),
        ((4,), np.array([0, 1, 1, 0]), "auc"),
        ((4, 1), np.array([0.5, 1.5, 1, 0]), "mse"),
        ((4, 3), np.linspace(0, 1, 12).reshape(4, 3), "mse"),
    ],
)
def test_the_default_metric_follows_the_labels(
    output: tuple[int, ...], labels: np.ndarray, want: str
) -> None:
    assert default_metric(np.zeros(output), labels) == want
