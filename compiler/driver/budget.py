"""Accuracy-controlled fallback: layers are left in float until a metric drops no further than asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from ...passes.quantize.fallback import search_fallback
from ...passes.quantize.materialize import apply_plan
from ...passes.quantize.plan import QuantPlan
from ...passes.quantize.quantize import Quantize
from ..backend import Array, Arrays
from ..data import Samples
from ..errors import DataError, PipelineError
from ..ir.shapes import infer_shapes
from ..manager import Manager
from ..ort import make_session, run_session
from ..pass_api import Effect
from ..verify.figures import compare_metric
from ..verify.records import MetricResult
from .job import Job
from .variants import FLOAT, Variants, build_variants

_PLAN = "quant_plan.json"


def hold_budget(job: Job, variants: Variants, manager: Manager) -> tuple[Job, Variants, list[str]]:
    """Return job and variants whose asked precision keeps within `max_drop`, and notes on what that took.

    The layers found are added to the recipe's `exclude`, so that a rebuild need not search. When even that is
    not enough the asked variant is dropped and float remains.

    Raises:
        DataError: no labelled data to measure the drop on.
        PipelineError: the pipeline has no `quantize` to take layers out of.
    """
    limit = job.recipe.max_drop
    if limit is None or variants.asked == FLOAT:
        return job, variants, []
    result = _measure(job, variants.models)
    if _drop(result) <= limit:
        return job, variants, [_note(result, ())]
    nodes = _search(job, variants, limit)
    exclude = tuple(dict.fromkeys((*job.recipe.exclude, *nodes)))
    recipe = job.recipe.model_copy(update={"exclude": exclude})
    job = dataclasses.replace(job, recipe=recipe, ctx=dataclasses.replace(job.ctx, exclude=exclude))
    variants = build_variants(job, manager)
    if variants.asked == FLOAT:
        return job, variants, [f"--max-drop {limit:g} leaves no layer to quantize; kept float"]
    result = _measure(job, variants.models)
    if _drop(result) <= limit:
        return job, variants, [_note(result, nodes)]
    note = f"{variants.asked} loses {_drop(result):.2f} even with {len(nodes)} layers in float; kept float"
    return job, dataclasses.replace(variants, models={FLOAT: variants.models[FLOAT]}), [note]


def _search(job: Job, variants: Variants, limit: float) -> tuple[str, ...]:
    at = next((i for i, p in enumerate(job.passes) if isinstance(p, Quantize)), None)
    first = next(i for i, p in enumerate(job.passes) if p.effect is Effect.LOSSY)
    if at is None or at != first or _PLAN not in variants.attachments:
        raise PipelineError(
            "max-drop-pipeline",
            "--max-drop takes layers out of `quantize`, which must be the first lossy pass of the pipeline",
        )
    before, rest = variants.models[FLOAT], job.passes[at + 1 :]

    def score(plan: QuantPlan) -> float:
        draft = before.clone()
        apply_plan(draft, plan)
        infer_shapes(draft)
        planned = Manager().run(draft, rest, job.ctx).model
        return -_drop(_measure(job, {FLOAT: before, "planned": planned}))

    plan = QuantPlan.from_json(variants.attachments[_PLAN])
    samples = job.ctx.calibration if job.ctx.calibration is not None else _labelled(job)
    return search_fallback(before, plan, samples, score, 0.0, limit, job.ctx).float_nodes


def _measure(job: Job, models: Mapping[str, ir.Model]) -> MetricResult:
    """Return the metric of the last model beside that of the first."""
    first, *_, last = (_runner(model) for model in models.values())
    return compare_metric(job.recipe.metric, first, last, _labelled(job))


def _runner(model: ir.Model) -> Callable[[Arrays], dict[str, Array]]:
    session = make_session(model)
    return lambda inputs: run_session(session, inputs)


def _labelled(job: Job) -> Samples:
    samples = job.test_data if job.test_data is not None else job.ctx.calibration
    if samples is None or (samples.labels is None and job.recipe.metric not in ("mse", "cosine")):
        raise DataError(
            "test-labels-missing",
            "--max-drop measures the loss of a metric, which needs labels",
            "give --test-data T.npz with an array `labels`, or --metric cosine",
        )
    return samples


def _drop(result: MetricResult) -> float:
    assert result.drop is not None, "both models are at hand"
    return result.drop


def _note(result: MetricResult, nodes: Sequence[str]) -> str:
    left = f"; left in float: {', '.join(nodes)}" if nodes else ""
    drop = f"{_drop(result):.2f} {result.unit}".strip()
    return f"{result.metric} drops by {drop} on {result.samples} samples ({result.note}){left}"
