"""ONNX's operator `Attention` written out as products, a mask and Softmax, which `attention.py` finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import Names, int_attribute, static_shape
from ....compiler.ops.common import float_attribute

_Q, _K, _V, _MASK = range(4)


def write_out_attention(model: ir.Model) -> int:
    """Replace Attention nodes in place; returns how many.

    Those with a cache, other outputs, capped scores or fewer heads of keys than of queries stay.
    """
    found = [node for node in model.graph if (node.domain, node.op_type) == ("", "Attention")]
    names = Names(model) if found else None
    return sum(_Writer(node, names).write() for node in found if names is not None)


class _Writer:
    """Puts operators before a node, one by one."""

    def __init__(self, node: ir.Node, names: Names) -> None:
        self._node, self._names = node, names
        self._sizes = [None if v is None else static_shape(v) for v in node.inputs[:3]]

    def write(self) -> bool:
        node, graph = self._node, self._node.graph
        heads = self._heads()
        if heads is None or graph is None or not self._is_plain():
            return False
        q, k, v = (self._apart(node.inputs[index], heads, sizes) for index, sizes in enumerate(self._sizes))
        (_, _, rows, depth), keys = _sizes(q), _sizes(k)[2]
        turned = self._op("Transpose", [k], [*_sizes(k)[:2], depth, keys], perm=(0, 1, 3, 2))
        scores = self._op("MatMul", [q, turned], [*_sizes(q)[:3], keys])
        scale = float_attribute(node, "scale", 0.0) or 1.0 / float(np.sqrt(depth))
        scores = self._op("Mul", [scores, self._constant(np.float64(scale))], _sizes(scores))
        for mask in self._masks(rows, keys):
            scores = self._op("Add", [scores, mask], _sizes(scores))
        weights = self._op("Softmax", [scores], _sizes(scores), axis=-1)
        result = self._op("MatMul", [weights, v], [*_sizes(q)[:3], _sizes(v)[3]])
        last = self._together(result)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs[:1], [last])
        return True

    def _heads(self) -> int | None:
        """Return the heads; None where queries have others than keys, or sizes are open."""
        q, k, v = self._sizes
        if q is None or k is None or v is None or not len(q) == len(k) == len(v):
            return None
        if len(q) == 4:
            return q[1] if q[1] == k[1] == v[1] else None
        counts = [int_attribute(self._node, f"{name}_num_heads", 0) for name in ("q", "kv")]
        return counts[0] if len(q) == 3 and counts[0] and counts[0] == counts[1] else None

    def _is_plain(self) -> bool:
        node = self._node
        more = [*node.inputs[4:], *(v for v in node.outputs[1:] if v.uses() or v.is_graph_output())]
        return not any(v is not None for v in more) and not float_attribute(node, "softcap", 0.0)

    def _apart(self, value: ir.Value | None, heads: int, sizes: Sequence[int] | None) -> ir.Value:
        """Return an operand as [batch, heads, rows, columns]."""
        assert value is not None, "attention without an operand"
        assert sizes is not None, "an operand without sizes"
        if len(sizes) == 4:
            return value
        shape = [sizes[0], sizes[1], heads, sizes[2] // heads]
        apart = self._op("Reshape", [value, self._constant(np.array(shape, np.int64))], shape)
        return self._op("Transpose", [apart], [shape[0], heads, shape[1], shape[3]], perm=(0, 2, 1, 3))

    def _together(self, value: ir.Value) -> ir.Value:
        """Return the result as the node has it."""
        batch, heads, rows, columns = _sizes(value)
        if self._sizes[_Q] is not None and len(self._sizes[_Q] or ()) == 4:
            return value
        turned = self._op("Transpose", [value], [batch, rows, heads, columns], perm=(0, 2, 1, 3))
        shape = [batch, rows, heads * columns]
        return self._op("Reshape", [turned, self._constant(np.array(shape, np.int64))], shape)

    def _masks(self, rows: int, keys: int) -> list[ir.Value]:
        node, found = self._node, list[ir.Value]()
        if int_attribute(node, "is_causal", 0):
            found.append(self._constant(np.where(np.tri(rows, keys), 0.0, -np.inf)))
        given = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        if given is not None and given.dtype == ir.DataType.BOOL:
            forbidden = (self._constant(np.float64(number)) for number in (0.0, -np.inf))
            given = self._op("Where", [given, *forbidden], static_shape(given) or ())
        if given is not None and found:
            sizes = list(np.broadcast_shapes(static_shape(given) or (), (rows, keys)))
            found = [self._op("Add", [given, found[0]], sizes)]
        return [given] if given is not None and not found else found

    def _constant(self, array: np.ndarray | np.float64) -> ir.Value:
        kind = self._node.outputs[0].dtype
        assert kind is not None, "attention without a type"
        whole = np.asarray(array)
        typed = whole if whole.dtype == np.int64 else whole.astype(kind.numpy())
        name = self._names.fresh(f"{self._node.outputs[0].name}_constant")
        value = ir.Value(name=name, const_value=ir.tensor(typed, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(typed.dtype), ir.Shape(typed.shape)
        assert self._node.graph is not None, "attention is in no graph"
        self._node.graph.register_initializer(value)
        return value

    def _op(
        self, op: str, inputs: Sequence[ir.Value], sizes: Sequence[int], **attributes: int | Sequence[int]
    ) -> ir.Value:
        given = ir.convenience.convert_attributes(attributes)
        name = self._names.fresh(f"{self._node.outputs[0].name}_{op.lower()}")
        node = ir.Node("", op, inputs, given, name=name)
        value = node.outputs[0]
        kind = self._node.outputs[0].dtype
        assert kind is not None, "attention without a type"
        value.name, value.dtype, value.shape = name, kind, ir.Shape(sizes)
        assert self._node.graph is not None, "attention is in no graph"
        self._node.graph.insert_before(self._node, node)
        return value


def _sizes(value: ir.Value) -> tuple[int, ...]:
    found = static_shape(value)
    assert found is not None, "a value of open sizes"
    return found
