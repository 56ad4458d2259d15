"""Texts of options: shapes and tolerances."""

from __future__ import annotations

import doctest

import pytest

import pared
from pared.compiler import machine, pass_docs
from pared.compiler.cli import options, render, units
from pared.compiler.errors import ParedError


@pytest.mark.parametrize("module", [units, render, machine, pass_docs])
def test_examples_in_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("x:1x3x224x224", "x", (1, 3, 224, 224)),
        ("fingerprint:0:1x49x10", "fingerprint:0", (1, 49, 10)),
        ("x:batchx10", "x", ("batch", 10)),
        ("sr:", "sr", ()),
        ("x:7", "x", (7,)),
    ],
)
def test_a_shape_is_read(text: str, name: str, shape: tuple[int | str, ...]) -> None:
    assert options.parse_shapes([text]) == {name: shape}


def test_no_shapes_are_none() -> None:
    assert options.parse_shapes([]) is None


@pytest.mark.parametrize("text", ["1x3", ":1x3", "x:1xx3", "x:0x3", "x:-1x3", "x:1.5", "x:1,3"])
def test_a_wrong_shape_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ParedError, match="is not understood") as caught:
        options.parse_shapes([text])
    assert caught.value.reason == "bad-shape"


def test_the_same_input_twice_is_refused() -> None:
    with pytest.raises(ParedError, match="given twice"):
        options.parse_shapes(["x:1x2", "x:1x3"])


def test_tolerances_are_read_for_all_and_for_one_output() -> None:
    assert options.parse_tolerances("--rtol", ["1e-4", "out:0:0.5"]) == {"": 1e-4, "out:0": 0.5}


@pytest.mark.parametrize("text", ["small", "out:", "-1", "nan", "inf"])
def test_a_wrong_tolerance_is_refused(text: str) -> None:
    with pytest.raises(ParedError, match="is not a number"):
        options.parse_tolerances("--rtol", [text])


def test_settings_have_the_types_that_toml_gives_them() -> None:
    read = options.parse_settings("--engine-option", ["a=2", "b=2.5", "c=true", "d=xc7"])
    assert read == {"a": 2, "b": 2.5, "c": True, "d": "xc7"}


def test_a_setting_without_value_is_refused() -> None:
    with pytest.raises(ParedError, match="KEY=VALUE") as caught:
        options.parse_settings("--engine-option", ["a="])
    assert caught.value.reason == "bad-setting"


def test_an_engine_option_that_no_engine_has_is_refused() -> None:
    with pytest.raises(ParedError, match="no engine option 'speed'") as caught:
        pared.compile(b"", engine_options={"speed": 1})
    assert caught.value.reason == "engine-option"
