"""Stores quantized weights of few values in as many bits: onnxruntime unpacks them when it loads the model.

An int8 or uint8 constant of at most 16 values, in all or per slice of its first or last axis, becomes codes
of 1, 2, 3 or 4 bits in bytes, unpacked by BitShift and BitwiseAnd, and a table that Gather or GatherElements
reads. All of that is constant, so onnxruntime folds it: the model runs as if the weights stood there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.backend import Array
from ...compiler.ir.walk import Names, add_initializer, drop_unused_initializer, replace_value

_MOST_VALUES = 16
_LEAST_BYTES = 512
_NODES_BYTES = {1: 230, 2: 230, 3: 480, 4: 230}
"""What the nodes of a code take in the file, by its bits; measured on payloads."""

Codes = npt.NDArray[np.uint8]


def pack_weights(model: ir.Model) -> int:
    """Rewrite bytes of the main graph in place, the same numbers in fewer bits; return how many."""
    names, done = Names(model), 0
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        bound = value.is_graph_input() or value.is_graph_output() or not value.uses()
        if bound or tensor is None or tensor.nbytes < _LEAST_BYTES or not _is_packable(tensor):
            continue
        array = np.asarray(tensor.numpy())
        found = find_table(array)
        if found is not None and found.stored_bytes < array.nbytes - _LEAST_BYTES // 4:
            _Writer(model.graph, names, str(value.name)).write(value, found, array)
            done += 1
    return done


def _is_packable(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True, eq=False)
class Table:
    """An array as codes into a table.

    Attributes:
        codes: `[n]`, flat in the array's order.
        values: `[v]`, or `[slices, v]` where every slice of `axis` has its own.
        axis: 0, -1, or None: one table for all.
    """

    codes: Codes
    values: Array
    axis: int | None

    @property
    def bits(self) -> int:
        """Of a code."""
        return max(int(self.values.shape[-1] - 1).bit_length(), 1)

    @property
    def stored_bytes(self) -> int:
        """Estimated bytes in the file."""
        extra = 0 if self.axis is None else 60
        return self.codes.size * self.bits // 8 + self.values.nbytes + _NODES_BYTES[self.bits] + extra


def find_table(array: Array) -> Table | None:
    """Return the smallest table of an array, None when it has too many values."""
    if array.size < 2:
        return None
    found = [_one(array)] + [_sliced(array, axis) for axis in (0, -1) if array.ndim > 1]
    tables = [table for table in found if table is not None]
    return min(tables, key=lambda table: table.stored_bytes, default=None)


def _one(array: Array) -> Table | None:
    # A few elements tell most arrays apart without sorting them.
    if np.unique(array.reshape(-1)[:256]).size > _MOST_VALUES:
        return None
    values, codes = np.unique(array.reshape(-1), return_inverse=True)
    return Table(codes.astype(np.uint8), values, None) if 1 < values.size <= _MOST_VALUES else None


def _sliced(array: Array, axis: int) -> Table | None:
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    first = np.unique(rows[0]).size
    if first > _MOST_VALUES or len(rows) < 2 or rows.shape[1] < 2:
        return None
    tables = [np.unique(row, return_inverse=True) for row in rows]
    most = max(values.size for values, _ in tables)
    if most > _MOST_VALUES:
        return None
    values = np.stack([np.pad(v, (0, most - v.size), mode="edge") for v, _ in tables])
    codes = np.stack([c for _, c in tables]).astype(np.uint8)
    shape = (array.shape[axis], *(n for i, n in enumerate(array.shape) if i != axis % array.ndim))
    flat = np.moveaxis(codes.reshape(shape), 0, axis).reshape(-1)
    return Table(np.ascontiguousarray(flat), values, axis)


@dataclass(frozen=True)
class _Writer:
    """Writes the nodes of one constant in front of the graph."""

    graph: ir.Graph
    names: Names
    base: str

    def write(self, value: ir.Value, table: Table, array: Array) -> None:
        """Replace `value` by nodes that make `array`."""
        made: list[ir.Value] = []
        index = self._codes(made, table)
        kind = ir.DataType.from_numpy(array.dtype)
        if table.axis is None:
            flat = self._node(made, "Gather", [self._stored(table.values), index], kind, (array.size,))
        else:
            flat = self._sliced(made, index, table, array, kind)
        self._node(made, "Reshape", [flat, self._stored(np.array(array.shape, np.int64))], kind, array.shape)
        nodes = [node for item in made if (node := item.producer()) is not None]
        self.graph.insert_before(self.graph[0], nodes)
        replace_value(value, made[-1])
        drop_unused_initializer(value)

    def _sliced(
        self, made: list[ir.Value], index: ir.Value, table: Table, array: Array, kind: ir.DataType
    ) -> ir.Value:
        """Look up in a table per slice; the codes are seen as a matrix."""
        first = table.axis == 0
        slices = array.shape[0] if first else array.shape[-1]
        shape = (slices, array.size // slices) if first else (array.size // slices, slices)
        sizes = self._stored(np.array(shape, np.int64))
        matrix = self._node(made, "Reshape", [index, sizes], ir.DataType.INT32, shape)
        values = self._stored(np.ascontiguousarray(table.values if first else table.values.T))
        axis = {"axis": 1 if first else 0}
        return self._node(made, "GatherElements", [values, matrix], kind, shape, axis)

    def _codes(self, made: list[ir.Value], table: Table) -> ir.Value:
        """Return the codes as int32 `[n]`; three bits are two and one."""
        if table.bits != 3:
            narrow = self._field(made, table.codes, table.bits)
        else:
            low, high = (self._field(made, part, width) for part, width in _split(table.codes))
            lifted = self._node(
                made,
                "BitShift",
                [high, self._stored(np.array(2, np.uint8))],
                ir.DataType.UINT8,
                table.codes.shape,
                {"direction": "LEFT"},
            )
            narrow = self._node(made, "BitwiseOr", [low, lifted], ir.DataType.UINT8, table.codes.shape)
        to = {"to": int(ir.DataType.INT32)}
        return self._node(made, "Cast", [narrow], ir.DataType.INT32, table.codes.shape, to)

    def _field(self, made: list[ir.Value], codes: Codes, bits: int) -> ir.Value:
        """Return codes of 1, 2 or 4 bits as uint8 `[n]`."""
        per_byte = 8 // bits
        size = -(-codes.size // per_byte)
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
        padded = np.pad(codes, (0, size * per_byte - codes.size)).reshape(size, per_byte)
        packed = self._stored(np.bitwise_or.reduce(padded << shifts, axis=1).astype(np.uint8)[:, None])
        shape, kind = (size, per_byte), ir.DataType.UINT8
        right = {"direction": "RIGHT"}
        moved = self._node(made, "BitShift", [packed, self._stored(shifts)], kind, shape, right)
        mask = self._stored(np.array((1 << bits) - 1, np.uint8))
        field = self._node(made, "BitwiseAnd", [moved, mask], kind, shape)
        flat = self._stored(np.array([-1], np.int64))
        field = self._node(made, "Reshape", [field, flat], kind, (size * per_byte,))
        if size * per_byte == codes.size:
            return field
        ends = [self._stored(np.array([number], np.int64)) for number in (0, codes.size)]
        return self._node(made, "Slice", [field, *ends], kind, codes.shape)

    def _stored(self, array: Array) -> ir.Value:
        return add_initializer(self.graph, self.names.fresh(f"{self.base}_packed"), array)

    def _node(
        self,
        made: list[ir.Value],
        op_type: str,
        inputs: list[ir.Value],
        kind: ir.DataType,
        shape: tuple[int, ...],
        attributes: Mapping[str, int | str] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes or {})
        result = node.outputs[0]
        result.name = self.names.fresh(f"{self.base}_{op_type.lower()}")
        result.type, result.shape = ir.TensorType(kind), ir.Shape(list(shape))
        made.append(result)
        return result


def _split(codes: Codes) -> tuple[tuple[Codes, int], tuple[Codes, int]]:
    return (codes & np.uint8(3), 2), (codes >> np.uint8(2), 1)
