"""Accuracy-controlled fallback: layers are left as they are until a metric drops no further than asked.

Where quantizing is the first lossy step, layers are taken out of the quantization plan. In other pipelines
they are taken out one after the other, those first that add most noise to what flows through them.
"""

from __future__ import annotations

import bisect
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
from ..ir.walk import all_nodes
from ..manager import Manager
from ..ort import make_session, run_session
from ..pass_api import Effect
from ..verify.figures import compare_metric
from ..verify.layers import compare_layers
from ..verify.records import LayerReport, MetricResult
from .job import Job
from .sensitivity import LAYERS
from .variants import FLOAT, Variants, build_variants

_PLAN = "quant_plan.json"
_SQNR_SAMPLES = 8


def hold_budget(job: Job, variants: Variants, manager: Manager) -> tuple[Job, Variants, list[str]]:
    """Return job and variants whose asked precision keeps within `max_drop`, and notes on what that took.

    The layers found are added to the recipe's `exclude`, so that a rebuild need not search. When even that is
    not enough the asked variant is dropped and float remains.

    Raises:
        DataError: no labelled data to measure the drop on.
    """
    limit = job.recipe.max_drop
    if limit is None or variants.asked == FLOAT:
        return job, variants, []
    result = _measure(job, variants.models)
    if _drop(result) <= limit:
        return job, variants, [_note(result, ())]
    search = _plan_search if _quantizes_first(job, variants) else _search
    nodes = search(job, variants, limit)
    job = _without(job, nodes)
    variants = _built(job, manager, nodes, limit)
    if variants.asked == FLOAT:
        return job, variants, [f"--max-drop {limit:g} leaves no layer to change; kept float"]
    result = _measure(job, variants.models)
    if _drop(result) <= limit:
        return job, variants, [_note(result, nodes)]
    note = f"{variants.asked} loses {_drop(result):.2f} with {len(nodes)} layers left as they are; kept float"
    return job, dataclasses.replace(variants, models={FLOAT: variants.models[FLOAT]}), [note]


def _built(job: Job, manager: Manager, nodes: Sequence[str], limit: float) -> Variants:
    try:
        return build_variants(job, manager)
    except PipelineError as error:
        raise PipelineError(
            "budgets-contradict",
            f"--max-drop {limit:g} leaves {len(nodes)} layer(s) as they are, and then {error.message}",
            "relax --max-drop or the other budget",
        ) from error


def _without(job: Job, nodes: Sequence[str]) -> Job:
    """Return the job with more nodes excluded, in recipe and context."""
    exclude = tuple(dict.fromkeys((*job.recipe.exclude, *nodes)))
    recipe = job.recipe.model_copy(update={"exclude": exclude})
    return dataclasses.replace(job, recipe=recipe, ctx=dataclasses.replace(job.ctx, exclude=exclude))


def _first_lossy(job: Job) -> int:
    return next(i for i, p in enumerate(job.passes) if p.effect is Effect.LOSSY)


def _quantizes_first(job: Job, variants: Variants) -> bool:
    return isinstance(job.passes[_first_lossy(job)], Quantize) and _PLAN in variants.attachments


def _search(job: Job, variants: Variants, limit: float) -> tuple[str, ...]:
    """Return the fewest of the noisiest layers that must stay, by bisection over their number."""
    samples = job.ctx.calibration if job.ctx.calibration is not None else _labelled(job)
    before, after = variants.models[FLOAT], variants.models[variants.asked]
    report = compare_layers(before, after, samples.head(_SQNR_SAMPLES))
    order = suspects(before, report)

    def holds(count: int) -> bool:
        try:
            tried = build_variants(_without(job, order[:count]), Manager())
        except PipelineError:
            return False  # a budget that cannot be met without these layers
        return tried.asked == FLOAT or _drop(_measure(job, tried.models)) <= limit

    return tuple(order[: bisect.bisect_left(range(len(order)), True, key=holds)])


def suspects(model: ir.Model, report: LayerReport) -> list[str]:
    """Return the layers with weights in `model`, the original, those first that may have added most noise.

    A layer whose output was fused away answers for the next value that was compared; layers that no
    compared value hangs on come last.
    """
    nodes = {node.name: node for node in model.graph}
    found: dict[str, None] = {}
    seen: set[ir.Node] = set()
    for record in report.most_hurt(len(report.layers)):
        pending = [nodes[record.node]]
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op_type in LAYERS:
                found[node.name or ""] = None
            else:
                makers = (value.producer() for value in node.inputs if value is not None)
                pending += [maker for maker in makers if maker is not None]
    found.update(dict.fromkeys(node.name or "" for node in all_nodes(model) if node.op_type in LAYERS))
    return list(found)


def _plan_search(job: Job, variants: Variants, limit: float) -> tuple[str, ...]:
    at = _first_lossy(job)
    before, rest = variants.models[FLOAT], job.passes[at + 1 :]
    # What repairs compares with the float model, not with the draft that the plan was applied to.
    ctx = dataclasses.replace(job.ctx, original=before, attachments=variants.attachments)

    def score(plan: QuantPlan) -> float:
        draft = before.clone()
        apply_plan(draft, plan)
        infer_shapes(draft)
        planned = Manager().run(draft, rest, ctx).model
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
    left = f"; left as they are: {', '.join(nodes)}" if nodes else ""
    drop = f"{_drop(result):.2f} {result.unit}".strip()
    return f"{result.metric} drops by {drop} on {result.samples} samples ({result.note}){left}"
