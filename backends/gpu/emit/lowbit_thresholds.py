"""What follows a product of bits up to the next quantizer of two values, as one threshold of its sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.quant import QONNX_DOMAIN
from ....compiler.ir.walk import only_user
from ....compiler.ops.constants import constant_expression
from ..schedules.lowbit_binary import Shape

# Operators whose results rise or fall with one input, in every channel for itself.
_MONOTONE = {"Add", "BatchNormalization", "Clip", "Div", "Identity", "Mul", "Relu", "Sub"}


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Per channel: the result is a 1 where the sum, negated if it `falls`, is at least `lowest`."""

    lowest: npt.NDArray[np.int32]
    falls: npt.NDArray[np.bool_]


def chain_behind(value: ir.Value) -> list[ir.Node]:
    """Return the operators per channel behind a product up to a BipolarQuant; none where there is none."""
    rank, chain = len(value.shape or ()), list[ir.Node]()
    while (node := only_user(value)) is not None:
        chain.append(node)
        if (node.domain, node.op_type) == (QONNX_DOMAIN, "BipolarQuant"):
            scale = constant_expression(node.inputs[1])
            return chain if node.inputs[0] is value and scale is not None and scale.size == 1 else []
        if not _is_monotone(node, value, rank):
            return []
        value = node.outputs[0]
    return []


def _is_monotone(node: ir.Node, value: ir.Value, rank: int) -> bool:
    if node.domain != "" or node.op_type not in _MONOTONE or len(node.outputs) > 1:
        return False
    if node.op_type in ("Div", "BatchNormalization", "Clip", "Relu") and node.inputs[0] is not value:
        return False
    for other in node.inputs:
        if other is value or other is None:
            continue
        array = constant_expression(other)
        plain = node.op_type in ("BatchNormalization", "Clip")
        if array is None or not (plain or _per_channel(array, rank)):
            return False
    return sum(other is value for other in node.inputs) == 1


def _per_channel(array: npt.NDArray[np.number], rank: int) -> bool:
    full = (1,) * (rank - array.ndim) + array.shape
    return len(full) == rank and all(size == 1 for axis, size in enumerate(full) if axis != 1)


def thresholds_of(
    chain: Sequence[ir.Node], scale: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], shape: Shape
) -> Thresholds:
    """Return where the reference's results change, by halving; `sum * scale + bias` enters the chain."""
    reach = shape.channels * shape.kernel[0] * shape.kernel[1]
    sign = _signs(chain, scale, bias)
    channels = len(scale)
    ends = sign(np.full(channels, -reach)), sign(np.full(channels, reach))
    falls = ends[0] & ~ends[1]
    turn = np.where(falls, -1, 1)
    # The result is 0 at `low` and 1 at `high`; the ends stand for "never" and "always".
    low = np.where(falls | ~ends[0], -reach, -reach - 1)
    high = np.where(falls | ends[1], reach, reach + 1)
    high = np.where(ends[0] & ends[1], -reach, high)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        positive = sign(turn * middle)
        high, low = np.where(positive, middle, high), np.where(positive, low, middle)
    return Thresholds(high.astype(np.int32), falls)


def _signs(
    chain: Sequence[ir.Node], scale: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]
) -> Callable[[npt.NDArray[np.integer]], npt.NDArray[np.bool_]]:
    """Return what gives the bits behind the chain for one sum per channel."""
    from ...reference import evaluate

    model, kind, rank = _model(chain)
    name, result = str(model.graph.inputs[0].name), str(model.graph.outputs[0].name)

    def sign(sums: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        real = (sums * scale + bias).astype(kind).reshape(1, -1, *(1,) * (rank - 2))
        return evaluate(model, {name: real})[result].astype(np.float64).reshape(-1) > 0

    return sign


def _model(chain: Sequence[ir.Node]) -> tuple[ir.Model, np.dtype[np.generic], int]:
    """Return a model of the operators alone, its input's type and rank."""
    known: dict[ir.Value, ir.Value] = {}
    first = next(v for v in chain[0].inputs if v is not None and constant_expression(v) is None)
    assert first.dtype is not None, "a product without a type"
    assert first.shape is not None, "a product without a shape"
    rank = len(first.shape)
    given = ir.Value(name="sum", type=ir.TensorType(first.dtype))
    given.shape = ir.Shape([1, first.shape[1], *(1,) * (rank - 2)])
    known[first] = given
    initializers, nodes = list[ir.Value](), list[ir.Node]()
    for number, node in enumerate(chain):
        for index, value in enumerate(node.inputs):
            if value is not None and value not in known:
                array = constant_expression(value)
                assert array is not None, "an operator of a chain reads something else"
                name = f"c{number}_{index}"
                known[value] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                initializers.append(known[value])
        inputs = [None if value is None else known[value] for value in node.inputs]
        new = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), name=f"n{number}")
        new.outputs[0].name = f"v{number}"
        new.outputs[0].dtype, new.outputs[0].shape = first.dtype, given.shape
        known[node.outputs[0]] = new.outputs[0]
        nodes.append(new)
    opsets = {"": 21, QONNX_DOMAIN: 1}
    owner = chain[0].graph
    opsets |= dict(owner.opset_imports) if owner is not None else {}
    graph = ir.Graph(
        [given], [nodes[-1].outputs[0]], nodes=nodes, initializers=initializers, opset_imports=opsets
    )
    return ir.Model(graph, ir_version=10), first.dtype.numpy(), rank
