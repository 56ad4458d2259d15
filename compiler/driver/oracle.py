"""What each variant must give on the golden inputs, and how far an engine may be from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..backend import Array
from ..differences import largest_difference

if TYPE_CHECKING:
    from ...backends.reference.bound import Bound, Deriver, SampleJudge


class Oracle:
    """Reference outputs and derived bounds of every variant, worked out when first needed."""

    def __init__(
        self, models: Mapping[str, ir.Model], inputs: Sequence[Mapping[str, Array]], seed: int
    ) -> None:
        self.inputs = list(inputs)
        self._models = models
        self._seed = seed
        self._derivers: dict[str, Deriver] = {}
        self._judges: dict[int, SampleJudge] = {}
        self._known: dict[str, tuple[list[dict[str, Array]], dict[str, Bound]]] = {}

    def bounds(self, variant: str) -> dict[str, Bound]:
        """Return the bound of every output."""
        return self._of(variant)[1]

    def bound_used(self, variant: str, outputs: Sequence[Mapping[str, Array]]) -> float:
        """Return the largest |difference| / bound over samples and outputs; above 1 is a failure.

        A sample beyond the stated bound is judged by one of its own; see `Deriver.again`.
        """
        assert len(outputs) == len(self.inputs), "outputs for every golden input"
        # Of one candidate: what they run for its samples serves its batches too.
        self._judges = {}
        return max((self.bound_used_by(variant, i, got) for i, got in enumerate(outputs)), default=0.0)

    def bound_used_by(self, variant: str, index: int, got: Mapping[str, Array]) -> float:
        """Return the same of further outputs of the last candidate, for one golden input."""
        want, bounds = self._of(variant)
        if index not in self._judges:
            self._judges[index] = self._derivers[variant].again(self.inputs[index])
        judge = self._judges[index]
        shares = [_used(name, want[index][name], got[name], bounds[name], judge) for name in want[index]]
        return max(shares, default=0.0)

    def _of(self, variant: str) -> tuple[list[dict[str, Array]], dict[str, Bound]]:
        from ...backends.reference.bound import Deriver

        if variant not in self._known:
            self._derivers[variant] = Deriver(self._models[variant], self._seed)
            self._known[variant] = self._derivers[variant].stated(self.inputs)
        return self._known[variant]


def _used(name: str, want: Array, got: Array, bound: Bound, judge: SampleJudge) -> float:
    """Return the largest difference as a share of the bound; infinite where a zero bound is exceeded."""
    difference, limit = largest_difference(got, want), bound.limit(want)
    if difference <= limit:
        return difference / limit if limit else 0.0
    return judge.judge(name, got, want)[0]
