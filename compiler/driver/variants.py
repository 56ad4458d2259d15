"""Runs the pipeline once and keeps two models: before the first lossy pass (float) and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..backend import Array
from ..data import Samples
from ..differences import Sqnr
from ..ir.export import weight_bytes
from ..manager import Manager, PassRecord, PipelineResult
from ..ort import make_session, run_session
from ..pass_api import Context, Effect, Pass
from .job import Job

FLOAT = "float"
_SQNR_SAMPLES = 2
# Optimising folds quantized weights into float ones; with so many bytes of them that is not worth it.
_HEAVY = 128 << 20


@dataclass(frozen=True)
class Variants:
    """Models by precision name: `float`, and the asked one when a lossy pass changed something.

    Attributes:
        records: of every pass that led to the last variant.
        attachments: files for `reports/`.
    """

    models: dict[str, ir.Model]
    records: tuple[PassRecord, ...]
    attachments: dict[str, str]

    @property
    def asked(self) -> str:
        """Name of the variant that the whole pipeline made."""
        return list(self.models)[-1]


def build_variants(job: Job, manager: Manager) -> Variants:
    """Run the pipeline; raises what the manager raises."""
    split = next((i for i, p in enumerate(job.passes) if p.effect is Effect.LOSSY), len(job.passes))
    exact = manager.run(job.imported.model, job.passes[:split], job.ctx)
    if split == len(job.passes):
        return Variants({FLOAT: exact.model}, exact.records, exact.attachments)
    lossy = _rest(exact, job.passes[split:], job.ctx, manager)
    pruned = job.recipe.sparsity is not None or job.recipe.prune_pattern is not None
    name = job.recipe.precision or ("sparse" if pruned else "custom")
    models = {FLOAT: exact.model} | ({name: lossy.model} if _changed(lossy) else {})
    return Variants(models, lossy.records, lossy.attachments)


def _rest(exact: PipelineResult, passes: Sequence[Pass], ctx: Context, manager: Manager) -> PipelineResult:
    ctx = replace(ctx, attachments=exact.attachments)
    result = manager.run(exact.model, passes, ctx, first=len(exact.records) + 1)
    return PipelineResult(result.model, exact.records + result.records)


def _changed(result: PipelineResult) -> bool:
    return any(r.effect is Effect.LOSSY and r.stats.changed for r in result.records)


def output_sqnr(before: ir.Model, after: ir.Model, samples: Samples) -> float:
    """Return the SQNR in dB of all float outputs together, `after` against `before`, on a few samples."""
    few = list(samples.head(_SQNR_SAMPLES).batches(1))
    total = Sqnr()
    for want, got in zip(_outputs(before, few), _outputs(after, few), strict=True):
        for name in (name for name, array in want.items() if array.dtype.kind == "f"):
            total.add(want[name], got[name])
    return total.sqnr_db


def _outputs(model: ir.Model, inputs: Sequence[dict[str, Array]]) -> list[dict[str, Array]]:
    """Run a model; the session is gone before the next one is made, since each may hold all weights."""
    heavy = weight_bytes(model) > _HEAVY
    session = make_session(model, optimize="none" if heavy else "basic", low_memory=heavy)
    return [run_session(session, one) for one in inputs]
