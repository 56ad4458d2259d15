"""Metrics of two runners over one pass of the samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from pared.compiler.backend import Port, Signature
from pared.compiler.data import Samples, open_samples
from pared.compiler.errors import DataError
from pared.compiler.verify.figures import compare_metric

Arrays = Mapping[str, np.ndarray]
X = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
LABELS = X.argmax(axis=1)


def samples(labels: np.ndarray | None = LABELS, lead: int | str = "n", x: np.ndarray = X) -> Samples:
    arrays = {"x": x} | ({} if labels is None else {"labels": labels})
    return open_samples(arrays, Signature((Port("x", "FLOAT", (lead, 3)),), ()), purpose="test")


def good(inputs: Arrays) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def bad(inputs: Arrays) -> dict[str, np.ndarray]:
    """Never say class 2."""
    return {"y": inputs["x"] * np.array([1, 1, 0]) - np.array([0, 0, 100])}


@pytest.mark.parametrize("lead", [1, "n", 5])
def test_the_drop_is_that_of_all_samples_in_batches_of_any_size(lead: int | str) -> None:
    result = compare_metric("top1", good, bad, samples(lead=lead))
    right = 100 * np.mean(LABELS != 2)
    assert (result.reference, result.artifact) == (100.0, pytest.approx(right))
    assert result.drop == pytest.approx(100 - right)
    assert "beyond two standard errors" in result.note


def test_less_is_better_turns_the_drop_around() -> None:
    result = compare_metric("mse", good, lambda i: {"y": i["x"] + 1}, samples(labels=X))
    assert (result.reference, result.artifact) == (0.0, pytest.approx(1.0))
    assert result.drop == pytest.approx(1.0)


def test_equal_runs_have_no_drop() -> None:
    result = compare_metric("top1", good, good, samples())
    assert (result.drop, result.standard_error) == (0.0, 0.0)
    assert "scored alike" in result.note


def test_a_small_drop_may_be_chance() -> None:
    def one_wrong(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * np.where(np.arange(len(inputs["x"])) == 0, -1, 1)[:, None]}

    result = compare_metric("top1", good, one_wrong, samples().head(16))
    assert result.drop == pytest.approx(100 / 16)
    assert "may be chance" in result.note


def test_without_an_original_there_is_no_drop() -> None:
    result = compare_metric("top1", None, good, samples())
    assert (result.reference, result.artifact, result.drop) == (None, 100.0, None)


def test_without_labels_the_original_is_the_target() -> None:
    result = compare_metric("cosine", good, lambda i: {"y": -i["x"]}, samples(None))
    assert (result.reference, result.artifact) == (pytest.approx(1.0), pytest.approx(-1.0))


@pytest.mark.parametrize(("metric", "reference"), [("top1", good), (None, good), ("mse", None)])
def test_missing_labels_are_refused(metric: str | None, reference: object) -> None:
    with pytest.raises(DataError) as caught:
        compare_metric(metric, reference, good, samples(None))  # type: ignore[arg-type]
    assert caught.value.reason == "metric-labels"


def test_the_default_metric_is_chosen_from_labels_and_outputs() -> None:
    assert compare_metric(None, good, good, samples()).metric == "top1"
    assert compare_metric(None, good, good, samples(labels=X)).metric == "mse"


def test_progress_ends_at_the_number_of_samples() -> None:
    seen: list[tuple[str, int, int]] = []
    compare_metric("top1", good, good, samples(), progress=lambda *step: seen.append(step))
    assert [done for _, done, _ in seen] == [16, 32, 48, 50]
    assert seen[-1] == ("metric", 50, 50)
