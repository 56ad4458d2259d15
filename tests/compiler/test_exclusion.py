"""What `--exclude` means."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from pared.compiler.driver import compile_recipe
from pared.compiler.exclusion import excluded_by, idle_patterns
from pared.compiler.recipe import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
CNN = EXAMPLES / "models" / "digits_cnn.onnx"


@pytest.mark.parametrize("pattern", ["conv_1", "conv.1", "conv.*", ".*"])
def test_a_regular_expression_must_match_the_whole_name(pattern: str) -> None:
    assert excluded_by("conv_1", [pattern]) == pattern
    assert excluded_by("a conv_1", ["conv.1"]) is None


def test_a_name_that_is_no_regular_expression_is_taken_as_it_is() -> None:
    assert excluded_by("conv(1", ["a", "conv(1"]) == "conv(1"
    assert excluded_by("conv1", ["conv(1"]) is None


def test_patterns_that_mean_no_node_are_told() -> None:
    assert idle_patterns(["a", "b.*", "c", "d("], ["a", "b1"]) == ["c", "d("]


def test_a_compilation_notes_an_exclusion_without_a_node() -> None:
    name = next(str(node.name) for node in ir.load(CNN).graph if node.op_type == "Conv")
    recipe = Recipe(model=str(CNN), precision="w8", exclude=(name, "nosuch"), choice="w8/ort")
    notes = compile_recipe(recipe, None).report.notes
    assert [note for note in notes if "exclude" in note] == ["--exclude nosuch matches no node"]
