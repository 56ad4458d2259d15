"""Bisects an artifact: which quantized layers must be left in float to win the accuracy back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..artifact.read import Artifact
from ..backend import Arrays
from ..data import Samples
from ..errors import ArtifactError, DataError
from .bisect import find_guilty
from .figures import compare_metric
from .layers import Batches, Noise, Progress
from .records import BisectReport, LayerReport

if TYPE_CHECKING:
    import onnx_ir as ir

LOSS_SAMPLES = 1000


class Rebuild(Protocol):
    """Makes the compiled model again with some nodes left in float."""

    @property
    def nodes(self) -> Mapping[str, Sequence[str]]:
        """Quantized nodes in graph order, each with the names of the values it makes."""
        ...

    def without(self, excluded: frozenset[str]) -> ir.Model:
        """Return the model with these nodes in float."""
        ...


def bisect_artifact(
    artifact: Artifact,
    original: ir.Model,
    layers: LayerReport,
    metric: str | None,
    samples: Samples | Batches,
    *,
    limit: float,
    rebuild: Rebuild | None,
    progress: Progress,
    notes: list[str],
) -> BisectReport | None:
    """Find the guilty layers; None with a note where the artifact's passes cannot be repeated.

    Args:
        artifact: the artifact.
        original: its imported float original.
        layers: the comparison with it, which tells whom to suspect first.
        metric: None measures the noise of the outputs in dB instead.
        samples: with labels when there is a metric; the first 1000 are used.
        limit: largest loss accepted: drop of the metric in its unit, or noise in dB.
        rebuild: None replays the artifact's pipeline and plan.
        progress: called as `progress("bisect", trials done, trials known of)`.
        notes: gets what a reader should know.
    """
    found = rebuild if rebuild is not None else _replay(artifact, original, notes)
    if found is None:
        return None
    used = samples.head(LOSS_SAMPLES) if isinstance(samples, Samples) else samples
    if len(used) < len(samples):
        notes.append(f"bisect looks at the first {len(used)} of {len(samples)} samples")
    loss = _Loss(original, found, metric, used, progress)
    noise = "noise of the outputs against the float original, dB"
    measure = f"drop of {metric}" if metric is not None else noise
    report = find_guilty(rank(found.nodes, layers), loss, limit, measure=measure)
    return dataclasses.replace(report, note="; ".join(filter(None, (report.note, loss.trust()))))


def rank(nodes: Mapping[str, Sequence[str]], layers: LayerReport) -> list[str]:
    """Order nodes by the noise that they add, most first; nodes without a measured value come last."""
    added = {layer.value: layer.added_noise for layer in layers.layers}

    def noise(node: str) -> float:
        return max((added.get(value, -1.0) for value in nodes[node]), default=-1.0)

    return sorted(nodes, key=noise, reverse=True)


def _replay(artifact: Artifact, original: ir.Model, notes: list[str]) -> Rebuild | None:
    from ..driver.replay import PLAN, Replay

    # A plan is stored even when float was kept because it is faster.
    if PLAN not in artifact.manifest.files or artifact.manifest.choice.precision == "float":
        notes.append("the artifact is not quantized by a plan, so there are no layers to exclude")
        return None
    try:
        return Replay(artifact, original, notes)
    except (ArtifactError, DataError) as err:
        notes.append(f"bisect cannot repeat the passes before quantization: {err.message}")
        return None


class _Loss:
    """The loss with some nodes in float, and how far chance may move it."""

    def __init__(
        self,
        original: ir.Model,
        rebuild: Rebuild,
        metric: str | None,
        samples: Samples | Batches,
        progress: Progress,
    ) -> None:
        self._reference = _runner(original)
        self._rebuild = rebuild
        self._metric = metric
        self._samples = samples
        self._progress = progress
        self._trials = 0
        self._error = 0.0

    def __call__(self, excluded: frozenset[str]) -> float:
        self._trials += 1
        self._progress("bisect", self._trials, self._trials + 1)
        run = _runner(self._rebuild.without(excluded))
        if self._metric is None:
            return noise_db(self._reference, run, self._samples)
        assert isinstance(self._samples, Samples), "metrics are taken on data, not on golden samples"
        result = compare_metric(self._metric, self._reference, run, self._samples)
        assert result.drop is not None, "the original was run"
        self._error = max(self._error, result.standard_error or 0.0)
        return result.drop

    def trust(self) -> str:
        """Say how far to trust the search: picking the best of many noisy trials flatters it."""
        if self._error == 0:
            return ""
        return (
            f"each loss has a standard error of up to {self._error:.2g} on {len(self._samples)} samples: "
            "confirm the result on other data"
        )


def _runner(model: ir.Model) -> Callable[[Arrays], Arrays]:
    from ..ort import make_session, run_session

    session = make_session(model)
    return lambda inputs: run_session(session, inputs)


def noise_db(
    reference: Callable[[Arrays], Arrays], run: Callable[[Arrays], Arrays], samples: Batches
) -> float:
    """Return the noise-to-signal ratio of the worst output in dB; minus infinite when all are equal."""
    noises: dict[str, Noise] = {}
    for inputs in samples.batches():
        want, got = reference(inputs), run(inputs)
        for name, array in want.items():
            if array.dtype.kind == "f":
                noises.setdefault(name, Noise()).add(array, np.asarray(got[name]))
    return max((-noise.sqnr_db for noise in noises.values()), default=-math.inf)
