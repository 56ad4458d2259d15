"""Regions and timed choices of a candidate, as the command line shows them."""

from __future__ import annotations

import io

from rich.console import Console

from pared.compiler.backend import RegionRecord, TimedChoice
from pared.compiler.cli.regions_view import candidate_sections
from pared.compiler.driver.report import CandidateRecord
from pared.compiler.records import Metric, Origin


def shown(regions: tuple[RegionRecord, ...] = (), timed: tuple[TimedChoice, ...] = ()) -> str:
    candidate = CandidateRecord("float/mixed", None, None, True, 0.5, 1000, True, "", timed, regions)
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        for section in candidate_sections(candidate):
            console.print(section)
    return " ".join(captured.get().split())


def choice(what: str) -> TimedChoice:
    times = {
        name: Metric("time", value, "us", Origin.MEASURED, "")
        for name, value in (("ort alone", 20.0), ("native 0", 10.0))
    }
    return TimedChoice(what, times, "native 0")


def test_a_plain_candidate_has_no_sections() -> None:
    assert shown() == ""


def test_a_region_shows_its_engine_its_nodes_and_why_it_is_not_native() -> None:
    text = shown(
        (RegionRecord("native", ("conv1", "conv2"), ()), RegionRecord("ort", ("sin",), ("no rule",)))
    )
    assert "native 2 conv1 … conv2" in text
    assert "ort 1 sin … sin no rule" in text


def test_the_plan_of_the_whole_model_comes_first_with_its_times() -> None:
    text = shown(timed=(choice("region abc"), choice("plan abc")))
    assert text.index("whole model ort alone 20 us, native 0 10 us") < text.index("region abc")
