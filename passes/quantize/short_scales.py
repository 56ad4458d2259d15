"""Scales of few digits, so that integers times scales are exact in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.quant import QONNX_DOMAIN
from ...compiler.ir.walk import (
    Array,
    add_initializer,
    all_graphs,
    constant,
    drop_unused_initializer,
    unique_name,
)
from ...compiler.pass_api import Context, Effect, PassStats

# Of the scale; beside integers of 8 bits and their sign this leaves float32 room.
BITS = 12


@dataclass(frozen=True)
class ShortScales:
    """Round the scales of QONNX Quant to 12 significant bits; run it right behind `quantize`.

    Lossy by 2^-13 of a value at most. Products of dequantized integers and their sums are then exact in
    whatever order they are computed, so that a layer's result depends on its integers only: circuits and
    event layers equal the model for every input, with no threshold left open to float rounding. Layers of
    QuantizeLinear and DequantizeLinear are defined on integers anyway (docs/semantics.md).
    """

    name: ClassVar[str] = "short-scales"
    effect: ClassVar[Effect] = Effect.LOSSY

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        for graph in all_graphs(model):
            made: dict[ir.Value, ir.Value] = {}
            for node in graph:
                ctx.check_cancelled()
                if (node.domain, node.op_type) == (QONNX_DOMAIN, "Quant"):
                    stats.changed += _shorten(graph, node, made)
        return stats


def rounded(scale: Array) -> npt.NDArray[np.float32]:
    """Return scales rounded to 12 significant bits."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    return np.asarray(np.ldexp(np.rint(mantissa * 2.0**BITS), exponent - BITS), np.float32)


def _shorten(graph: ir.Graph, node: ir.Node, made: dict[ir.Value, ir.Value]) -> bool:
    value = node.inputs[1]
    scale = constant(value)
    if value is None or scale is None or np.array_equal(rounded(scale), scale):
        return False
    if value not in made:
        made[value] = add_initializer(graph, unique_name(graph, f"{value.name}_short"), rounded(scale))
    node.replace_input_with(1, made[value])
    if value.is_initializer():
        drop_unused_initializer(value)
    return True
