"""Outputs against what they should be, within a stated bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..backend import Array, Arrays
from ..differences import largest_difference
from .records import OutputCheck

GIVEN = "given by the user"


@dataclass(frozen=True)
class Limit:
    """Allowed is `atol + rtol_of_max * max|want|`; zeros mean bit-exact."""

    atol: float
    rtol_of_max: float
    how: str

    def allowed(self, want: Array) -> float:
        """Return the absolute difference that is allowed beside `want`."""
        if self.rtol_of_max == 0 or want.dtype.kind not in "iufb" or not want.size:
            return self.atol
        finite = np.abs(want[np.isfinite(want)].astype(np.float64))
        return self.atol + self.rtol_of_max * (float(finite.max()) if finite.size else 0.0)


# Judges one output of one sample anew, by a bound of its own: (name, got, want) -> share of it, bound.
Again = Callable[[str, Array, Array], tuple[float, float]]


def override(limit: Limit, name: str, rtol: Mapping[str, float], atol: Mapping[str, float]) -> Limit:
    """Replace a stated limit by the user's tolerances; key `""` is for every output.

    Giving one of the two sets the other to 0, so that the user's number is the whole limit.
    """
    relative, absolute = rtol.get(name, rtol.get("")), atol.get(name, atol.get(""))
    if relative is None and absolute is None:
        return limit
    return Limit(absolute or 0.0, relative or 0.0, GIVEN)


@dataclass
class OutputJudge:
    """Collects samples of one output."""

    name: str
    against: Literal["reference", "golden"]
    limit: Limit
    _worst: tuple[float, float, int] = (0.0, 0.0, 0)  # share of the bound, bound, sample
    _largest: float = 0.0
    _samples: int = field(default=0)
    _again: int = field(default=0)

    def add(self, got: Array, want: Array, again: Again | None = None) -> None:
        """Compare one sample; beyond the stated bound `again` decides, unless the user gave the bound."""
        difference, allowed = largest_difference(got, want), self.limit.allowed(want)
        share = 0.0 if difference == 0 else difference / allowed if allowed > 0 else math.inf
        if share > 1 and again is not None and self.limit.how != GIVEN:
            share, allowed = again(self.name, got, want)
            self._again += 1
        if self._samples == 0 or share > self._worst[0]:
            self._worst = share, allowed, self._samples
        self._largest = max(self._largest, difference)
        self._samples += 1

    @property
    def seen(self) -> bool:
        """Whether any sample was added."""
        return self._samples > 0

    def result(self) -> OutputCheck:
        """Return the verdict over everything added."""
        used, allowed, sample = self._worst
        return OutputCheck(
            self.name,
            self.against,
            used <= 1,
            self._largest,
            allowed,
            used,
            sample,
            self._samples,
            self._how(),
        )

    def _how(self) -> str:
        if not self._again:
            return self.limit.how
        return (
            f"{self.limit.how}; {self._again} of {self._samples} samples, beyond it, judged by own bounds: "
            "up to 32 more runs each, in which quantizers decide anew"
        )


def judge_all(
    judges: Mapping[str, OutputJudge], got: Arrays, want: Arrays, again: Again | None = None
) -> None:
    """Hand one sample's outputs to their judges."""
    for name, judge in judges.items():
        judge.add(np.asarray(got[name]), np.asarray(want[name]), again)
