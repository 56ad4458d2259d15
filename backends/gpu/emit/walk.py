"""Walks a graph and emits it into a Relax function, node by node.

Shapes are fixed here: whoever calls has settled the batch. Quantized layers arrive as the integer operators
of the reference (docs/semantics.md), so that what is emitted for them is exact; floats accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.errors import UnsupportedOp
from ....compiler.ir.walk import node_label, static_shape
from ....compiler.ops.constants import constant_expression

if TYPE_CHECKING:
    import tvm
    from tvm import relax

    Expr: TypeAlias = relax.Expr

Array: TypeAlias = npt.NDArray[np.number]
_Item = TypeVar("_Item")


def refuse(node: ir.Node, why: str) -> UnsupportedOp:
    """Return the error of a node that no GPU kernel takes."""
    return UnsupportedOp(
        "gpu-unsupported", f"gpu: {node_label(node)}: {why}", "use --fallback cpu, or --exclude its layer"
    )


@dataclass(frozen=True)
class Last:
    """A result whose channels (axis 1 in ONNX) lie last in memory, as tensor cores want them."""

    expr: Expr


@dataclass
class Emitter:
    """What rules work with: the block builder and the expressions of values already emitted.

    Attributes:
        first: values as ONNX has them, [N, C, ...].
        last: values with their channels last, [N, ..., C]; a value may be in both.
        rules: operators of bodies.
    """

    builder: relax.BlockBuilder
    rules: Mapping[tuple[str, str], Rule]
    first: dict[ir.Value, Expr] = field(default_factory=dict)
    last: dict[ir.Value, Expr] = field(default_factory=dict)

    def emit(self, expr: Expr) -> Expr:
        """Bind an expression to a variable, its type inferred; what is one already stays the same one."""
        from tvm import relax

        return expr if isinstance(expr, relax.Var) else self.builder.emit(expr)

    def compute(self, name: str, function: Callable[..., object], *args: object) -> Expr:
        """Emit a tensor expression (te) as a function of its own, to be fused with its neighbours."""
        return self.builder.emit_te(function, *args, primfunc_name_hint=name)

    def body(self, graph: ir.Graph, inputs: Sequence[Expr]) -> list[Expr]:
        """Emit a body once more, on these inputs; returns its outputs. Constants in it are kept."""
        values = {*graph.inputs, *(value for node in graph for value in node.outputs)}
        for value, expr in zip(graph.inputs, inputs, strict=True):
            self.first[value] = expr
        for node in graph:
            emit_node(self, node)
        results = [self.plain(value) for value in graph.outputs]
        for value in values:
            self.first.pop(value, None)
            self.last.pop(value, None)
        return results

    def operand(self, node: ir.Node, index: int) -> Expr:
        """Return an input that must be there."""
        found = self.optional(node, index)
        if found is None:
            raise refuse(node, f"input {index} is missing")
        return found

    def optional(self, node: ir.Node, index: int) -> Expr | None:
        """Return an input, or None where the node has none at `index`."""
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            return None
        return self.plain(value)

    def plain(self, value: ir.Value) -> Expr:
        """Return a value as ONNX has it, turned from channels last where need be."""
        from tvm import relax

        if value not in self.first and value in self.last:
            rank = len(shape_of(self.last[value]))
            order = (0, rank - 1, *range(1, rank - 1))
            x = self.last[value]
            turned = relax.op.permute_dims(x, order)
            if max(shape_of(x)[1:-1], default=1) == 1:  # the same memory
                turned = relax.op.reshape(x, [shape_of(x)[axis] for axis in order])
            self.first[value] = self.emit(turned)
        if value not in self.first:
            array = constant_expression(value)
            assert array is not None, f"{value.name!r} is neither emitted nor constant"
            self.first[value] = self.constant(array)
        return self.first[value]

    def image(self, node: ir.Node, index: int) -> Expr:
        """Return an input with its channels last; it has three axes or more."""
        from tvm import relax

        value = node.inputs[index]
        assert value is not None, "an image that is not there"
        if value not in self.last:
            x = self.operand(node, index)
            rank = len(shape_of(x))
            order = (0, *range(2, rank), 1)
            turned = relax.op.permute_dims(x, order)
            if max(shape_of(x)[2:], default=1) == 1:
                turned = relax.op.reshape(x, [shape_of(x)[axis] for axis in order])
            self.last[value] = self.emit(turned)
        return self.last[value]

    def source(self, node: ir.Node, index: int = 0) -> tuple[Expr, bool]:
        """Return an input as it lies in memory, and whether its channels lie last."""
        value = node.inputs[index]
        is_last = value in self.last and value not in self.first
        return (self.image(node, index) if is_last else self.operand(node, index)), is_last

    def alike(self, node: ir.Node) -> tuple[list[Expr], bool]:
        """Return all inputs in one layout, and whether it has the channels last.

        That is so where some input exists in it alone and every other one of as many axes does or is
        constant.
        """
        values = [value for value in node.inputs if value is not None]
        ranks = [len(v.shape) for v in values if v.shape is not None]
        images = [v for v in values if v in self.last]
        rank = max(ranks, default=0)
        others = [
            v for v in values if v not in self.last and v in self.first and v.shape and len(v.shape) == rank
        ]
        whole = all(v.shape is not None and len(v.shape) == rank for v in images)
        if not images or others or not whole:
            return [self.operand(node, index) for index in range(len(values))], False
        return [self._turned(node, index, rank) for index in range(len(values))], True

    def _turned(self, node: ir.Node, index: int, rank: int) -> Expr:
        """Return an image with its channels last, or a constant turned so that it broadcasts over one."""
        value = node.inputs[index]
        if value in self.last:
            return self.last[value]
        array = self.array(node, index)
        return self.constant(array if array.size == 1 else channels_last(array, rank))

    def constant(self, array: npt.ArrayLike) -> Expr:
        """Return an array as an expression of its own type."""
        from tvm import relax

        whole = np.array(array, order="C")  # np.ascontiguousarray gives a number an axis
        return relax.const(whole, whole.dtype.name)  # without a type 64 bits become 32

    def array(self, node: ir.Node, index: int) -> Array:
        """Return an input that must be constant."""
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant_expression(value)
        if array is None:
            raise refuse(node, f"input {index} is not constant")
        return array

    def maybe_array(self, node: ir.Node, index: int) -> Array | None:
        """Return an input that must be constant where it is there."""
        present = len(node.inputs) > index and node.inputs[index] is not None
        return self.array(node, index) if present else None


def channels_last(array: Array, rank: int) -> Array:
    """Return a constant that broadcasts over [N, C, ...] turned to broadcast over [N, ..., C]."""
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return np.moveaxis(full, 1, -1)


def in_memory(sizes: Sequence[_Item], is_last: bool) -> tuple[_Item, ...]:
    """Return what there is for every axis in the order in which the axes lie in memory."""
    return (sizes[0], *sizes[2:], sizes[1]) if is_last else tuple(sizes)


def axis_in_memory(axis: int, rank: int, is_last: bool) -> int:
    """Return where an axis of the ONNX value lies in memory."""
    return in_memory(range(rank), is_last).index(axis % rank)


def placed(expr: Expr, is_last: bool) -> Expr | Last:
    """Return a result marked as having its channels last, or as it is."""
    return Last(expr) if is_last else expr


def shape_of(expr: Expr) -> tuple[int, ...]:
    """Return the sizes of an emitted expression."""
    return tuple(int(size) for size in expr.ty.shape)


def dtype_of(expr: Expr) -> str:
    """Return the element type of an emitted expression, as TVM spells it."""
    return str(expr.ty.dtype)


Rule: TypeAlias = "Callable[[Emitter, ir.Node], Expr | Last | Sequence[Expr]]"


def emit_model(model: ir.Model, rules: Mapping[tuple[str, str], Rule]) -> tvm.IRModule:
    """Return a module whose function `main` computes the model.

    Raises:
        UnsupportedOp: `gpu-unsupported`: no rule takes a node; `gpu-shape`: an open size.
    """
    from tvm import relax

    graph = model.graph
    builder = relax.BlockBuilder()
    parameters = {value: _parameter(value, index) for index, value in enumerate(graph.inputs)}
    emitter = Emitter(builder, rules, dict(parameters))
    with builder.function("main", list(parameters.values())):
        with builder.dataflow():
            for node in graph:
                emit_node(emitter, node)
            results = _results(emitter, graph.outputs)
            bound = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(bound)
    return builder.get()


def _parameter(value: ir.Value, index: int) -> relax.Var:
    from tvm import relax

    shape = static_shape(value)
    if shape is None:
        raise UnsupportedOp(
            "gpu-shape",
            f"gpu: input {value.name!r} has open sizes",
            f"fix them with --shape {value.name}=...",
        )
    assert value.dtype is not None, "an input without a type"
    return relax.Var(f"input{index}", relax.TensorType(shape, value.dtype.numpy().name))


def emit_node(emitter: Emitter, node: ir.Node) -> None:
    """Emit a node's outputs, unless they are constant."""
    if all(constant_expression(value) is not None for value in node.outputs):
        return
    rule = emitter.rules.get((node.domain, node.op_type))
    if rule is None:
        raise refuse(node, f"no kernel for {node.domain or 'ai.onnx'}::{node.op_type}")
    found = rule(emitter, node)
    results = found if isinstance(found, Sequence) else [found]
    for value, result in zip(node.outputs, results, strict=False):
        if isinstance(result, Last):
            emitter.last[value] = emitter.emit(result.expr)
        else:
            emitter.first[value] = emitter.emit(result)


def _results(emitter: Emitter, outputs: Sequence[ir.Value]) -> list[Expr]:
    """Return the outputs, each with memory of its own: inputs and repeated values are copied."""
    from tvm import te

    def copy(t: te.Tensor) -> te.Tensor:
        return te.compute(t.shape, lambda *at: t(*at), name="copy")

    results: list[Expr] = []
    for value in outputs:
        result = emitter.plain(value)
        if value.is_graph_input() or any(result.same_as(other) for other in [*results, *_inputs(emitter)]):
            result = emitter.compute("copy", copy, result)
        results.append(result)
    return results


def _inputs(emitter: Emitter) -> list[Expr]:
    return [expr for value, expr in emitter.first.items() if value.is_graph_input()]
