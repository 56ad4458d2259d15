"""Which candidate is tried first, and what is said where none could be built.

The ratio to float decides, not times that other load has spoilt.
"""

from __future__ import annotations

from typing import cast

from pared.compiler.backend import REGIONS, Executable, Payload
from pared.compiler.driver.choose import _by_preference, _Candidate, _none_built
from pared.compiler.driver.report import CandidateRecord
from pared.compiler.errors import MissingTool, ParedError, UnsupportedOp
from pared.compiler.records import Metric, Origin


def candidate(variant: str, milliseconds: float, ratio: float) -> _Candidate:
    def metric(value: float) -> Metric:
        return Metric("time", value, "ms", Origin.MEASURED, "")

    record = CandidateRecord(variant, metric(milliseconds), metric(ratio), None, None, 0, False, "")
    return _Candidate(variant, Payload("ort", {}, {}), cast(Executable, None), record)


def in_regions(milliseconds: float, ratio: float) -> _Candidate:
    found = candidate("float", milliseconds, ratio)
    found.payload = Payload("mixed", {}, {REGIONS: 3})
    return found


def order(int8_ms: float, int8_ratio: float, *, force: bool = False) -> list[str]:
    candidates = [candidate("int8", int8_ms, int8_ratio), candidate("float", 0.1, 1.0)]
    return [c.variant for c in _by_preference(candidates, "int8", force)]


def test_a_lower_ratio_wins_although_a_burst_of_load_raised_the_median() -> None:
    assert order(int8_ms=0.11, int8_ratio=0.98) == ["int8", "float"]


def test_a_higher_ratio_loses_although_the_median_is_lower() -> None:
    assert order(int8_ms=0.09, int8_ratio=1.2) == ["float", "int8"]


def test_the_asked_precision_wins_a_tie() -> None:
    assert order(int8_ms=0.101, int8_ratio=1.01) == ["int8", "float"]


def test_force_prefers_the_asked_precision_at_any_ratio() -> None:
    assert order(int8_ms=0.3, int8_ratio=3.0, force=True) == ["int8", "float"]


def test_a_model_in_one_piece_wins_a_tie_against_one_in_regions() -> None:
    whole = candidate("float", 0.1, 1.0)
    assert _by_preference([in_regions(0.099, 0.99), whole], "float", False)[0] is whole


def test_regions_that_are_clearly_faster_win() -> None:
    regions = in_regions(0.09, 0.9)
    assert _by_preference([candidate("float", 0.1, 1.0), regions], "float", False)[0] is regions


def refusal(*failed: tuple[str, str, str]) -> ParedError:
    errors = [(name, UnsupportedOp(reason, text, f"avoid {text}")) for name, reason, text in failed]
    return _none_built(errors, "int8", [in_regions(1, 1).record])


def test_one_reason_of_all_engines_is_the_error() -> None:
    found = refusal(("int8/rtl", "r", "x"), ("int8/folded", "r", "x"), ("float/rtl", "other", "y"))
    assert (found.reason, found.message, found.next_step) == ("r", "x", "avoid x")


def test_engines_of_unlike_reasons_are_listed_with_the_way_out_of_the_last() -> None:
    found = refusal(("int8/rtl", "r", "x"), ("int8/folded", "other", "y"))
    assert (found.reason, found.next_step) == ("no-candidate", "avoid y")


def test_a_missing_package_is_the_first_way_out() -> None:
    failed = [
        ("int8/tvm", MissingTool("a", "no tvm", "install tvm")),
        ("int8/ort", UnsupportedOp("b", "x", "y")),
    ]
    assert _none_built(failed, "int8", []).next_step == "install tvm"
