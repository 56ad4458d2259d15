"""Decisions: what quantizers decide, held over disturbed runs, and outputs that are choices themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx.reference.op_run import OpRun

from .base import REFERENCE_DOMAIN, Array, is_float
from .evaluator import Hook

_MEASURING = frozenset(["DynamicQuantizeLinear", "DynamicBlockQuantize"])
_QUANTIZERS = _MEASURING | {"QuantizeLinear", "Quant", "BipolarQuant", "Trunc", "MultiThreshold"}
# Their results are the values that they are given, in another place, shape or type.
_COPIES = frozenset(
    [
        *("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"),
        *("Transpose", "Slice", "Concat", "Expand"),
    ]
)
_CHOOSING = frozenset(["ArgMax", "ArgMin", "NonZero"])

Inputs = Sequence[Array | None]


class Decisions:
    """The results of the quantizers in one run, put in the place of theirs in later ones.

    Args:
        constants: names of values that are the same in every run and need not be kept.
    """

    def __init__(self, constants: frozenset[str]) -> None:
        self._constants = constants
        # Bodies run many times: the n-th call of each node is a decision of its own.
        self._kept: dict[tuple[str, int], list[Array]] = {}
        self._calls: Counter[str] = Counter()

    def record(self, node: OpRun, inputs: Inputs, outputs: Sequence[Array]) -> Sequence[Array]:
        """Hook of the undisturbed run: keep what quantizers give."""
        if self._decides(node):
            self._kept[self._call(node)] = list(outputs)
        return outputs

    def held(self, disturb: Hook) -> Hook:
        """Return a hook for one disturbed run in which every quantizer gives what was recorded."""
        self._calls.clear()

        def hook(node: OpRun, inputs: Inputs, outputs: Sequence[Array]) -> Sequence[Array]:
            moved = disturb(node, inputs, outputs)
            if not self._decides(node):
                return moved
            kept = self._kept.get(self._call(node), [])
            return [_hold(node, *pair) for pair in zip(kept, moved, strict=True)] if kept else moved

        return hook

    def _decides(self, node: OpRun) -> bool:
        quantizes = node.op_type in _QUANTIZERS or node.domain == REFERENCE_DOMAIN
        return quantizes and node.output[0] not in self._constants

    def _call(self, node: OpRun) -> tuple[str, int]:
        name = str(node.output[0])
        self._calls[name] += 1
        return name, self._calls[name]


def _hold(node: OpRun, kept: Array, moved: Array) -> Array:
    """Return the recorded result; a scale that was measured on the data is no decision."""
    measured = node.op_type in _MEASURING and is_float(np.asarray(moved))
    return moved if measured or kept.shape != moved.shape else kept


def choices(model: ir.Model) -> frozenset[str]:
    """Return the outputs that are indices, classes or truth values, whatever type they were cast to."""
    return frozenset(v.name for v in model.graph.outputs if v.name and _is_choice(v))


def _is_choice(value: ir.Value) -> bool:
    node, integer = value.producer(), _is_integer(value)
    while node is not None and node.op_type in _COPIES and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    if node is None:
        return False
    if node.op_type in _CHOOSING or (node.op_type == "TopK" and value is node.outputs[1]):
        return True
    return integer and node.op_type not in _QUANTIZERS


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_floating_point()
