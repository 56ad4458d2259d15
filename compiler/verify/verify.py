"""`verify`: is the artifact what it says it is, which layers are hurt, and what does it cost in accuracy."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import ops
from ..artifact.read import Artifact, open_artifact
from ..backend import Array, Arrays, BoundDeriver, Executable, Port, SampleJudge
from ..data import Samples, Source, open_samples
from ..errors import ArtifactError, DataError, nearest
from ..registry import BACKENDS, bound_deriver
from ..runtime import load
from ..simulated import simulation_of
from .figures import compare_metric
from .guilt import Rebuild, bisect_artifact
from .layers import LIMIT_DB, Batches, compare_layers
from .original import open_original, payload_model, payload_names
from .outputs import Again, Limit, OutputJudge, judge_all, override
from .records import BisectReport, LayerReport, MetricResult, OutputCheck, VerifyReport

if TYPE_CHECKING:
    import onnx_ir as ir


Progress = Callable[[str, int, int], None]
REFERENCE_SAMPLES = 64
# The reference is made to be right, not fast: no new sample is begun after this time.
REFERENCE_SECONDS = 60.0
LAYER_SAMPLES = 16


@dataclass(frozen=True)
class GoldenRuns:
    """The artifact's golden inputs as samples; unlike `Samples` each may have any leading dimension."""

    inputs: Sequence[dict[str, Array]]

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int = 1) -> Iterator[dict[str, Array]]:
        """Yield one sample a time."""
        assert size == 1, "golden samples are not batched"
        yield from self.inputs


@dataclass(frozen=True)
class _Work:
    """Everything that the steps share."""

    artifact: Artifact
    runs: Batches
    samples: Samples | None
    executable: Executable
    original: ir.Model | None
    progress: Progress
    notes: list[str]


def verify_artifact(
    artifact: str | Path | Artifact,
    data: Source | Samples | None = None,
    *,
    reference_model: str | Path | None = None,
    metric: str | None = None,
    rtol: Mapping[str, float] | None = None,
    atol: Mapping[str, float] | None = None,
    samples: int | None = None,
    layers: bool = True,
    limit_db: float = LIMIT_DB,
    bisect: bool = False,
    max_drop: float = 0.5,
    rebuild: Rebuild | None = None,
    threads: int | None = 1,
    progress: Progress | None = None,
) -> VerifyReport:
    """Verify an artifact.

    Outputs are compared with the reference semantics of the payload (64 samples, a minute) and with the
    golden outputs; layers (16 samples) and metrics (all samples) with the float original. Only outputs decide
    `passed`.

    Args:
        artifact: folder, zip, or opened.
        data: samples for the model's inputs, `labels` beside them for metrics; None: the golden inputs.
        reference_model: the float original; None takes the source path of the manifest if it is unchanged.
        metric: built-in name or `package.module:function`; None chooses one when there are labels.
        rtol: largest error relative to the largest reference value, in place of the stated bound; by output
            name, or `out0`, `out1`, ..., or `""` for all.
        atol: largest absolute error, likewise.
        samples: use the first so many only.
        layers: compare layers too.
        limit_db: a layer below is called hurt; also what bisect restores when there are no labels.
        bisect: name the layers to leave in float.
        max_drop: loss of the metric, in its unit, that bisect restores.
        rebuild: makes the model with some nodes in float; None replays the artifact's own pipeline and plan.
        threads: of the artifact's engine; None takes every usable core.
        progress: called as `progress(label, done, total)`.

    Raises:
        ArtifactError: missing or damaged.
        DataError: data that do not fit, unknown output names, labels that do not fit the metric.
        ModelError: the reference model is refused.
    """
    if samples is not None and samples < 1:
        raise DataError("verify-no-samples", f"{samples} samples verify nothing", "ask for at least one")
    found = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    notes = [*simulation_of(found)]
    opened = _open_data(found, data, samples, notes)
    original = open_original(found, reference_model, notes)
    with contextlib.closing(load(found.path, threads)) as executable:
        runs = opened if opened is not None else _golden(found, samples)
        work = _Work(found, runs, opened, executable, original, progress or _silent, notes)
        outputs = _check_outputs(work, _limits(found, rtol or {}, atol or {}))
        layer_report = _layers(work, limit_db) if layers or bisect else None
        metrics = _metrics(work, metric)
        guilt = _bisect(work, layer_report, metrics, max_drop, limit_db, rebuild) if bisect else None
    return VerifyReport(
        artifact=found.path if isinstance(artifact, Artifact) else Path(artifact),
        passed=all(check.passed for check in outputs),
        data=_origin(data),
        samples=len(runs),
        outputs=outputs,
        layers=layer_report,
        metrics=metrics,
        bisect=guilt,
        notes=tuple(notes),
    )


def _silent(label: str, done: int, total: int) -> None:
    """Progress callback that shows nothing."""


def _origin(data: Source | Samples | None) -> str:
    return "golden" if data is None else str(data) if isinstance(data, str | Path) else "memory"


def _open_data(
    artifact: Artifact, data: Source | Samples | None, limit: int | None, notes: list[str]
) -> Samples | None:
    if data is None:
        return None
    opened = open_samples(data, artifact.signature, purpose="test")
    notes.extend(opened.notes)
    return opened if limit is None else opened.head(limit)


def _golden(artifact: Artifact, limit: int | None) -> Batches:
    inputs = [sample for sample, _ in artifact.golden()][:limit]
    if not inputs:
        raise DataError(
            "verify-no-samples", "the artifact carries no golden samples", "give samples with --data"
        )
    return GoldenRuns(inputs)


