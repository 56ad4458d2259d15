"""What a network would need with fewer bits: the same formulas on rounded weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...compiler.estimates import Alternative
from .estimate_matrix import block_cost, blocks
from .estimate_unrolled import Cost
from .graph import Conv, Dense, Ints, Layer, Network

_WIDTHS = (6, 4, 3, 2)


def alternatives(network: Network, costs: Sequence[Cost], lut_per_cost: float) -> Iterator[Alternative]:
    """Yield narrower weights and activations with what they would need, widest first."""
    widest = max((_bits(layer) for layer in network.layers if isinstance(layer, Dense | Conv)), default=0)
    for bits in _WIDTHS:
        if bits < widest:
            cost = sum(
                _narrowed(network, layer, one, bits) for layer, one in zip(network.layers, costs, strict=True)
            )
            yield Alternative(f"{bits} bits (--precision w{bits}a{bits})", round(lut_per_cost * cost))


def _bits(layer: Dense | Conv) -> int:
    return int(np.abs(layer.weights).max(initial=0)).bit_length() + 1


def _narrowed(network: Network, layer: Layer, cost: Cost, bits: int) -> float:
    """Return a layer's cost at so many bits."""
    wire = network.wires[layer.inputs[0]]
    if not isinstance(layer, Dense | Conv):
        return cost.cost * min(bits / max(layer.output.bits, 1), 1.0)
    top = max((wire.most - wire.least) // wire.step, 1)
    shift = max(_bits(layer) - bits, 0)
    small = np.rint(layer.weights / 2**shift).astype(np.int64)
    before, after = _formula(layer.weights, top), _formula(small, min(top, 2**bits - 1))
    return cost.cost * after / before if before else 0.0


def _formula(weights: Ints, top: int) -> float:
    matrix = weights.reshape(len(weights), -1)
    return sum(block_cost(block, top) for block in blocks(matrix))
