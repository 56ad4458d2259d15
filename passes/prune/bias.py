"""The pass `bias-correct`: the mean error of every layer's output goes into its bias.

Nagel et al. 2019 (arXiv 1906.04721, section 4.2), measured: means per channel of the compressed model are
compared with the original's, depth by depth, so that what earlier layers contribute is in them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.ir import walk
from ...compiler.pass_api import Context, Effect, PassStats
from ..quantize.bias_correct import add_to_bias, correct_biases, refuse_bias
from .repair import need_original, need_samples


@dataclass(frozen=True)
class BiasCorrect:
    """Give every layer of a pruned, factorised or quantized model the original's mean outputs.

    Lossy, edits the main graph; needs calibration data and a lossy pass before it. Biases of Conv,
    ConvTranspose and Gemm change, float ones and int32 ones; float layers without one get one.

    Attributes:
        samples: calibration samples used at most.
    """

    name: ClassVar[str] = "bias-correct"
    effect: ClassVar[Effect] = Effect.LOSSY
    samples: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise PipelineError(
                "repair-option", f"bias-correct: samples must be positive, got {self.samples}"
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place; raises `DataError` or `PipelineError` when something is missing."""
        original = need_original(ctx, "bias-correct")
        samples = need_samples(ctx, "bias-correct").head(self.samples)
        added = _add_zeros(model, original)
        stats = correct_biases(original, model, samples, ctx)
        for node in added:
            _drop_zeros(node)
        return stats


def _add_zeros(model: ir.Model, original: ir.Model) -> list[ir.Node]:
    """Give float layers that have a counterpart, but no bias, one of zeros."""
    names = {(node.name, node.op_type) for node in original.graph}
    added: list[ir.Node] = []
    for node in model.graph:
        plain = node.op_type in ("Conv", "Gemm") and not node.domain and (node.name, node.op_type) in names
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if plain and not has_bias and refuse_bias(node) is None and walk.is_constant(weight):
            add_to_bias(model, node, np.zeros(_channels(node, weight)))
            added.append(node)
    return added


def _channels(node: ir.Node, weight: ir.Value | None) -> int:
    shape = walk.static_shape(weight)
    assert shape is not None, f"{node.name}: constants have shapes"
    dense = node.op_type == "Gemm" and not walk.int_attribute(node, "transB", 0)
    return shape[1] if dense else shape[0]


def _drop_zeros(node: ir.Node) -> None:
    """Remove a bias of zeros again, so that nothing changes where nothing was to correct."""
    bias = node.inputs[2]
    if bias is not None and not np.any(walk.constant(bias)):
        node.resize_inputs(2)
        walk.drop_unused_initializer(bias)
