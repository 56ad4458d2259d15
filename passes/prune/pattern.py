"""Which weights of a matrix go or stay together.

A weight is seen as matrices `[groups, rows, k]`: rows are outputs, `k` counts the inputs of one output
(of a convolution: channel, then kernel position). Spellings:

* `unstructured`: every weight on its own;
* `RxC`, such as `16x1`: blocks of R consecutive rows and C consecutive inputs;
* `N:M`, such as `2:4`: at most N of M consecutive inputs of a row stay;
* `N:M/R`: the same with one choice for R consecutive rows; `shared32` is `2:4/32`;
* `fan-in-N`: at most N inputs of every row stay, for neurons that are small enough to be tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...compiler.errors import PipelineError

_BLOCK = re.compile(r"(\d+)x(\d+)")
_FAN_IN = re.compile(r"fan-in-(\d+)")
_RATIO = re.compile(r"(\d+):(\d+)(?:/(\d+))?")
SPELLINGS = (
    "unstructured, 16x1 (any RxC), 2:4 (any N:M), 2:4/32 (N:M shared by rows), shared32 or fan-in-4 (any N)"
)


@dataclass(frozen=True)
class Pattern:
    """What is decided at once.

    Attributes:
        rows: consecutive rows that share a decision.
        columns: consecutive inputs that do; 1 for N:M.
        keep: N of N:M, else None.
        of: M of N:M, else None.
        fan_in: inputs of a row that stay, else None; `on` makes N:M of it.
    """

    rows: int = 1
    columns: int = 1
    keep: int | None = None
    of: int | None = None
    fan_in: int | None = None

    def on(self, inputs: int) -> Pattern:
        """Return the pattern on rows of so many inputs."""
        if self.fan_in is None:
            return self
        return Pattern(keep=min(self.fan_in, inputs), of=inputs)

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that the pattern fixes, or None."""
        return None if self.keep is None or self.of is None else 1.0 - self.keep / self.of

    @property
    def step(self) -> int:
        """Inputs are decided in groups of so many."""
        return self.of or self.columns

    @property
    def single(self) -> bool:
        """Whether weights of different rows are decided apart, and inputs too save for N:M."""
        return self.rows == 1 and self.columns == 1


def parse_pattern(text: str) -> Pattern:
    """Return the pattern of a spelling.

    Raises:
        PipelineError: unknown spelling, empty blocks or an impossible N:M.
    """
    if text == "unstructured":
        return Pattern()
    if text == "shared32":
        return Pattern(rows=32, keep=2, of=4)
    if match := _BLOCK.fullmatch(text):
        rows, columns = (int(part) for part in match.groups())
        if rows < 1 or columns < 1:
            raise PipelineError("prune-pattern", f"prune: pattern={text} has blocks without weights")
        return Pattern(rows, columns)
    if (match := _FAN_IN.fullmatch(text)) and int(match[1]):
        return Pattern(fan_in=int(match[1]))
    match = _RATIO.fullmatch(text)
    if match is None:
        raise PipelineError("prune-pattern", f"prune: unknown pattern={text!r}", f"valid: {SPELLINGS}")
    keep, of, rows = int(match[1]), int(match[2]), int(match[3] or 1)
    if not (of >= 1 and keep <= of and rows >= 1):
        raise PipelineError(
            "prune-pattern",
            f"prune: pattern={text} asks for {keep} of every {of} weights",
            "N:M keeps N of M consecutive inputs: 0 <= N <= M, M >= 1",
        )
    return Pattern(rows, 1, keep, of)
