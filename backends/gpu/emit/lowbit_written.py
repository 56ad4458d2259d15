"""What the emitters of kernels written by hand share: their nodes in the graph, their functions, formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.walk import add_initializer
from ..schedules import lowbit
from .walk import Array, Emitter

if TYPE_CHECKING:
    from tvm import te, tirx

    from .walk import Expr

DOMAIN = "pared.gpu"


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic] | None) -> ir.Value | None:
    """Put an array into a graph; None stays None."""
    return None if array is None else add_initializer(graph, name, np.ascontiguousarray(array))


def put_for(
    last: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, object],
    name: str | None,
) -> None:
    """Put a node of `DOMAIN` in the place of `last` and of what only that reads, which is dead then."""
    given = ir.convenience.convert_attributes(attributes)  # type: ignore[arg-type]
    new, graph = ir.Node(DOMAIN, op, inputs, given, name=name), last.graph
    assert graph is not None, "a node in no graph"
    ir.convenience.replace_nodes_and_values(graph, last, [last], [new], last.outputs, new.outputs)


def emit_written(
    emitter: Emitter, name: str, kind: str, shape: object, formula: Callable[..., te.Tensor],
    operands: Sequence[Expr], constants: Sequence[Array] = (),
) -> Expr:  # fmt: skip
    """Emit a function with a kernel of its own; `kind` and `shape` as `schedules.lowbit.mark` has them."""
    return emitter.emit(
        emitter.builder.emit_te(
            formula, *operands, *(emitter.constant(array) for array in constants), primfunc_name_hint=name,
            primfunc_attrs=lowbit.mark(kind, shape),
        )
    )  # fmt: skip


def products(x: te.Tensor, weights: te.Tensor, kind: str) -> te.Tensor:
    """Return sums [..., N] over the last axis of x [..., K] and weights [N, K], all of type `kind`."""
    from tvm import te

    k = te.reduce_axis((0, weights.shape[1]), "k")
    return te.compute(
        (*x.shape[:-1], weights.shape[0]),
        lambda *at: te.sum(x(*at[:-1], k).astype(kind) * weights(at[-1], k).astype(kind), axis=k),
        name="total",
    )


def finished(total: te.Tensor, bias: te.Tensor | None, activation: int, kind: str) -> te.Tensor:
    """Return sums with a bias per column added, the activation of that number applied, in type `kind`."""
    from tvm import te

    def result(*at: tirx.Var) -> tirx.Expr:
        value = total(*at) if bias is None else total(*at) + bias(at[-1])
        return activated(value, activation).astype(kind)

    return te.compute(total.shape, result, name="product")


def activated(x: tirx.Expr, kind: int) -> tirx.Expr:
    """Return an activation of a float32, by its number in the kernels."""
    from tvm import tirx

    def const(number: float) -> tirx.Expr:
        return tirx.const(number, "float32")

    if kind == 1:
        return tirx.max(x, const(0.0))
    if kind == 2:
        return const(0.5) * x * (const(1.0) + tirx.erf(x * const(0.7071067811865475)))
    if kind == 3:
        inner = const(0.7978845608028654) * (x + const(0.044715) * x * x * x)
        return const(0.5) * x * (const(1.0) + tirx.tanh(inner))
    return x
