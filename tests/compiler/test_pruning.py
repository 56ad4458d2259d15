"""`--sparsity` and its companions become passes, or an error that names what contradicts what."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.compiler.cli.compile import merged_recipe, resolved_pipeline
from pared.compiler.driver.pruning import pruning_text
from pared.compiler.errors import PipelineError
from pared.compiler.recipe import Recipe


def text(has_calibration: bool = True, **keys: object) -> str:
    return pruning_text(Recipe.parse(dict(keys), "test"), has_calibration=has_calibration)


def test_without_a_level_nothing_is_pruned() -> None:
    assert text() == ""


def test_calibration_data_choose_the_second_order_and_the_repair() -> None:
    assert text(sparsity=0.7) == "prune{criterion=sparsegpt sparsity=0.7},reconstruct"
    assert text(has_calibration=False, sparsity=0.7) == "prune{sparsity=0.7}"
    assert text(sparsity=0.7, opt_level=1) == "prune{criterion=sparsegpt sparsity=0.7}"


def test_criterion_and_pattern_are_handed_on() -> None:
    found = text(has_calibration=False, prune_criterion="wanda-dsnot", prune_pattern="2:4")
    assert found == 'prune{criterion=wanda refine=dsnot pattern="2:4"}'


def test_datafree_pruning_reads_batchnorm_first_and_knows_the_bits() -> None:
    recipe = Recipe(sparsity=0.3, prune_criterion="datafree", precision="w6")
    passes = resolved_pipeline(recipe)
    assert passes.startswith("estimate-channels,")
    assert "prune-datafree{bits=6}" in passes  # 0.3 is the default


def test_pruning_stands_before_quantization_in_the_pipeline() -> None:
    recipe = Recipe(sparsity=0.5, precision="int8", calibration="c.npz")
    passes = resolved_pipeline(recipe)
    places = [passes.index(name) for name in ("prune{", "reconstruct", "balance", "quantize")]
    assert places == sorted(places)


def test_a_flag_wins_over_the_pipeline_that_a_saved_recipe_derived(tmp_path: Path) -> None:
    recipe = Recipe(sparsity=0.5)
    saved = tmp_path / "r.yaml"
    saved.write_text(recipe.model_copy(update={"pipeline": resolved_pipeline(recipe)}).text())
    assert "sparsity=0.8" in resolved_pipeline(merged_recipe(saved, {"sparsity": 0.8}))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"sparsity": 1.2}, "bad-value"),
        ({"sparsity": -0.1}, "bad-value"),
        ({"sparsity": 0.5, "prune_criterion": "guess"}, "bad-value"),
        ({"prune_criterion": "wanda"}, "sparsity-missing"),
        ({"sparsity": 0.5, "prune_criterion": "datafree", "prune_pattern": "2:4"}, "prune-pattern"),
        ({"sparsity": 0.5, "pipeline": "quantize"}, "sparsity-pipeline"),
    ],
)
def test_contradictions_and_levels_out_of_range_are_errors(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(PipelineError) as info:
        text(**keys)  # type: ignore[arg-type]
    assert info.value.reason == reason


@pytest.mark.parametrize(("pattern", "sparsity"), [("5:4", None), ("2:4", 0.7), ("sixteen", None)])
def test_impossible_patterns_are_errors_before_any_work(pattern: str, sparsity: float | None) -> None:
    with pytest.raises(PipelineError, match="prune: "):
        resolved_pipeline(Recipe(prune_pattern=pattern, sparsity=sparsity))
