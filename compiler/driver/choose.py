"""Builds candidates (variant x engine), times them side by side and keeps the fastest that verifies."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..backend import REGIONS, Array, Executable, Payload
from ..errors import ArtifactError, MissingTool, ParedError, PipelineError, nearest
from ..ir.pages import SPILLED_BYTES, release_memory
from ..ir.stats import count
from ..machine import find_machine
from ..records import Metric, Origin
from .batched import checks_of, run_batch, unrun_note
from .job import Job
from .oracle import Oracle
from .report import CandidateRecord
from .variants import FLOAT, Variants

# Timing noise on a busy machine; a quantized model that is this close to float is kept for its size.
TIE = 1.02
_SECONDS = (0.5, 1.0, 3.0, 10.0)
_ROUNDS = 7
_LOOK = "run with --verify-each --dump-ir DIR and inspect the layers"


@dataclass(frozen=True)
class Choice:
    """The kept candidate and the account of all of them.

    Attributes:
        variant: name of the model variant.
        outputs: of the candidate on the golden inputs.
        why: one line for the manifest.
    """

    variant: str
    payload: Payload
    outputs: list[dict[str, Array]]
    candidates: tuple[CandidateRecord, ...]
    why: str

    @property
    def name(self) -> str:
        """`<variant>/<engine>`."""
        return f"{self.variant}/{self.payload.engine}"


@dataclass
class _Candidate:
    """A candidate on its way; `record` is replaced as more becomes known."""

    variant: str
    payload: Payload
    executable: Executable
    record: CandidateRecord


def choose(job: Job, variants: Variants, oracle: Oracle, scratch: Path, pinned: str | None = None) -> Choice:
    """Return the candidate to ship.

    A pinned choice (a rebuild) is built and checked but not timed. A target that does not run here gets the
    asked precision on the first of its engines that takes it, unmeasured.

    Raises:
        ParedError: no candidate verifies; lists what each failed by.
    """
    from ...bench.meter import pinned as pinned_to

    here = job.target.runs_here(find_machine())
    wanted = _wanted(job, variants, pinned)
    if not here.ok:
        wanted = [pair for pair in wanted if pair[0] == wanted[0][0]]
    # Sessions are made inside: worker threads inherit the cores of the thread that starts them.
    with (
        pinned_to(job.recipe.threads),
        _built(job, variants, wanted, scratch, first=not here.ok) as (candidates, failed),
    ):
        refused = [_record(name, verdict=f"not built: {err.message}") for name, err in failed]
        if not candidates:
            raise _none_built(failed, wanted[0][0], refused)
        timed = _timed(job, candidates, oracle.inputs) if len(candidates) > 1 else candidates
        asked = variants.asked
        for candidate in _by_preference(timed, asked, job.recipe.force):
            outputs = _verify(candidate, oracle)
            if candidate.record.verified:
                _verify_batches(candidate, oracle, variants.models[candidate.variant], emulated=not here.ok)
            if candidate.record.verified:
                why = _why(candidate, timed, asked, pinned is not None)
                why = why if here.ok else f"not measured: {here.reason}"
                records = [_final(c.record, candidate, why) for c in timed] + refused
                return Choice(candidate.variant, candidate.payload, outputs, tuple(records), why)
        raise _none_left([c.record for c in timed] + refused)


def _wanted(job: Job, variants: Variants, pinned: str | None) -> list[tuple[str, str]]:
    """Return the (variant, engine) pairs to build, the asked precision first."""
    here = list(job.backend.engines(job.target))
    # Of an engine that the target has and this installation has not, lowering says what is missing.
    engines, known = here or list(job.target.engines), [*dict.fromkeys((*here, *job.target.engines))]
    if job.recipe.engine is not None:
        if job.recipe.engine not in known:
            raise PipelineError(
                "unknown-engine",
                f"target {job.target.name} has no engine {job.recipe.engine!r}",
                nearest(job.recipe.engine, known),
            )
        engines = [job.recipe.engine]
    if pinned is None:
        return [(variant, engine) for variant in reversed(variants.models) for engine in engines]
    pairs = {f"{variant}/{engine}": (variant, engine) for variant in variants.models for engine in known}
    if pinned not in pairs:
        raise PipelineError(
            "unknown-choice", f"candidate {pinned!r} cannot be built", f"valid: {', '.join(pairs)}"
        )
    return [pairs[pinned]]


@contextmanager
def _built(
    job: Job, variants: Variants, wanted: Sequence[tuple[str, str]], scratch: Path, *, first: bool = False
) -> Iterator[tuple[list[_Candidate], list[tuple[str, ParedError]]]]:
    """Lower and load every wanted candidate, or the `first` that works; beside them names and refusals."""
    candidates: list[_Candidate] = []
    failed: list[tuple[str, ParedError]] = []
    one_engine = len({engine for _, engine in wanted}) == 1
    with ExitStack() as stack:
        for done, (variant, engine) in enumerate(wanted):
            job.ctx.check_cancelled()
            job.ctx.progress("lower", done, len(wanted))
            try:
                candidate = _build(job, variants.models[variant], variant, engine, scratch)
            except ParedError as err:
                # Where another precision of the same engine is tried next, that would miss the tool too.
                last = len(wanted) == 1 or (isinstance(err, MissingTool) and one_engine)
                if last or isinstance(err, ArtifactError):
                    raise
                failed.append((f"{variant}/{engine}", err))
                continue
            stack.callback(candidate.executable.close)
            candidates.append(candidate)
            if first:
                break
        yield candidates, failed


def _build(job: Job, model: ir.Model, variant: str, engine: str, scratch: Path) -> _Candidate:
    payload = job.backend.lower(model, job.target, engine, job.ctx)
    folder = Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=scratch))
    # From here on only paths: the bytes need not lie in memory beside the loaded model.
    files = payload.move_to(folder)
    payload = dataclasses.replace(payload, files=files)
    size = sum(path.stat().st_size for path in files.values())
    if size > SPILLED_BYTES:
        release_memory()
    executable = job.backend.load(folder, engine, payload.options, job.recipe.threads)
    record = _record(f"{variant}/{engine}", payload_bytes=size)
    record = dataclasses.replace(record, timed=payload.timed, regions=payload.regions)
    return _Candidate(variant, payload, executable, record)


def _timed(job: Job, candidates: list[_Candidate], inputs: Sequence[Mapping[str, Array]]) -> list[_Candidate]:
    """Time all candidates interleaved on the first golden input; best float is the base of the ratios."""
    from ...bench.meter import compare_latency

    job.ctx.progress("measure", 0, 1)
    runs = {c.record.name: (lambda c=c: c.executable.run(inputs[0])) for c in candidates}
    compared = compare_latency(runs, rounds=_ROUNDS, iterations=300, limit=_SECONDS[job.recipe.opt_level])
    floats = [c.record.name for c in candidates if c.variant == FLOAT]
    medians = {name: float(np.median(times)) for name, times in compared.round_medians_ms.items()}
    base = min(floats, key=medians.__getitem__) if floats else None
    for candidate in candidates:
        name = candidate.record.name
        latency = Metric("latency_p50", medians[name], "ms", Origin.MEASURED, compared.latencies[name].how)
        ratio = None
        if base is not None:
            how = f"median over {_ROUNDS} interleaved rounds, against {base}, {job.recipe.threads} thread(s)"
            value = compared.ratio(name, base).median
            ratio = Metric("latency_ratio", value, "x", Origin.MEASURED, how)
        candidate.record = dataclasses.replace(candidate.record, latency=latency, ratio_to_float=ratio)
    return candidates


def _by_preference(candidates: list[_Candidate], asked: str, force: bool) -> list[_Candidate]:
    """Return candidates fastest first.

    The asked precision wins ties, and always when forced; a model in one piece wins ties against one in
    regions, which needs two engines to run.
    """

    def key(candidate: _Candidate) -> tuple[bool, float]:
        # Times of one round were taken in the same load of the machine; medians over all rounds were not.
        time = candidate.record.ratio_to_float or candidate.record.latency
        wanted = candidate.variant == asked
        handicap = (1.0 if wanted else TIE) * (TIE if REGIONS in candidate.payload.options else 1.0)
        return (force and not wanted), (time.value or 0.0) * handicap if time is not None else 0.0

    return sorted(candidates, key=key)


def _verify(candidate: _Candidate, oracle: Oracle) -> list[dict[str, Array]]:
    outputs = [dict(candidate.executable.run(inputs)) for inputs in oracle.inputs]
    used = oracle.bound_used(candidate.variant, outputs)
    verdict = "" if used <= 1 else f"fails verification: difference is {used:.3g} times the bound"
    candidate.record = dataclasses.replace(
        candidate.record, verified=used <= 1, bound_used=used, verdict=verdict
    )
    return outputs


def _verify_batches(candidate: _Candidate, oracle: Oracle, model: ir.Model, *, emulated: bool) -> None:
    """Check what runs several samples at once, size by size; sizes that are too much are noted."""
    macs = count(model).macs
    checks = checks_of(candidate.executable, oracle.inputs[0], macs, emulated=emulated)
    for size in checks.run:
        rows = run_batch(candidate.executable, oracle.inputs, size)
        used = max(oracle.bound_used_by(candidate.variant, index, got) for index, got in rows)
        if used > 1:
            verdict = f"fails verification in batches of {size}: difference is {used:.3g} times the bound"
            candidate.record = dataclasses.replace(
                candidate.record, verified=False, bound_used=used, verdict=verdict
            )
            return
    if checks.left:
        notes = (*candidate.payload.notes, unrun_note(checks.left))
        candidate.payload = dataclasses.replace(candidate.payload, notes=notes)


def _why(kept: _Candidate, candidates: list[_Candidate], asked: str, pinned: bool) -> str:
    if pinned:
        return "pinned by the recipe"
    if kept.record.latency is None:
        return "the only candidate"
    if kept.variant != asked and kept.variant == FLOAT:
        rivals = [c.record for c in candidates if c.variant == asked]
        failed = [r for r in rivals if r.verified is False]
        if len(failed) == len(rivals):
            return f"{asked} does not verify; kept float"
        ratios = [r.ratio_to_float.value or 0.0 for r in rivals if r.ratio_to_float is not None]
        slower = f"{asked} takes {min(ratios):.2f}x the time of float on this machine"
        return f"{slower}; kept float (--force keeps {asked})"
    ratio = kept.record.ratio_to_float
    if ratio is not None and ratio.value is not None and kept.variant != FLOAT and ratio.value > TIE:
        return f"forced, although it takes {ratio.value:.2f}x the time of float on this machine"
    return "the fastest that verifies"


def _final(record: CandidateRecord, kept: _Candidate, why: str) -> CandidateRecord:
    if record.name == kept.record.name:
        return dataclasses.replace(record, chosen=True, verdict=why)
    return record if record.verdict else dataclasses.replace(record, verdict="not chosen")


def _record(name: str, payload_bytes: int = 0, verdict: str = "") -> CandidateRecord:
    return CandidateRecord(name, None, None, None, None, payload_bytes, False, verdict)


def _none_built(
    failed: Sequence[tuple[str, ParedError]], asked: str, records: Sequence[CandidateRecord]
) -> ParedError:
    """Return what kept the asked precision from being built: the one reason of all engines, else the list."""
    *others, last = errors = [err for name, err in failed if name.rpartition("/")[0] == asked]
    if all((err.reason, err.message) == (last.reason, last.message) for err in others):
        return last
    # What is not installed says least about the model. Else the last: engines come preferred first, and the
    # way out of an earlier one may be a later one.
    telling = next((err for err in errors if isinstance(err, MissingTool)), last)
    return _none_left(records, telling.next_step or _LOOK)


def _none_left(records: Sequence[CandidateRecord], way_out: str = _LOOK) -> ParedError:
    listing = "; ".join(f"{r.name}: {r.verdict or 'not checked'}" for r in records)
    return ParedError("no-candidate", f"no candidate can be shipped: {listing}", way_out)
