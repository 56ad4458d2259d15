"""`bench`: an artifact measured beside the float original, in turns, with pinned threads."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ..compiler.artifact.read import Artifact, open_artifact
from ..compiler.backend import Array, Port, Signature
from ..compiler.data import Samples, Source, open_samples
from ..compiler.errors import DataError, ModelError, PipelineError, TargetError
from ..compiler.machine import Machine, find_machine
from ..compiler.ort import usable_cores
from ..compiler.records import Metric, Origin
from ..compiler.runtime import load
from ..compiler.simulated import simulation_of
from .device_meter import Work, device_metrics
from .energy import measure_energy
from .meter import PERCENTILES, Comparison, Latency, Progress, Ratio, compare_latency, pinned
from .peers import DEFAULT_PEERS, OWN, check_peers, make_runner
from .probe import Footprint, probe

ROUNDS = 10
_FEEDS = 8  # different inputs in turn, so that no branch predictor learns one by heart


@dataclass(frozen=True)
class CandidateReport:
    """One candidate.

    Attributes:
        name: `pared` or the peer that runs the float original.
        path: artifact or model file.
        latency: of single runs of `batch` samples.
        metrics: throughput, load time, memory, bytes and energy, each with unit and origin.
    """

    name: str
    path: Path
    latency: Latency
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class BenchReport:
    """The result of `pared bench`.

    Attributes:
        engine: what runs the artifact, and in which precision.
        tools: versions of the packages that ran, on this machine and now.
        cores: to which the threads were pinned; empty where the system cannot.
        candidates: the artifact first.
        ratios: time of the artifact over that of each peer; below 1 the artifact is faster.
        notes: peers that could not be measured, and why.
    """

    artifact: Path
    target: str
    engine: str
    precision: str
    machine: Machine
    tools: Mapping[str, str]
    threads: int
    cores: tuple[int, ...]
    batch: int
    rounds: int
    candidates: tuple[CandidateReport, ...]
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...]


def bench_artifact(
    path: str | Path | Artifact,
    *,
    iterations: int = 200,
    warmup: int = 20,
    duration: float | None = None,
    threads: int | None = 1,
    batch: int = 1,
    percentiles: Sequence[float] = PERCENTILES,
    peers: Sequence[str] | None = None,
    original: str | Path | None = None,
    data: Source | Samples | None = None,
    energy_seconds: float = 1.0,
    footprint: bool = True,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure an artifact beside the float original.

    Args:
        path: artifact folder or zip, or opened.
        iterations: measured runs per candidate, over ten interleaved rounds.
        warmup: unmeasured runs before.
        duration: seconds to measure each candidate at least.
        threads: per inference, of every candidate, pinned to as many cores; None takes every usable core.
        batch: samples per inference; above 1 needs a symbolic leading dimension.
        percentiles: 0..100.
        peers: of `onnxruntime`, `openvino`; None takes onnxruntime.
        original: the float model; None takes the source path of the manifest.
        data: inputs to run on; None takes the golden ones.
        energy_seconds: how long each candidate runs for the energy counter.
        footprint: measure load time and memory too, in a fresh process per candidate.
        progress: called as `progress(label, done, total)`.

    Raises:
        ArtifactError, DataError, PipelineError, MissingTool: what is wrong with the request.
    """
    threads = threads if threads is not None else usable_cores()
    _check_numbers(iterations, warmup, duration, threads, batch, percentiles)
    artifact = path if isinstance(path, Artifact) else open_artifact(path)
    _check_device(artifact)
    names = tuple(DEFAULT_PEERS if peers is None else dict.fromkeys(peers))
    check_peers(names)
    feeds = _feeds(artifact, data, batch)
    notes: list[str] = []
    model = _original(artifact, original, notes) if names else None
    places = {OWN: artifact.path} | ({name: model for name in names} if model is not None else {})
    with pinned(threads) as cores:
        runs = _runners(places, feeds, threads, notes)
        compared = compare_latency(
            runs,
            rounds=ROUNDS,
            iterations=iterations,
            warmup=warmup,
            duration=duration,
            percentiles=percentiles,
            progress=progress,
        )
        joules = {name: measure_energy(run, seconds=energy_seconds) for name, run in runs.items()}
    sizes = {OWN: artifact.payload_bytes()} | {name: _model_bytes(model, artifact) for name in names if model}
    candidates = []
    for done, name in enumerate(runs):
        if progress is not None:
            progress("memory", done, len(runs))
        found = probe(name, places[name], feeds[0], threads) if footprint else None
        metrics = _metrics(compared.latencies[name], batch, sizes[name], joules[name], found)
        if name == OWN:
            metrics += _on_device(artifact, batch, iterations, energy_seconds, notes)
        candidates.append(CandidateReport(name, places[name], compared.latencies[name], metrics))
    where = artifact.path if isinstance(path, Artifact) else Path(path)
    return _report(artifact, where, threads, cores, batch, compared, candidates, notes)


