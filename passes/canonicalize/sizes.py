"""What is known of small integer vectors that describe shapes: sizes, symbols, or nothing, per element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from ...compiler.ir.walk import constant, constant_tensor, int_attribute
from .common import rank

Size: TypeAlias = int | str | None
"""A number, the name of a symbolic dimension, or unknown."""

_MOST_ELEMENTS = 1024
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}


@dataclass(frozen=True)
class Sizes:
    """Elements of an integer tensor of rank 0 or 1."""

    items: tuple[Size, ...]
    is_scalar: bool = False

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """All elements when every one is a number."""
        found = tuple(item for item in self.items if isinstance(item, int))
        return found if len(found) == len(self.items) else None


Table: TypeAlias = Mapping[ir.Value, Sizes]


def shape_sizes(value: ir.Value | None) -> tuple[Size, ...] | None:
    """Return the dimensions of a value as sizes, None when not even their number is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else _symbol(dim.value) for dim in value.shape)


def _symbol(name: str | None) -> str | None:
    # Shape inference makes up names like unk__3 for sizes it cannot tell.
    return None if name is None or name.startswith("unk__") else name


def look_up(value: ir.Value | None, table: Table) -> Sizes | None:
    """Return what is known of `value`: from the table, or because it is a small integer constant."""
    if value is None or value in table:
        return None if value is None else table[value]
    tensor = constant_tensor(value)
    if (
        tensor is None
        or tensor.dtype not in _INTEGERS
        or tensor.size > _MOST_ELEMENTS
        or len(tensor.shape) > 1
    ):
        return None
    array = constant(value)
    assert array is not None, "a constant has an array"
    return Sizes(tuple(int(item) for item in array.reshape(-1)), array.ndim == 0)


def evaluate(node: ir.Node, table: Table) -> Sizes | None:
    """Return what is known of the first output of `node`, None when nothing is."""
    rule = None if node.domain else RULES.get(node.op_type)
    return None if rule is None else rule(node, table)


def _shape(node: ir.Node, table: Table) -> Sizes | None:
    dims = shape_sizes(node.inputs[0])
    if dims is None:
        return None
    end = int_attribute(node, "end", len(dims))
    return Sizes(dims[int_attribute(node, "start", 0) : end])


def _size(node: ir.Node, table: Table) -> Sizes | None:
    dims = shape_sizes(node.inputs[0])
    numbers = None if dims is None else Sizes(dims).numbers
    if numbers is None:
        return None
    total = 1
    for number in numbers:
        total *= number
    return Sizes((total,), is_scalar=True)


def _gather(node: ir.Node, table: Table) -> Sizes | None:
    data, indices = look_up(node.inputs[0], table), look_up(node.inputs[1], table)
    wanted = None if indices is None else indices.numbers
    if data is None or data.is_scalar or indices is None or wanted is None:
        return None
    if any(not -len(data.items) <= index < len(data.items) for index in wanted):
        return None
    return Sizes(tuple(data.items[index] for index in wanted), indices.is_scalar)


def _concat(node: ir.Node, table: Table) -> Sizes | None:
    if rank(node.outputs[0]) != 1:
        return None
    items: list[Size] = []
    for value in node.inputs:
        found = look_up(value, table)
        if found is None:
            dims = shape_sizes(value)
            if dims is None or len(dims) != 1 or not isinstance(dims[0], int) or dims[0] > _MOST_ELEMENTS:
                return None
            found = Sizes((None,) * dims[0])
        items.extend(found.items)
    return Sizes(tuple(items))


def _same_elements(node: ir.Node, table: Table) -> Sizes | None:
    source, axes = look_up(node.inputs[0], table), rank(node.outputs[0])
    if source is None or axes not in (0, 1):
        return None
    return Sizes(source.items, axes == 0)


def _cast(node: ir.Node, table: Table) -> Sizes | None:
    return _same_elements(node, table) if int_attribute(node, "to", 0) in _INTEGERS else None


def _slice(node: ir.Node, table: Table) -> Sizes | None:
    data = look_up(node.inputs[0], table)
    bounds = [look_up(value, table) for value in node.inputs[1:]]
    numbers = [bound.numbers for bound in bounds if bound is not None]
    if data is None or data.is_scalar or len(numbers) != len(node.inputs) - 1:
        return None
    single = [number[0] for number in numbers if number is not None and len(number) == 1]
    if len(single) != len(numbers) or (len(single) > 3 and single[3] <= 0):
        return None
    return Sizes(data.items[single[0] : single[1] : single[3] if len(single) > 3 else 1])


def _arithmetic(compute: Callable[[int, int], int | None]) -> Callable[[ir.Node, Table], Sizes | None]:
    def rule(node: ir.Node, table: Table) -> Sizes | None:
        first, second = (look_up(value, table) for value in node.inputs[:2])
        if first is None or second is None:
            return None
        pairs = _broadcast(first.items, second.items)
        if pairs is None:
            return None
        items = tuple(compute(a, b) if isinstance(a, int) and isinstance(b, int) else None for a, b in pairs)
        return Sizes(items, first.is_scalar and second.is_scalar)

    return rule


def _broadcast(first: Sequence[Size], second: Sequence[Size]) -> list[tuple[Size, Size]] | None:
    length = max(len(first), len(second))
    if {len(first), len(second)} - {1, length}:
        return None
    one = list(first) * (length if len(first) == 1 else 1)
    other = list(second) * (length if len(second) == 1 else 1)
    return list(zip(one, other, strict=True))


def _divide(a: int, b: int) -> int | None:
    # ONNX truncates integer division; sizes are not negative, where flooring is the same.
    return a // b if a >= 0 and b > 0 else None


RULES: Mapping[str, Callable[[ir.Node, Table], Sizes | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _same_elements,
    "Squeeze": _same_elements,
    "Reshape": _same_elements,
    "Identity": _same_elements,
    "Cast": _cast,
    "Slice": _slice,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _arithmetic(_divide),
}
