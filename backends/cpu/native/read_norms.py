"""Softmax, normalizations and reductions; normalizations also where a model writes them out.

    layer   ReduceMean(x), x - mean (once or twice), its square, ReduceMean, + epsilon, Sqrt, Div [, Mul, Add]
    rms     the square of x, ReduceMean, + epsilon, Sqrt, x divided by it (or times 1 over it) [, Mul]

Both are read from their first operator on and taken whole, or not at all: a value inside that anything else
reads leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import int_attribute, ints_attribute, only_user, users
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_expression
from . import layers as L
from . import layers_sequence as S
from .quantized import array_of
from .read_chain import chain, emit, ending, operand
from .reader import Reader, Refused, covers, input_of, shape_of

_KINDS = {
    "ReduceL1": "l1", "ReduceL2": "l2", "ReduceMax": "max", "ReduceMean": "mean", "ReduceMin": "min",
    "ReduceProd": "prod", "ReduceSum": "sum", "ReduceSumSquare": "sum-square",
}  # fmt: skip


def softmax(reader: Reader, node: ir.Node) -> None:
    """Read a Softmax or LogSoftmax over the last axis."""
    rank = len(shape_of(node.outputs[0], node))
    axis = int_attribute(node, "axis", -1) % rank
    if axis != rank - 1:
        raise Refused(node, f"softmax over axis {axis} of {rank}; needs the last one")
    _emit(
        reader,
        node,
        _Found("softmax" if node.op_type == "Softmax" else "log-softmax", node.outputs[0], (node,)),
    )


def layer_norm(reader: Reader, node: ir.Node) -> None:
    """Read LayerNormalization and RMSNormalization over the last axis."""
    rank = len(shape_of(node.outputs[0], node))
    axis = int_attribute(node, "axis", -1) % rank
    if axis != rank - 1 or any(value.uses() for value in node.outputs[1:]):
        raise Refused(node, f"normalizes from axis {axis} of {rank} on, {len(node.outputs)} outputs")
    scale, shift = (_vector(value, node) for value in (*node.inputs[1:3], *[None] * (3 - len(node.inputs))))
    kind = "layer" if node.op_type == "LayerNormalization" else "rms"
    epsilon = float_attribute(node, "epsilon", 1e-5)
    _emit(reader, node, _Found(kind, node.outputs[0], (node,), epsilon, scale, shift))


def lp_norm(reader: Reader, node: ir.Node) -> None:
    """Read LpNormalization over the last axis."""
    rank = len(shape_of(node.outputs[0], node))
    axis = int_attribute(node, "axis", -1) % rank
    if axis != rank - 1:
        raise Refused(node, f"normalizes axis {axis} of {rank}; needs the last one")
    kind = f"l{int_attribute(node, 'p', 2)}"
    _emit(reader, node, _Found(kind, node.outputs[0], (node,), float(np.finfo(np.float32).tiny)))


def reduce(reader: Reader, node: ir.Node) -> None:
    """Read a reduction over any axes; one that begins a written-out normalization, as that."""
    found = _layer(node) if node.op_type == "ReduceMean" else None
    if found is not None:
        _emit(reader, node, found)
        return
    axes, rank = axes_of(node), len(shape_of(input_of(node, 0), node))
    if not axes and int_attribute(node, "noop_with_empty_axes", 0):
        raise Refused(node, "reduces nothing")
    x, end = operand(reader, node.inputs[0], node), ending(node.outputs[0], node)
    every = tuple(sorted({axis % rank for axis in axes})) or tuple(range(rank))
    emit(reader, node, end, S.Reduce((x,), end.tensor, covers(node, *end.nodes), _KINDS[node.op_type], every))


def axes_of(node: ir.Node) -> tuple[int, ...]:
    """Return the axes of an operator, from its input or attribute; refuses others than constants."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant_expression(node.inputs[1])
        if given is None:
            raise Refused(node, "the axes are not constant")
        return tuple(int(axis) for axis in given.reshape(-1))
    return ints_attribute(node, "axes")


def square(reader: Reader, node: ir.Node) -> None:
    """Read a product or power: one that begins a written-out RMS normalization as that, else as a chain."""
    found = _rms(node)
    if found is None:
        chain(reader, node)
    else:
        _emit(reader, node, found)


@dataclass(frozen=True, eq=False)
class _Found:
    """A normalization: what it is, the value it makes, the nodes it stands for."""

    kind: str
    value: ir.Value
    nodes: tuple[ir.Node, ...]
    epsilon: float = 0.0
    scale: L.Floats | None = None
    shift: L.Floats | None = None


def _emit(reader: Reader, node: ir.Node, found: _Found) -> None:
    x, end = operand(reader, node.inputs[0], node), ending(found.value, node)
    reader.take(*found.nodes)
    nodes = covers(*found.nodes, *end.nodes)
    layer = S.Rows((x,), end.tensor, nodes, found.kind, found.epsilon, found.scale, found.shift)
    emit(reader, node, end, layer)


