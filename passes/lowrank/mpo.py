"""The pass `mpo`: matrix products as matrix product operators of two sites.

With inputs and outputs split as k = k1 k2 and m = m1 m2,
`W[(k1, k2), (m1, m2)] = sum_r A[k1, m1, r] B[r, k2, m2]` is a truncated SVD of W with its axes regrouped to
[(k1, m1), (k2, m2)] (Oseledets 2011; Novikov et al., arXiv 1509.06569; Gao et al., arXiv 1904.06194).
Parameters fall to r (k1 m1 + k2 m2); multiplications fall less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir.walk import (
    add_initializer,
    drop_unused_initializer,
    node_label,
    remove_chain,
    replace_value,
    unique_name,
)
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from .layers import Dense, read_dense
from .whiten import Floats, svd


@dataclass(frozen=True)
class Mpo:
    """Write Gemm and MatMul weights as matrix product operators of two sites.

    Lossy, looks at weights only. A layer is refused where that is not smaller.

    Attributes:
        energy: share of the squared weights to keep, in (0, 1); sets every layer's bond dimension.
        rank: bond dimension of every layer, instead.
    """

    name: ClassVar[str] = "mpo"
    effect: ClassVar[Effect] = Effect.LOSSY
    energy: float = 0.9
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1 or self.rank < 0:
            raise PipelineError(
                "mpo-option", f"energy={self.energy} must be in (0, 1], rank={self.rank} >= 0"
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        saved = 0
        for node in list(model.graph):
            if node.domain or node.op_type not in ("Gemm", "MatMul"):
                continue
            ctx.check_cancelled()
            found = self._factor(node, ctx)
            if isinstance(found, str):
                stats.refused.append(Refusal(node_label(node), found))
                continue
            _write(model, node, found)
            stats.changed += 1
            saved += found.saved
        stats.details = {"layers_factored": stats.changed, "parameters_saved": saved}
        return stats

    def _factor(self, node: ir.Node, ctx: Context) -> _Sites | str:
        pattern = excluded_by(node.name or "", ctx.exclude)
        if pattern:
            return f"excluded by {pattern!r}"
        dense = read_dense(node)
        if isinstance(dense, str):
            return dense
        data = node.inputs[0]
        if data is None or data.shape is None or len(data.shape) != 2:
            return "the input has other than two axes"
        return self._split(dense)

    def _split(self, dense: Dense) -> _Sites | str:
        m, k = dense.shape[:2]
        (k1, k2), (m1, m2) = balanced(k), balanced(m)
        weight = dense.weights(None).weight.reshape(m1, m2, k1, k2)
        found = svd(weight.transpose(2, 0, 3, 1).reshape(k1 * m1, k2 * m2))
        rank = self.rank or max(int(np.argmax(found.tail <= 1 - self.energy + 1e-12)), 1)
        rank = min(rank, len(found.s))
        left, right = found.factors(rank)
        sites = _Sites(left.reshape(k1, m1, rank), right.reshape(rank, k2, m2))
        if sites.saved <= 0:
            return f"bond dimension {rank} makes [{m}, {k}] no smaller"
        return sites


@dataclass(frozen=True, eq=False)
class _Sites:
    """A [k1, m1, r] and B [r, k2, m2]."""

    a: Floats
    b: Floats

    @property
    def saved(self) -> int:
        """Parameters that the layer has more than its sites."""
        (k1, m1, _), (_, k2, m2) = self.a.shape, self.b.shape
        return int(k1 * k2 * m1 * m2 - self.a.size - self.b.size)


def balanced(size: int) -> tuple[int, int]:
    """Split a size into two factors, as near to its root as they come, the smaller first.

    >>> balanced(512), balanced(154), balanced(13)
    ((16, 32), (11, 14), (1, 13))
    """
    small = next(f for f in range(math.isqrt(size), 0, -1) if size % f == 0)
    return small, size // small


def _write(model: ir.Model, node: ir.Node, sites: _Sites) -> None:
    """Reshape, B, move the axes, A, move back; a Gemm's bias is added at the end."""
    (k1, m1, rank), (_, k2, m2) = sites.a.shape, sites.b.shape
    chain = _Chain(model, node)
    value = chain.reshape(node.inputs[0], (-1, k1, k2))
    value = chain.matmul(value, sites.b.transpose(1, 2, 0).reshape(k2, m2 * rank))
    value = chain.reshape(value, (-1, k1, m2, rank))
    value = chain.reshape(chain.transpose(value, (0, 2, 1, 3)), (-1, m2, k1 * rank))
    value = chain.matmul(value, sites.a.transpose(0, 2, 1).reshape(k1 * rank, m1))
    value = chain.reshape(chain.transpose(value, (0, 2, 1)), (-1, m1 * m2))
    chain.finish(value)


class _Chain:
    """Appends nodes in the place of one layer."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._model, self._node = model, node
        weight = node.inputs[1]
        assert weight is not None, "a layer without weights"
        assert weight.dtype is not None, "weights without a type"
        self._weight, self._dtype = weight, weight.dtype.numpy()

    def _add(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Sequence[int]]
    ) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=unique_name(self._model, f"{self._node.name}_mpo"))
        made.outputs[0].name = unique_name(self._model, f"{self._node.outputs[0].name}_mpo")
        made.outputs[0].type = self._node.outputs[0].type
        assert self._node.graph is not None, "a node without a graph"
        self._node.graph.insert_before(self._node, made)
        return made.outputs[0]

    def _constant(self, array: np.ndarray) -> ir.Value:
        assert self._node.graph is not None, "a node without a graph"
        name = unique_name(self._model, f"{self._weight.name}_mpo")
        return add_initializer(self._node.graph, name, np.ascontiguousarray(array))

    def reshape(self, value: ir.Value | None, shape: Sequence[int]) -> ir.Value:
        """Append a Reshape."""
        return self._add("Reshape", [value, self._constant(np.array(shape, np.int64))], {})

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Append a Transpose."""
        return self._add("Transpose", [value], {"perm": perm})

    def matmul(self, value: ir.Value, weight: Floats) -> ir.Value:
        """Append a MatMul by a constant."""
        return self._add("MatMul", [value, self._constant(weight.astype(self._dtype))], {})

    def finish(self, value: ir.Value) -> None:
        """Add the bias and take the layer's place and names."""
        node = self._node
        scales = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
        if any(scale != 1.0 for scale in scales):
            value = self._scaled(value, "alpha")
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            value = self._add("Add", [value, self._scaled(node.inputs[2], "beta")], {})
        name, weight = node.name, self._weight
        value.shape = None if node.outputs[0].shape is None else node.outputs[0].shape.copy()
        replace_value(node.outputs[0], value)
        remove_chain(node)
        drop_unused_initializer(weight)
        last = value.producer()
        assert last is not None, "the chain has nodes"
        last.name = name

    def _scaled(self, value: ir.Value, attribute: str) -> ir.Value:
        found = self._node.attributes.get(attribute)
        scale = 1.0 if found is None else found.as_float()
        if scale == 1.0:
            return value
        return self._add("Mul", [value, self._constant(np.array(scale, self._dtype))], {})
