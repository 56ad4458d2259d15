"""A compilation from start to end: `compile_model` for Python, `compile_recipe` for the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..recipe import Recipe
from ..records import Metric, Origin

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..artifact.read import Artifact
    from ..backend import Array, Port, Signature
    from ..data import Samples, Source
    from ..ir.importer import ModelSource
    from ..manager import Manager
    from .choose import Choice
    from .job import Inputs, Job, Progress
    from .report import CompileReport, Repeat
    from .variants import Variants


@dataclass(frozen=True)
class CompileResult:
    """The account of a compilation and, unless it was a dry run, the artifact."""

    report: CompileReport
    artifact: Artifact | None


def compile_model(
    model: ModelSource,
    target: str = "cpu",
    precision: str | None = None,
    calibration: Source | Samples | None = None,
    output: str | Path | None = None,
    *,
    sparsity: float | None = None,
    prune_criterion: str | None = None,
    prune_pattern: str | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    shrink: str | None = None,
    pipeline: str | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
    opt_level: int = 2,
    force: bool = False,
    max_drop: float | None = None,
    test_data: Source | Samples | None = None,
    metric: str | None = None,
    fallback: str = "error",
    threads: int = 1,
    engine: str | None = None,
    engine_options: Mapping[str, str | int | float | bool] | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Artifact:
    """Compile a model into an artifact: the fastest candidate that verifies.

    Args:
        model: path, bytes, `onnx.ModelProto` or `onnx_ir.Model`.
        target: name of a target or path of a target file.
        precision: `int8`, `int8-dynamic`, `w8`, `w4a8`, ...; None keeps float.
        calibration: `.npz`, folder of `.npy`, mapping of arrays or iterable of dicts; first axis = samples.
        output: folder of the artifact; None writes to a new temporary folder.
        sparsity: share of weights to set to zero, 0 to 1.
        prune_criterion: `magnitude`, `wanda`, `wanda-dsnot`, `sparsegpt`, or `datafree` (whole channels).
        prune_pattern: `2:4`, `16x1`, `shared32`, ...; None prunes single weights.
        max_macs: share of the multiply-accumulates to keep.
        max_params: share of the parameters to keep.
        shrink: how budgets are met: `lowrank` (default) or `channels`, which cuts whole ones.
        pipeline: pipeline text instead of the one that the options above and `opt_level` stand for.
        shapes: input name -> sizes that replace symbolic ones.
        exclude: node names or regular expressions that stay in float.
        seed: for every random choice.
        opt_level: 0..3 as in -O0..-O3.
        force: keep the asked precision although float is faster here.
        max_drop: largest allowed loss of the metric on `test_data`, in points.
        test_data: labelled samples for `max_drop`.
        metric: `top1`, `auc`, ... or `module:function`.
        fallback: `error`, or `cpu` to run refused nodes on the CPU.
        threads: threads per inference.
        engine: engine to use without measuring others.
        engine_options: name -> value, over those of the target.
        progress: called as `progress(label, done, total)`.
        cancel: set it from another thread to stop.

    Raises:
        ParedError: the model, the data or the request is at fault; nothing was written.
    """
    from .job import Inputs

    def path(value: object) -> str | None:
        return str(Path(value).absolute()) if isinstance(value, str | Path) else None

    raw: dict[str, object] = {
        "model": path(model), "target": target, "precision": precision, "pipeline": pipeline,
        "sparsity": sparsity, "prune_criterion": prune_criterion, "prune_pattern": prune_pattern,
        "max_macs": max_macs, "max_params": max_params, "shrink": shrink,
        "opt_level": opt_level, "shapes": {k: tuple(v) for k, v in (shapes or {}).items()},
        "calibration": path(calibration), "test_data": path(test_data), "metric": metric,
        "max_drop": max_drop, "exclude": tuple(exclude), "seed": seed, "force": force,
        "fallback": fallback, "threads": threads, "engine": engine,
        "engine_options": dict(engine_options or {}),
    }  # fmt: skip
    inputs = Inputs(model, calibration, test_data, progress=progress, cancel=cancel)
    recipe = Recipe.parse(raw, place="pared.compile")
    with _place(output) as out:
        artifact = compile_recipe(recipe, out, inputs=inputs).artifact
    assert artifact is not None, "a compilation with an output gives an artifact"
    return artifact


@contextlib.contextmanager
def _place(output: str | Path | None) -> Iterator[Path]:
    """Give the artifact's folder; a temporary one goes when the compilation fails."""
    if output is not None:
        yield Path(output)
        return
    folder = Path(tempfile.mkdtemp(prefix="pared-"))
    try:
        yield folder / "artifact"
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def compile_recipe(
    recipe: Recipe,
    out: Path | None,
    *,
    inputs: Inputs | None = None,
    verify_each: bool = False,
    dump_ir: Path | None = None,
    repeat: Repeat | None = None,
) -> CompileResult:
    """Compile what a recipe says.

    Args:
        recipe: every choice; paths in it are opened unless `inputs` holds the thing itself.
        out: folder of the artifact; None is a dry run: everything but the writing.
        inputs: what the caller has in memory.
        verify_each: full check after every pass.
        dump_ir: folder for the model after import and every pass.
        repeat: what a rebuild takes over from the artifact instead of measuring it again.

    Raises:
        ParedError: as `compile_model`.
    """
    from ..artifact.write import check_destination
    from .assemble import write_artifact
    from .job import Inputs, prepare
    from .placement import placement_notes
    from .scratch import scratch_folder

    clock = _Clock()
    if out is not None:
        check_destination(out)
    job = prepare(recipe, inputs or Inputs(), decisions=None if repeat is None else repeat.decisions)
    clock.lap("import")
    with scratch_folder() as scratch:
        from .choose import choose
        from .oracle import Oracle

        manager = _manager(job, verify_each, dump_ir, scratch)
        job, variants, notes = _variants(job, manager, repeat)
        notes += placement_notes(job, variants)
        clock.lap("passes")
        oracle = Oracle(variants.models, _fitted(_golden(job, variants), variants), recipe.seed)
        pinned = recipe.choice if repeat is None else repeat.choice.candidate
        choice = choose(job, variants, oracle, scratch, pinned)
        clock.lap("choose")
        report = _report(job, variants, choice, clock, notes)
        job.ctx.check_cancelled()
        if out is None:
            return CompileResult(report, None)
        # Shortened names lead back to the original ones through this.
        attachments = variants.attachments | dict(choice.payload.attachments)
        return CompileResult(report, write_artifact(job, choice, oracle, report, attachments, out, repeat))


