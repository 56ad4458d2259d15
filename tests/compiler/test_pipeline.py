from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.compiler.errors import PipelineError
from pared.compiler.pass_api import Effect, PassStats
from pared.compiler.pipeline import parse_pipeline, print_pipeline
from pared.compiler.registry import MACROS, PASSES


@dataclass(frozen=True)
class Shrink:
    name: ClassVar[str] = "shrink"
    effect: ClassVar[Effect] = Effect.LOSSY
    bits: Literal[2, 4, 8] = 8
    ratio: float = 0.5
    per_row: bool = False
    label: str = ""
    limit: int | None = None

    def apply(self, model: object, ctx: object) -> PassStats:
        return PassStats()


TABLE = {"shrink": lambda: Shrink}


def parse(text: str) -> list[Shrink]:
    return parse_pipeline(text, TABLE, {"twice": "shrink,shrink{bits=4}"})  # type: ignore[arg-type,return-value]


def test_options_take_the_types_of_their_fields() -> None:
    (p,) = parse('shrink{bits=2 ratio=1e-3 per_row=true label="a b,{c}" limit=7}')
    assert p == Shrink(bits=2, ratio=1e-3, per_row=True, label="a b,{c}", limit=7)


def test_a_macro_expands_in_place() -> None:
    assert parse("twice,shrink{bits=2}") == [Shrink(), Shrink(bits=4), Shrink(bits=2)]


def test_empty_text_is_no_passes() -> None:
    assert parse("  ") == []


@given(
    st.builds(
        Shrink,
        bits=st.sampled_from([2, 4, 8]),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        per_row=st.booleans(),
        label=st.text(
            st.characters(codec="ascii", exclude_characters='"\\', min_codepoint=32, max_codepoint=126)
        ),
        limit=st.none() | st.integers(),
    )
)
def test_text_round_trips(p: Shrink) -> None:
    assert parse(print_pipeline([p, Shrink()])) == [p, Shrink()]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "reason", "mention"),
    [
        ("shrnk", "unknown-pass", "did you mean shrink"),
        ("shrink{bit=4}", "unknown-option", "did you mean bits"),
        ("shrink{bits=3}", "bad-option", "bits"),
        ("shrink{ratio=wide}", "bad-option", "ratio"),
        ("shrink{bits}", "pipeline-syntax", "key=value"),
        ("shrink shrink", "pipeline-syntax", "name{key=value"),
        ("shrink,", "pipeline-syntax", "name{key=value"),
        ("twice{bits=4}", "pipeline-option", "takes no options"),
    ],
)
def test_mistakes_name_the_way_out(text: str, reason: str, mention: str) -> None:
    with pytest.raises(PipelineError, match=mention) as caught:
        parse(text)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_registered_pass_loads_under_its_own_name(name: str) -> None:
    cls = PASSES[name]()
    assert cls.name == name
    assert parse_pipeline(print_pipeline([cls()]), PASSES, MACROS) == [cls()]


@pytest.mark.parametrize("macro", sorted(MACROS))
def test_every_macro_parses(macro: str) -> None:
    assert parse_pipeline(macro, PASSES, MACROS)


def test_the_canonicalize_macros_are_the_orders_that_the_passes_give() -> None:
    from pared.passes.canonicalize import EXACT_ORDER, ORDER

    assert MACROS["canonicalize-exact"] == ",".join(EXACT_ORDER)
    assert MACROS["canonicalize"] == ",".join(ORDER)