def _vector(value: ir.Value | None, node: ir.Node) -> L.Floats | None:
    if value is None:
        return None
    array = array_of(value)
    length = shape_of(node.outputs[0], node)[-1]
    if array is None or array.dtype != np.float32 or array.size not in (1, length):
        raise Refused(node, "scale or shift is no constant of the last axis' size")
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (length,)), np.float32)


# --- written out ------------------------------------------------------------------------------------------


def _layer(mean: ir.Node) -> _Found | None:
    """Return the layer normalization that begins with the mean of its input."""
    x = mean.inputs[0]
    if x is None or not _last_axis(mean):
        return None
    centred = users(mean.outputs[0])
    if not centred or not all(n.op_type == "Sub" and list(n.inputs) == [x, mean.outputs[0]] for n in centred):
        return None
    readers = [(value.outputs[0], user) for value in centred for user in users(value.outputs[0])]
    squares = [user for value, user in readers if _squares(user, value)]
    quotients = {user for value, user in readers if not _squares(user, value)}
    if len(set(squares)) != 1 or len(quotients) != 1 or any(n.outputs[0].is_graph_output() for n in centred):
        return None
    spread = _deviation(squares[0])
    quotient = quotients.pop()
    if spread is None or quotient.op_type != "Div" or quotient.inputs[1] is not spread.value:
        return None
    if only_user(spread.value) is not quotient:
        return None
    nodes = (mean, *centred, *spread.nodes, quotient)
    return _scaled(_Found("layer", quotient.outputs[0], nodes, spread.epsilon))


def _rms(first: ir.Node) -> _Found | None:
    """Return the RMS normalization that begins with the square of its input."""
    x = first.inputs[0]
    if x is None or not _squares(first, x):
        return None
    spread = _deviation(first)
    user = None if spread is None else only_user(spread.value)
    if spread is None or user is None:
        return None
    nodes = (*spread.nodes, user)
    if (user.op_type == "Div" and _is_one(user.inputs[0])) or user.op_type == "Reciprocal":
        product = only_user(user.outputs[0])
        if (
            product is None
            or product.op_type != "Mul"
            or x not in product.inputs
            or product.inputs[0] is product.inputs[1]
        ):
            return None
        user, nodes = product, (*nodes, product)
    elif user.op_type != "Div" or list(user.inputs) != [x, spread.value]:
        return None
    return _scaled(_Found("rms", user.outputs[0], nodes, spread.epsilon))


def _deviation(square_of: ir.Node) -> _Found | None:
    """Follow the mean of squares, an epsilon, and the root."""
    mean = only_user(square_of.outputs[0])
    if mean is None or mean.op_type != "ReduceMean" or not _last_axis(mean):
        return None
    add = only_user(mean.outputs[0])
    epsilon = 0.0
    nodes = [square_of, mean]
    root = add
    if add is not None and add.op_type == "Add":
        found = [_number(value) for value in add.inputs if value is not mean.outputs[0]]
        if len(found) != 1 or found[0] is None:
            return None
        epsilon, root = found[0], only_user(add.outputs[0])
        nodes.append(add)
    if root is None or not (
        root.op_type == "Sqrt" or (root.op_type == "Pow" and _number(root.inputs[1]) == 0.5)
    ):
        return None
    return _Found("", root.outputs[0], (*nodes, root), epsilon)


def _scaled(found: _Found) -> _Found:
    """Take along a factor and a shift per element of the last axis."""
    scale, value, nodes = _operand_of("Mul", found.value)
    shift, value, more = _operand_of("Add", value)
    return _Found(found.kind, value, (*found.nodes, *nodes, *more), found.epsilon, scale, shift)


def _operand_of(op_type: str, value: ir.Value) -> tuple[L.Floats | None, ir.Value, tuple[ir.Node, ...]]:
    node = only_user(value)
    length = value.shape[-1] if value.shape else None
    if node is None or node.op_type != op_type or node.domain:
        return None, value, ()
    arrays = [array_of(other) for other in node.inputs if other is not value]
    if len(arrays) != 1 or arrays[0] is None or arrays[0].dtype != np.float32:
        return None, value, ()
    array = arrays[0]
    if array.size != length or array.ndim == 0 or array.shape[-1] != length:
        return None, value, ()
    return np.ascontiguousarray(array.reshape(-1)), node.outputs[0], (node,)


def _last_axis(node: ir.Node) -> bool:
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    axes = constant_expression(node.inputs[1]) if len(node.inputs) > 1 else None
    given: Sequence[int] = (
        ints_attribute(node, "axes") if axes is None else [int(a) for a in axes.reshape(-1)]
    )
    return rank > 0 and [a % rank for a in given] == [rank - 1] and bool(int_attribute(node, "keepdims", 1))


def _squares(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type == "Mul":
        return list(node.inputs) == [value, value]
    return node.op_type == "Pow" and node.inputs[0] is value and _number(node.inputs[1]) == 2.0


def _number(value: ir.Value | None) -> float | None:
    array = constant_expression(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _is_one(value: ir.Value | None) -> bool:
    return _number(value) == 1.0
