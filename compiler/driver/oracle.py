"""What each variant must give on the golden inputs, and how far an engine may be from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..backend import Array

if TYPE_CHECKING:
    from ...backends.reference.bound import Bound


class Oracle:
    """Reference outputs and derived bounds of every variant, worked out when first needed."""

    def __init__(
        self, models: Mapping[str, ir.Model], inputs: Sequence[Mapping[str, Array]], seed: int
    ) -> None:
        self.inputs = list(inputs)
        self._models = models
        self._seed = seed
        self._known: dict[str, tuple[list[dict[str, Array]], dict[str, Bound]]] = {}

    def bounds(self, variant: str) -> dict[str, Bound]:
        """Return the bound of every output."""
        return self._of(variant)[1]

    def bound_used(self, variant: str, outputs: Sequence[Mapping[str, Array]]) -> float:
        """Return the largest |difference| / bound over samples and outputs; above 1 is a failure."""
        want, bounds = self._of(variant)
        pairs = [(w[name], g[name], bounds[name]) for w, g in zip(want, outputs, strict=True) for name in w]
        return max((_used(*pair) for pair in pairs), default=0.0)

    def _of(self, variant: str) -> tuple[list[dict[str, Array]], dict[str, Bound]]:
        from ...backends.reference.bound import reference_with_bound

        if variant not in self._known:
            self._known[variant] = reference_with_bound(self._models[variant], self.inputs, self._seed)
        return self._known[variant]


def _used(want: Array, got: Array, bound: Bound) -> float:
    """Return the largest difference as a share of the bound; infinite where a zero bound is exceeded."""
    from ...backends.reference.bound import largest_difference

    if want.shape != got.shape:
        return math.inf
    difference, limit = largest_difference(got, want), bound.limit(want)
    return difference / limit if limit else (math.inf if difference else 0.0)