def _limits(artifact: Artifact, rtol: Mapping[str, float], atol: Mapping[str, float]) -> dict[str, Limit]:
    ports = artifact.signature.outputs
    rtol, atol = _by_name(rtol, ports), _by_name(atol, ports)
    bounds = artifact.manifest.bounds
    if unbounded := [port.name for port in ports if port.name not in bounds]:
        raise ArtifactError(
            "artifact-manifest",
            f"the manifest states no bound for output {unbounded[0]!r}",
            "compile it again",
        )
    stated = {
        p.name: Limit(bounds[p.name].atol, bounds[p.name].rtol_of_max, bounds[p.name].how) for p in ports
    }
    return {name: override(limit, name, rtol, atol) for name, limit in stated.items()}


def _by_name(tolerances: Mapping[str, float], ports: Sequence[Port]) -> dict[str, float]:
    """Resolve `out0`, `out1`, ... to output names; raises for names that are neither."""
    names = {f"out{index}": port.name for index, port in enumerate(ports)}
    names |= {port.name: port.name for port in ports} | {"": ""}
    for key in tolerances:
        if key not in names:
            raise DataError(
                "unknown-output",
                f"a tolerance is given for output {key!r}",
                nearest(key, [p.name for p in ports]),
            )
    return {names[key]: value for key, value in tolerances.items()}


def _check_outputs(work: _Work, limits: Mapping[str, Limit]) -> tuple[OutputCheck, ...]:
    golden = {name: OutputJudge(name, "golden", _twice(limit)) for name, limit in limits.items()}
    anew = _Anew(work.artifact)
    for inputs, want in work.artifact.golden():
        judge_all(golden, work.executable.run(inputs), want, anew.judge_of(inputs, 2.0))
    reference = {name: OutputJudge(name, "reference", limit) for name, limit in limits.items()}
    done, total = 0, min(len(work.runs), REFERENCE_SAMPLES)
    end = time.monotonic() + REFERENCE_SECONDS
    with contextlib.closing(_reference(work.artifact)) as oracle:
        for inputs in itertools.islice(work.runs.batches(), total):
            judge_all(reference, work.executable.run(inputs), oracle.run(inputs), anew.judge_of(inputs, 1.0))
            done += 1
            work.progress("reference", done, total)
            if time.monotonic() > end:
                break
    if done < len(work.runs):
        work.notes.append(
            f"outputs compared with the reference on the first {done} of {len(work.runs)} samples"
        )
    judges = [*reference.values(), *golden.values()]
    return tuple(judge.result() for judge in judges if judge.seen)


class _Anew:
    """Judges samples beyond the stated bound; the model is made ready when the first one comes."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._deriver: BoundDeriver | None = None

    def judge_of(self, inputs: Arrays, factor: float) -> Again:
        """Return the judge of one sample, which `factor` engines may be off the reference."""
        judges: list[SampleJudge] = []

        def again(name: str, got: Array, want: Array) -> tuple[float, float]:
            if not judges:
                judges.append(self._ready().again(inputs))
            return judges[0].judge(name, got, want, factor)

        return again

    def _ready(self) -> BoundDeriver:
        if self._deriver is None:
            ops.register()
            self._deriver = bound_deriver(payload_model(self._artifact), 0)
        return self._deriver


def _twice(limit: Limit) -> Limit:
    """Return the limit between two engines, each of which may be off the reference by the bound."""
    how = f"{limit.how}; twice, for the engine that stored the golden outputs may be off as well"
    return Limit(2 * limit.atol, 2 * limit.rtol_of_max, how)


def _reference(artifact: Artifact) -> Executable:
    return BACKENDS["reference"]().load(artifact.path, "reference", {}, None)


def _layers(work: _Work, limit_db: float) -> LayerReport | None:
    if work.original is None:
        return None
    runs = work.samples.head(LAYER_SAMPLES) if work.samples is not None else work.runs
    names, divisors = payload_names(work.artifact)
    return compare_layers(
        work.original,
        payload_model(work.artifact),
        runs,
        names=names,
        divisors=divisors,
        limit_db=limit_db,
        progress=work.progress,
    )


def _metrics(work: _Work, metric: str | None) -> tuple[MetricResult, ...]:
    if work.samples is None or (metric is None and work.samples.labels is None):
        if metric is not None:
            work.notes.append(f"metric {metric!r} not taken: it needs --data")
        return ()
    reference = _original_run(work)
    return (compare_metric(metric, reference, work.executable.run, work.samples, progress=work.progress),)


def _original_run(work: _Work) -> Callable[[Arrays], Arrays] | None:
    if work.original is None:
        return None
    from ..ort import make_session, run_session

    session = make_session(work.original)
    return lambda inputs: run_session(session, inputs)


def _bisect(
    work: _Work,
    layers: LayerReport | None,
    metrics: Sequence[MetricResult],
    max_drop: float,
    limit_db: float,
    rebuild: Rebuild | None,
) -> BisectReport | None:
    if work.original is None or layers is None:
        work.notes.append("bisect needs the float original; name it with --reference")
        return None
    return bisect_artifact(
        work.artifact,
        work.original,
        layers,
        metrics[0].metric if metrics else None,
        work.samples if work.samples is not None else work.runs,
        limit=max_drop if metrics else -limit_db,
        rebuild=rebuild,
        progress=work.progress,
        notes=work.notes,
    )
