"""The pass `lowrank-passthrough`: recurrent matrices as low rank plus diagonal.

A recurrent layer mostly hands its state on: its matrix is near `U V + diag(d)` (low-rank passthrough
networks, Barone, arXiv 1603.03116). For fixed `d` the best product is a truncated SVD, for a fixed product
the best `d` is a row-wise regression; the two alternate to a local minimum, each never making the error
larger. Errors are those of the outputs on calibration data where there is some.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.exclusion import excluded_by
from ...compiler.ir.walk import (
    add_initializer,
    all_nodes,
    int_attribute,
    node_label,
    replace_value,
    unique_name,
)
from ...compiler.pass_api import Context, Effect, PassStats, Refusal
from ..prune.statistics import collect, parents_of, refuse_statistics
from .layers import Dense, read_dense, write_chain
from .methods import Stage
from .whiten import Floats, root_of, svd

_SWEEPS = 200
# A sweep that lowers the error by less than this share is the last one.
_SETTLED = 1e-4


@dataclass(frozen=True)
class LowRankPassthrough:
    """Write Gemm and MatMul in Scan and Loop bodies as low rank plus diagonal of the state.

    Lossy. The layer's input must be the state, or a Concat that ends with it, and the outputs whole blocks of
    the state's size (the gates). A layer is refused where that is not smaller.

    Attributes:
        rank: the same for every layer.
        energy: share of every layer's squared output to keep, in (0, 1), instead; 0.9 when neither is given.
        round_to: ranks are multiples of this.
    """

    name: ClassVar[str] = "lowrank-passthrough"
    effect: ClassVar[Effect] = Effect.LOSSY
    rank: int = 0
    energy: float = 0.0
    round_to: int = 16

    def __post_init__(self) -> None:
        if (self.rank and self.energy) or self.rank < 0 or not 0 <= self.energy < 1 or self.round_to < 1:
            raise PipelineError(
                "lowrank-goal",
                f"lowrank-passthrough takes rank > 0 or energy in (0, 1), got {self.rank} and {self.energy}",
            )

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place."""
        stats = PassStats()
        gates = list(_gates(model, ctx, stats))
        for gate, gram in list(_with_data(model, gates, ctx)):
            ctx.check_cancelled()
            found = self._factor(gate, gram)
            if isinstance(found, str):
                stats.refused.append(Refusal(node_label(gate.dense.node), found))
                continue
            _write(model, gate, found)
            stats.changed += 1
        stats.details = {"layers_factored": stats.changed}
        return stats

    def _factor(self, gate: _Gate, gram: Floats | None) -> _Sum | str:
        m, k = gate.dense.shape[:2]
        limit = 1 - (self.energy or 0.9)
        ranks = [self.rank] if self.rank else range(self.round_to, min(m, k), self.round_to)
        for rank in (r for r in ranks if r * (m + k) + m < m * k):
            found = split(gate.dense.weights(None).weight.reshape(m, k), gram, gate.columns, rank)
            if self.rank or found.lost <= limit:
                return found
        return f"no rank makes [{m}, {k}] smaller within the goal"


@dataclass(frozen=True, eq=False)
class _Gate:
    """A layer whose output row m passes on column `columns[m]` of its input, which `state` holds last."""

    dense: Dense
    state: ir.Value
    columns: np.ndarray


def _gates(model: ir.Model, ctx: Context, stats: PassStats) -> Iterator[_Gate]:
    parents = parents_of(model)
    for node in all_nodes(model):
        if node.domain or node.op_type not in ("Gemm", "MatMul") or node.graph not in parents:
            continue
        found = _read(node, ctx)
        if isinstance(found, _Gate):
            yield found
        else:
            stats.refused.append(Refusal(node_label(node), found))


