from __future__ import annotations

from pathlib import Path

import pytest
import typer

from pared.compiler.cli.app import app
from pared.compiler.driver.precision import Precision, default_pipeline, parse_precision
from pared.compiler.errors import PipelineError
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.recipe import COMMAND_LINE, Recipe, flag_of
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
    assert caught.value.next_step
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message", "step"),
    [
        (
            {"sparsity": 1.2},
            "--sparsity is 1.2, it should be",
            "give --sparsity a number of at least 0 and at",
        ),
        ({"max_macs": 0}, "--max-macs is 0, it should be", "a number of more than 0 and at most 1"),
        ({"opt_level": 7}, "-O is 7, it should be", "give -O a number of at least 0 and at most 3"),
        ({"shrink": "half"}, "--shrink is 'half', it should", "one of 'lowrank' or 'channels'"),
        ({"calibration": 3}, "--calib-data is 3, it should", "give --calib-data a value of that kind"),
    ],
)
def test_a_wrong_flag_is_named_as_it_is_typed_and_says_what_it_takes(
    raw: dict[str, object], message: str, step: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        Recipe.parse(raw, COMMAND_LINE)
    assert message in caught.value.message
    assert step in caught.value.next_step


def test_a_wrong_key_of_python_keeps_its_name() -> None:
    with pytest.raises(PipelineError, match=r"max_drop is -1.*give max_drop a number of at least 0"):
        Recipe.parse({"max_drop": -1}, "pared.compile")


def test_flags_of_keys_are_flags_of_the_command_line() -> None:
    command = typer.main.get_command(app).commands["compile"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    # A rebuild sets it; no flag does.
    assert {flag_of(key) for key in Recipe.model_fields} - {flag_of("choice")} <= known


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
