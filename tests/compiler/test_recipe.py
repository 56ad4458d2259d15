from __future__ import annotations

from pathlib import Path

import pytest

from pared.compiler.driver.precision import Precision, default_pipeline, parse_precision
from pared.compiler.errors import PipelineError
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.recipe import Recipe
from pared.compiler.registry import MACROS, PASSES


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_saved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = Recipe(model="/m.onnx", precision="int8", shapes={"x": (1, "n", 3)}, exclude=("fc.*",))
    assert Recipe.read(write(tmp_path, recipe.text())) == recipe


def test_relative_paths_are_taken_from_the_recipe(tmp_path: Path) -> None:
    recipe = Recipe.read(write(tmp_path, "model: m.onnx\ncalibration: data/c.npz\n"))
    assert (recipe.model, recipe.calibration) == (str(tmp_path / "m.onnx"), str(tmp_path / "data/c.npz"))


@pytest.mark.parametrize(
    ("text", "reason", "mention"),
    [
        ("precison: int8", "unknown-key", "did you mean precision"),
        ("opt_level: 7", "bad-value", "opt_level"),
        ("max_drop: -1", "bad-value", "max_drop"),
        ("- a\n- b", "recipe-unreadable", "found list"),
        ("a: [", "recipe-unreadable", "key: value"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, reason: str, mention: str) -> None:
    with pytest.raises(PipelineError, match=mention) as caught:
        Recipe.read(write(tmp_path, text))
    assert caught.value.reason == reason
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (None, None),
        ("fp32", None),
        ("int8", Precision(8, 8)),
        ("int8-dynamic", Precision(8, 8, "dynamic")),
        ("w4", Precision(4, None)),
        ("w4a8", Precision(4, 8)),
        ("b3", Precision(8, None, bases=3)),
        ("b2a8", Precision(8, 8, bases=2)),
        ("ternary", Precision(8, None, bases=1, ternary=True)),
        ("ternary-a8", Precision(8, 8, bases=1, ternary=True)),
    ],
)
def test_precision_spellings(text: str | None, want: Precision | None) -> None:
    assert parse_precision(text) == want


@pytest.mark.parametrize(
    "text", ["int9", "w0a8", "w17", "8", "w8a", "w9abf16", "b0", "b5", "b2a4", "ternary2", ""]
)
def test_unknown_precisions_list_the_valid_ones(text: str) -> None:
    with pytest.raises(PipelineError, match="valid: fp32, fp16"):
        parse_precision(text)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "precision",
    [
        None,
        "int8",
        "int8-dynamic",
        "int8-datafree",
        "w4",
        "w2a2",
        "w8a16",
        "fp16",
        "bf16",
        "w4abf16",
        "b1",
        "b2a8",
        "ternary",
    ],
)
def test_every_default_pipeline_parses(precision: str | None, level: int) -> None:
    parse_pipeline(default_pipeline(parse_precision(precision), level), PASSES, MACROS)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(PipelineError, match="seed"):
        Recipe.parse({"seed": -1}, place="here")
