"""The catalogue of passes is read from the passes themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from pared.compiler.pass_api import Context, Effect, PassStats
from pared.compiler.pass_docs import OptionDoc, pass_catalog
from pared.compiler.registry import MACROS, PASSES


@dataclass(frozen=True)
class Shrink:
    """Make things smaller.

    Lossy.
    """

    name: ClassVar[str] = "shrink"
    effect: ClassVar[Effect] = Effect.LOSSY
    bits: Literal[4, 8] = 8
    per_row: bool = False
    limit: float | None = None

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        return PassStats()


def test_a_pass_is_described_by_its_own_declaration() -> None:
    catalog = pass_catalog({"shrink": lambda: Shrink}, {"all": "shrink,shrink{bits=4}"})
    found = catalog.passes[0]
    assert (found.name, found.effect, found.summary) == ("shrink", Effect.LOSSY, "Make things smaller.")
    assert found.description == "Make things smaller.\n\nLossy."
    assert found.options == (
        OptionDoc("bits", "4 | 8", 8),
        OptionDoc("per_row", "true | false", False),
        OptionDoc("limit", "number | null", None),
    )
    assert [(m.name, m.pipeline) for m in catalog.macros] == [("all", "shrink,shrink{bits=4}")]


def test_every_registered_pass_has_a_summary() -> None:
    catalog = pass_catalog()
    assert [p.name for p in catalog.passes] == sorted(PASSES)
    assert [m.name for m in catalog.macros] == sorted(MACROS)
    assert [p.name for p in catalog.passes if not p.summary.endswith(".")] == []
