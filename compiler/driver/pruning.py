"""The pruning, the low rank and the fewer channels that a recipe asks for, as pipeline text."""

from __future__ import annotations

from ..errors import PipelineError
from ..recipe import Recipe
from .precision import parse_precision

_CRITERIA = {
    "magnitude": "criterion=magnitude",
    "wanda": "criterion=wanda",
    "wanda-dsnot": "criterion=wanda refine=dsnot",
    "sparsegpt": "criterion=sparsegpt",
}


def shrinking_text(recipe: Recipe, *, has_calibration: bool) -> str:
    """Return the passes that make the model smaller: low rank or fewer channels first, then zeros.

    Raises:
        PipelineError: as `budget_text` and `pruning_text`.
    """
    factoring, pruning = budget_text(recipe), pruning_text(recipe, has_calibration=has_calibration)
    # Pruning brings its own repair; behind low rank it won up to 20 points (results/lowrank_accuracy.md).
    fitted = factoring.startswith("lowrank") and not pruning and has_calibration and recipe.opt_level >= 2
    return ",".join(text for text in (factoring, pruning, "reconstruct" if fitted else "") if text)


def budget_text(recipe: Recipe) -> str:
    """Return the pass that stands for `max_macs` and `max_params`, by `shrink`; empty without them.

    Raises:
        PipelineError: a way without a budget, or a pipeline that does not shrink beside a budget.
    """
    budgets = {"macs": recipe.max_macs, "params": recipe.max_params}
    options = [f"{name}={share:g}" for name, share in budgets.items() if share is not None]
    if not options and recipe.shrink is not None:
        raise PipelineError(
            "budget-missing",
            f"shrink {recipe.shrink!r} says how to make the model smaller, but not how much",
            "give --max-macs 0.5 or --max-params 0.5",
        )
    if not options:
        return ""
    name, what = (
        ("prune-channels", "cut channels") if recipe.shrink == "channels" else ("lowrank", "factor layers")
    )
    if recipe.pipeline is not None and name not in recipe.pipeline:
        raise PipelineError(
            "budget-pipeline",
            f"max_macs or max_params is asked for, and a pipeline is given that does not {what}",
            f"write {name}{{macs=...}} into the pipeline, or leave one of them out",
        )
    # Multiples of 8: half a vector of 16 floats costs little, and small nets reach their budgets.
    options.append("round_to=8")
    # Cut layers are fitted by the pass itself: what stands behind no longer knows their original outputs.
    options += ["fit=false"] if recipe.shrink == "channels" and recipe.opt_level < 2 else []
    return f"{name}{{{' '.join(options)}}}"


def pruning_text(recipe: Recipe, *, has_calibration: bool) -> str:
    """Return the passes that stand for `sparsity`, `prune_criterion` and `prune_pattern`; empty without them.

    With calibration data the criterion is sparsegpt by default and the layers are fitted again from -O2 on;
    without, it is magnitude. `datafree` is about whole channels.

    Raises:
        PipelineError: a criterion without a level, or a pipeline that does not prune beside a level.
    """
    asked = recipe.sparsity is not None or recipe.prune_pattern is not None
    if not asked and recipe.prune_criterion is not None:
        raise PipelineError(
            "sparsity-missing",
            f"prune_criterion {recipe.prune_criterion!r} says how to prune, but not how much",
            "give --sparsity 0.5, or --prune-pattern 2:4",
        )
    if not asked:
        return ""
    if recipe.pipeline is not None and "prune" not in recipe.pipeline:
        raise PipelineError(
            "sparsity-pipeline",
            "sparsity is asked for, and a pipeline is given that does not prune",
            "write prune{sparsity=...} into the pipeline, or leave one of them out",
        )
    if recipe.prune_criterion == "datafree":
        return _datafree(recipe)
    criterion = recipe.prune_criterion or ("sparsegpt" if has_calibration else "magnitude")
    options = [_CRITERIA[criterion]] if criterion != "magnitude" else []
    if recipe.sparsity is not None:
        options.append(f"sparsity={recipe.sparsity:g}")
    if recipe.prune_pattern is not None:
        options.append(f'pattern="{recipe.prune_pattern}"')
    step = f"prune{{{' '.join(options)}}}"
    repairs = has_calibration and recipe.opt_level >= 2
    return f"{step},reconstruct" if repairs else step


def _datafree(recipe: Recipe) -> str:
    """Whole channels go; what rounding to few bits costs is made up for as well."""
    if recipe.sparsity is None or recipe.prune_pattern is not None:
        raise PipelineError(
            "prune-pattern",
            f"prune_criterion datafree takes whole channels, not prune_pattern {recipe.prune_pattern!r}",
            "give --sparsity without --prune-pattern, or another criterion",
        )
    precision = parse_precision(recipe.precision)
    bits = f" bits={precision.weights}" if precision is not None and precision.weights >= 2 else ""
    return f"prune-datafree{{sparsity={recipe.sparsity:g}{bits}}}"