def _check_device(artifact: Artifact) -> None:
    """Refuse to time a simulation: for another device than this machine, that is what runs here."""
    for simulated in simulation_of(artifact):
        raise TargetError(
            "bench-elsewhere",
            f"{simulated}, and its time says nothing about the device",
            "measure on the device; the artifact's reports/ hold what is known without it",
        )


def _on_device(
    artifact: Artifact, batch: int, iterations: int, seconds: float, notes: list[str]
) -> tuple[Metric, ...]:
    """Measure a model on a device of its own; nothing for the host's engines, whose time is the latency."""
    with load(artifact.path) as model:
        meter = model.meter(batch)
        if meter is None:
            return ()
        notes += meter.notes
        return device_metrics(meter, _work(artifact, batch), runs=iterations, seconds=seconds)


def _work(artifact: Artifact, batch: int) -> Work:
    from ..compiler.ir.importer import import_model
    from ..compiler.ir.stats import count

    precision = artifact.manifest.choice.precision
    halves = precision.startswith(("fp16", "bf16")) or precision.endswith("a16")
    kind = "int8" if precision.startswith("int8") else "half" if halves else precision
    counts = count(import_model(artifact.path / "model.onnx").model)
    opened = any(port.shape and isinstance(port.shape[0], str) for port in artifact.signature.inputs)
    return Work(None if counts.uncounted else counts.macs * (batch if opened else 1), kind)


def _check_numbers(
    iterations: int,
    warmup: int,
    duration: float | None,
    threads: int,
    batch: int,
    percentiles: Sequence[float],
) -> None:
    """Refuse numbers that mean nothing."""
    wrong = {
        "iterations must be at least 1": iterations < 1,
        "warmup must be at least 0": warmup < 0,
        "duration must be above 0 seconds": duration is not None and not 0 < duration < float("inf"),
        "threads must be at least 1": threads < 1,
        "batch must be at least 1": batch < 1,
        "percentiles must lie in 0..100": not all(0 <= p <= 100 for p in percentiles),
    }
    for message, found in wrong.items():
        if found:
            raise PipelineError("bench-option", message, "give another number")