def _read(node: ir.Node, ctx: Context) -> _Gate | str:
    pattern = excluded_by(node.name or "", ctx.exclude)
    dense = f"excluded by {pattern!r}" if pattern else read_dense(node)
    if isinstance(dense, str):
        return dense
    state = node.inputs[0]
    maker = None if state is None else state.producer()
    if maker is not None and maker.op_type == "Concat" and int_attribute(maker, "axis", 0) in (-1, 1):
        state = maker.inputs[-1]
    last = None if state is None or state.shape is None else state.shape.dims[-1]
    m, k = dense.shape[:2]
    if state is None or not isinstance(last, int) or last > k or m % last:
        return f"outputs of size {m} are no whole blocks of a state of size {last}"
    return _Gate(dense, state, np.tile(np.arange(k - last, k), m // last))


def _with_data(model: ir.Model, gates: list[_Gate], ctx: Context) -> Iterator[tuple[_Gate, Floats | None]]:
    parents, samples = parents_of(model), ctx.calibration
    seen = [g for g in gates if samples is not None and refuse_statistics(g.dense.weight, parents) is None]
    by_value = {gate.dense.weight.value: gate for gate in seen}
    if samples is not None and seen:
        for weight, inputs in collect(model, [g.dense.weight for g in seen], samples, ctx, gram=True):
            yield by_value[weight.value], inputs.gram[0]
    yield from ((gate, None) for gate in gates if gate not in seen)


@dataclass(frozen=True, eq=False)
class _Sum:
    """[m, rank] @ [rank, k] + d at the given columns; `lost` is the share of squared output."""

    left: Floats
    right: Floats
    diagonal: Floats
    lost: float


def split(weight: Floats, gram: Floats | None, columns: np.ndarray, rank: int) -> _Sum:
    """Fit low rank plus diagonal.

    Args:
        weight: [m, k].
        gram: second moment of the inputs, [k, k]; None weighs all inputs alike.
        columns: [m], the input that each output passes on.
        rank: of the product.
    """
    root, form = root_of(gram), np.eye(weight.shape[1]) if gram is None else gram
    rows = np.arange(len(weight))
    power = np.maximum(form[columns, columns], 1e-300)
    total = max(float(np.einsum("mk,kl,ml->", weight, form, weight, optimize=True)), 1e-300)
    diagonal, lost = np.zeros(len(weight)), np.inf
    best: _Sum | None = None
    for _ in range(_SWEEPS):
        rest = weight.copy()
        rest[rows, columns] -= diagonal
        left, right = svd(rest, root).factors(rank)
        error = weight - left @ right
        diagonal = np.einsum("mk,km->m", error, form[:, columns], optimize=True) / power
        error[rows, columns] -= diagonal
        now = float(np.einsum("mk,kl,ml->", error, form, error, optimize=True)) / total
        if best is None or now < best.lost:
            best = _Sum(left, right, diagonal, max(now, 0.0))
        if not now < lost * (1 - _SETTLED):
            break
        lost = now
    assert best is not None, "there is a first sweep"
    return best


def _write(model: ir.Model, gate: _Gate, found: _Sum) -> None:
    """Chain the two products, and add the scaled state to what they give."""
    node = gate.dense.node
    graph, weight = node.graph, gate.dense.weight.value
    assert isinstance(graph, ir.Graph), "a node of a body"
    assert weight.dtype is not None, "weights have a type"
    dtype, name = weight.dtype.numpy(), f"{node.outputs[0].name}_passthrough"
    write_chain(
        model, gate.dense, (Stage(found.right[:, :, None, None]), Stage(found.left[:, :, None, None]))
    )
    blocks = len(found.diagonal) // len(np.unique(gate.columns))
    diagonal = add_initializer(graph, unique_name(model, f"{name}_scale"), found.diagonal.astype(dtype))
    made: list[ir.Node] = []
    state = gate.state
    if blocks > 1:
        made.append(ir.node("Concat", [state] * blocks, {"axis": -1}))
        state = made[-1].outputs[0]
    made.append(ir.node("Mul", [state, diagonal]))
    made.append(ir.node("Add", [node.outputs[0], made[-1].outputs[0]]))
    for step in made:
        step.name = unique_name(model, f"{node.name}_passthrough")
        step.outputs[0].name = unique_name(model, name)
        step.outputs[0].type = node.outputs[0].type
    graph.insert_after(node, made)
    old, new = node.outputs[0], made[-1].outputs[0]
    new.shape = None if old.shape is None else old.shape.copy()
    replace_value(old, new)