def _manager(job: Job, verify_each: bool, dump_ir: Path | None, scratch: Path) -> Manager:
    from ..manager import Manager
    from .variants import output_sqnr

    samples = job.ctx.calibration
    measure = None if samples is None else lambda before, after: output_sqnr(before, after, samples)
    return Manager(verify_each=verify_each, dump_ir=dump_ir, measure=measure, scratch=scratch)


def _variants(job: Job, manager: Manager, repeat: Repeat | None) -> tuple[Job, Variants, list[str]]:
    from .budget import hold_budget
    from .variants import build_variants

    variants = build_variants(job, manager)
    # What a budget left in float is in the recipe's `exclude` by now; a repetition need not search again.
    return hold_budget(job, variants, manager) if repeat is None else (job, variants, [])


def _golden(job: Job, variants: Variants) -> list[dict[str, Array]]:
    from ..ir.stats import count
    from ..ort import make_session, run_session
    from .golden import golden_inputs
    from .variants import FLOAT

    model = variants.models[FLOAT]
    if job.ctx.calibration is not None:
        return golden_inputs(job.ctx.calibration, job.signature, job.recipe.seed, count(model).macs, len)
    # Only tries out sizes and integers, so neither tuned nor with copies of the weights.
    session = functools.cache(lambda: make_session(model, optimize="none", low_memory=True))
    return golden_inputs(
        None, job.signature, job.recipe.seed, count(model).macs, lambda inputs: run_session(session(), inputs)
    )


def _signature(signature: Signature, model: ir.Model) -> Signature:
    """Return a model's ports with the element types that its compiled form has."""
    kinds = {v.name: v.dtype.name for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is not None}

    def typed(ports: Sequence[Port]) -> tuple[Port, ...]:
        return tuple(dataclasses.replace(port, dtype=kinds.get(port.name, port.dtype)) for port in ports)

    return dataclasses.replace(signature, inputs=typed(signature.inputs), outputs=typed(signature.outputs))


def _fitted(inputs: Sequence[Mapping[str, Array]], variants: Variants) -> list[dict[str, Array]]:
    """Return inputs rounded to what the asked variant reads: half floats fit the float model too."""
    import numpy as np

    ports = variants.models[variants.asked].graph.inputs
    halves = {port.name for port in ports if port.dtype is not None and port.dtype.name == "FLOAT16"}
    return [
        {name: np.asarray(a, np.float16) if name in halves else a for name, a in one.items()}
        for one in inputs
    ]


def _report(
    job: Job, variants: Variants, choice: Choice, clock: _Clock, notes: Sequence[str]
) -> CompileReport:
    from ..ir.stats import count
    from .report import CompileReport, PassSummary, pass_seconds

    path = job.imported.path
    sizes = [Path(file).stat().st_size for file in choice.payload.files.values() if isinstance(file, Path)]
    source_bytes = 0 if path is None else path.stat().st_size
    return CompileReport(
        # The path as the recipe has it: a rebuild may find the same file elsewhere.
        source=job.recipe.model,
        source_sha256=job.imported.sha256,
        source_bytes=source_bytes
        + sum((path.parent / f).stat().st_size for f in job.imported.external if path),
        payload_bytes=sum(sizes),
        target=job.target.name,
        precision=choice.variant,
        pipeline=job.recipe.pipeline or "",
        signature=_signature(job.signature, variants.models[choice.variant]),
        original=count(job.imported.model),
        compiled=count(variants.models[choice.variant]),
        passes=tuple(PassSummary.of(record) for record in variants.records),
        seconds=clock.metrics() | pass_seconds(variants.records),
        candidates=choice.candidates,
        chosen=choice.name,
        notes=(*job.imported.notes, *notes, *_notes(job, variants, choice)),
    )


def _notes(job: Job, variants: Variants, choice: Choice) -> list[str]:
    from ..exclusion import idle_patterns
    from ..ir.walk import all_nodes

    calibration = job.ctx.calibration
    notes = list(calibration.notes) if calibration is not None else []
    notes += [note for record in variants.records for note in record.stats.notes]
    models = (job.imported.model, *variants.models.values())
    names = (str(node.name) for model in models for node in all_nodes(model))
    notes += [f"--exclude {p} matches no node" for p in idle_patterns(job.recipe.exclude, names)]
    telling = choice.why.startswith(("forced", "not measured", job.recipe.precision or "\0"))
    notes += choice.payload.notes
    return [*notes, choice.why] if telling else notes


class _Clock:
    """Wall time of the stages of one compilation."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage] = now - self._last
        self._last = now

    def metrics(self) -> dict[str, Metric]:
        how = "wall time, one run"
        return {stage: Metric(stage, s, "s", Origin.MEASURED, how) for stage, s in self._laps.items()}