def _feeds(artifact: Artifact, data: Source | Samples | None, batch: int) -> list[dict[str, Array]]:
    if data is not None:
        samples = open_samples(data, artifact.signature, purpose="input")
        if len(samples) < batch:
            raise DataError(
                "bench-too-few",
                f"batches of {batch} need as many samples, the data have {len(samples)}",
                "give more",
            )
        usable = samples.head(len(samples) // batch * batch)
        return list(itertools.islice(usable.batches(batch), _FEEDS))
    golden = [inputs for inputs, _ in artifact.golden()]
    if not golden:
        raise DataError("bench-no-inputs", "the artifact carries no golden inputs", "give inputs with --data")
    return golden if batch == 1 else [_repeated(golden, batch, artifact.signature)]


def _repeated(golden: Sequence[Mapping[str, Array]], batch: int, signature: Signature) -> dict[str, Array]:
    """Make one batch of the golden samples, repeated as needed."""
    for port in signature.inputs:
        if not port.shape or isinstance(port.shape[0], int):
            raise _fixed(port, batch)
    return {port.name: _rows([sample[port.name] for sample in golden], batch) for port in signature.inputs}


def _rows(samples: Sequence[Array], count: int) -> Array:
    rows = np.concatenate(samples)
    return np.concatenate([rows] * -(-count // len(rows)))[:count]


def _fixed(port: Port, batch: int) -> DataError:
    return DataError(
        "batch-fixed",
        f"input {port.name!r} has the fixed shape {list(port.shape)}; batches of {batch} do not fit",
        "use batch 1, or compile the model with a symbolic leading dimension",
    )


def _original(artifact: Artifact, explicit: str | Path | None, notes: list[str]) -> Path | None:
    source = explicit if explicit is not None else artifact.manifest.source.path
    if source is not None and Path(source).is_file():
        return Path(source)
    if explicit is not None:
        raise ModelError("model-not-found", f"float original {explicit} does not exist", "check the path")
    finding = "was compiled from memory" if source is None else f"{source} is not there"
    notes.append(f"no peers measured: the float original {finding}; name it with --reference")
    return None


def _model_bytes(model: Path, artifact: Artifact) -> int:
    external = (model.parent / name for name in artifact.manifest.source.external)
    return model.stat().st_size + sum(file.stat().st_size for file in external if file.is_file())


def _runners(
    places: Mapping[str, Path], feeds: Sequence[dict[str, Array]], threads: int, notes: list[str]
) -> dict[str, Callable[[], object]]:
    """Load every candidate; a peer that refuses the model or the inputs becomes a note."""
    runs: dict[str, Callable[[], object]] = {}
    for name, place in places.items():
        try:
            run = make_runner(name, place, threads)
        except ModelError as err:
            if name == OWN:
                raise
            notes.append(f"{name} not measured: {err.message}")
            continue
        turns = itertools.cycle(feeds)
        runs[name] = functools.partial(_next, run, turns)
    return runs


def _next(run: Callable[[dict[str, Array]], object], turns: itertools.cycle[dict[str, Array]]) -> None:
    run(next(turns))


def _metrics(
    latency: Latency, batch: int, size: int, energy: Metric, found: Footprint | None
) -> tuple[Metric, ...]:
    def metric(name: str, value: float | None, unit: str, how: str) -> Metric:
        return Metric(name, value, unit, Origin.MEASURED, how)

    once = "one fresh process; files may be in the page cache"
    unknown = "this system does not tell"
    lines = [
        metric(
            "throughput",
            batch / latency.median_ms * 1e3,
            "samples/s",
            f"batch {batch} over the median latency",
        ),
        metric("model_bytes", size, "bytes", "size of the model files"),
        energy,
    ]
    if found is not None:
        own = None if found.own_bytes is None else float(found.own_bytes)
        lines += [
            metric("import_time", found.import_ms, "ms", once),
            metric("load_time", found.load_ms, "ms", once),
            metric("first_run", found.first_run_ms, "ms", once),
            metric("peak_memory", found.peak_bytes, "bytes", "peak resident memory of one fresh process"),
            metric(
                "own_memory",
                own,
                "bytes",
                "the same, beyond the imported libraries" if own is not None else unknown,
            ),
        ]
    return tuple(lines)


def _report(
    artifact: Artifact,
    where: Path,
    threads: int,
    cores: tuple[int, ...],
    batch: int,
    compared: Comparison,
    candidates: Sequence[CandidateReport],
    notes: Sequence[str],
) -> BenchReport:
    manifest = artifact.manifest
    peers = [c.name for c in candidates if c.name != OWN]
    return BenchReport(
        artifact=where,
        target=manifest.target.name,
        engine=f"{manifest.engine.backend}/{manifest.engine.name}",
        precision=manifest.choice.precision,
        machine=find_machine(),
        tools=_versions(peers),
        threads=threads,
        cores=cores,
        batch=batch,
        rounds=ROUNDS,
        candidates=tuple(candidates),
        ratios=tuple(compared.ratio(OWN, peer) for peer in peers),
        notes=tuple(notes),
    )


def _versions(peers: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in dict.fromkeys(("pared", "onnxruntime", "numpy", *peers)):
        with contextlib.suppress(metadata.PackageNotFoundError):  # onnxruntime has builds of other names
            found[name] = metadata.version(name)
    return found
