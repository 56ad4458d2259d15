"""The pruning that a recipe asks for, as pipeline text."""

from __future__ import annotations

from ..errors import PipelineError
from ..recipe import Recipe

_CRITERIA = {
    "magnitude": "criterion=magnitude",
    "wanda": "criterion=wanda",
    "wanda-dsnot": "criterion=wanda refine=dsnot",
    "sparsegpt": "criterion=sparsegpt",
}


def pruning_text(recipe: Recipe, *, has_calibration: bool) -> str:
    """Return the passes that stand for `sparsity`, `prune_criterion` and `prune_pattern`; empty without them.

    With calibration data the criterion is sparsegpt by default and the layers are fitted again from -O2 on;
    without, it is magnitude.

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
    criterion = recipe.prune_criterion or ("sparsegpt" if has_calibration else "magnitude")
    options = [_CRITERIA[criterion]] if criterion != "magnitude" else []
    if recipe.sparsity is not None:
        options.append(f"sparsity={recipe.sparsity:g}")
    if recipe.prune_pattern is not None:
        options.append(f'pattern="{recipe.prune_pattern}"')
    step = f"prune{{{' '.join(options)}}}"
    repairs = has_calibration and recipe.opt_level >= 2
    return f"{step},reconstruct" if repairs else step
