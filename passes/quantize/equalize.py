"""Cross-layer equalization: neighbouring layers share out their weight ranges channel by channel.

For layers `y = f(W1 x + b1)`, `z = W2 y` with `f(s y) = s f(y)` for `s > 0`, dividing output channel i of
the first by `s_i` and multiplying input channel i of the second by it leaves `z` as it was. With
`s_i = sqrt(r1_i r2_i) / r2_i` both channels get the same range (Nagel et al. 2019, arXiv 1906.04721
eq. 11), so one scale per tensor wastes less of its integers. Chains are iterated until nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import scaled
from ...compiler.pass_api import Context, Effect, PassStats
from .pairs import Pair, find_pairs

Floats = npt.NDArray[np.floating]

# A channel of almost nothing but bias would otherwise be blown up until it sets the activations' range alone.
_LIMIT = 2.0**8


@dataclass(frozen=True)
class Equalize:
    """Equalize the weight ranges of layers joined by positively homogeneous operators.

    Reorders: the function stays, weights are rounded once more (never, with `exact`). Values between the
    layers are scaled, so they get the suffix `_equalized`; the attachment `scaled_values.json` leads back to
    the original's.

    Attributes:
        iterations: upper limit of sweeps over all pairs.
        exact: round the factors to powers of two, which leaves every output bit as it was (short of
            underflow) and ranges within a factor of two of each other.
    """

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = Effect.REORDERS
    iterations: int = 20
    exact: bool = False

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; needs no data."""
        stats = PassStats()
        pairs = find_pairs(model, stats.refused)
        layers = {layer.node: layer for pair in pairs for layer in (pair.first, pair.second)}
        scales: list[Floats] = [np.ones(pair.first.rows) for pair in pairs]
        sweeps = self._balance(pairs, scales, ctx)
        if self.exact:
            scales = [np.exp2(np.rint(np.log2(s))) for s in scales]
            _assign(pairs, scales)
        changed = {pair.first.node for pair, s in zip(pairs, scales, strict=True) if np.any(s != 1.0)}
        found: dict[str, scaled.Scaled] = {}
        for pair, scale in zip(pairs, scales, strict=True):
            if pair.first.node in changed:
                found |= pair.rewrite_between(model, scale)
        for layer in layers.values():
            layer.rewrite(model)
        stats.changed = len(changed)
        stats.attachments[scaled.FILE] = scaled.write_scaled(ctx.attachments.get(scaled.FILE), found)
        stats.details |= {"pairs": len(pairs), "pairs_scaled": len(changed), "sweeps": sweeps}
        return stats

    def _balance(self, pairs: list[Pair], scales: list[Floats], ctx: Context) -> int:
        for sweep in range(self.iterations):
            ctx.check_cancelled()
            largest = 0.0
            for index, pair in enumerate(pairs):
                old, scales[index] = scales[index], np.clip(scales[index] * pair.factor(), 1 / _LIMIT, _LIMIT)
                largest = max(largest, float(np.abs(np.log2(scales[index] / old)).max(initial=0.0)))
                pair.scale(scales[index])
            if largest < 1e-3:
                return sweep + 1
        return self.iterations


def _assign(pairs: Sequence[Pair], scales: Sequence[Floats]) -> None:
    for pair, scale in zip(pairs, scales, strict=True):
        pair.scale(scale)
