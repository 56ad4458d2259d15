"""Ways to store an array in fewer bytes: each rule returns the nodes that make it again, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir.walk import Array

# Serialised bytes around the data, with names of one or two letters: measured on payloads.
_NODE_BYTES = 24
_TENSOR_BYTES = 14
_BLOCKS, _BLOCK = 4, 1024
_MOST_CODES = 256

Bits: TypeAlias = npt.NDArray[np.generic]
Attributes: TypeAlias = Mapping[str, int | ir.TensorProtocol]


@dataclass(frozen=True)
class Recipe:
    """A node over constants or further nodes, with what it yields."""

    op_type: str
    inputs: Sequence[Recipe | Array]
    dtype: ir.DataType
    shape: tuple[int, ...]
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A recipe for an array and the bytes it takes in the file, estimated."""

    recipe: Recipe
    stored_bytes: int


def _form(recipe: Recipe) -> Form:
    return Form(recipe, _bytes(recipe))


def _bytes(part: Recipe | Array) -> int:
    if isinstance(part, Recipe):
        return _NODE_BYTES + sum(_bytes(inner) for inner in part.inputs)
    return _TENSOR_BYTES + int(part.nbytes)


def _bits(array: Array) -> Bits:
    """Return the elements as unsigned integers, so that equal means equal bit for bit."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _dtype(array: Array) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


def _sample(bits: Bits) -> Bits:
    """Return a few blocks from all over the array: of a memory-mapped one, few pages are read."""
    flat = bits.reshape(-1)
    if flat.size <= _BLOCKS * _BLOCK:
        return flat
    starts = np.linspace(0, flat.size - _BLOCK, _BLOCKS).astype(np.int64)
    return np.concatenate([flat[start : start + _BLOCK] for start in starts])


def _all_equal(bits: Bits, to: np.generic) -> bool:
    return bool((_sample(bits) == to).all()) and bool((bits == to).all())


def _filled(array: Array, element: Array, shape: tuple[int, ...]) -> Recipe:
    value = ir.tensor(np.array(element).reshape(1))
    return Recipe("ConstantOfShape", [np.array(shape, np.int64)], _dtype(array), shape, {"value": value})


def uniform(array: Array) -> Form | None:
    """All elements equal: ConstantOfShape."""
    if not _all_equal(_bits(array), _bits(array).reshape(-1)[0]):
        return None
    return _form(_filled(array, array.reshape(-1)[:1], array.shape))


def triangular(array: Array) -> Form | None:
    """One value on one side of a diagonal and zero on the other, as attention masks are: Trilu."""
    if array.ndim < 2 or min(array.shape[-2:]) < 2 or array.size != array.shape[-1] * array.shape[-2]:
        return None
    if array.dtype not in (np.float32, np.float64, np.int64):
        return None
    matrix = _bits(array).reshape(array.shape[-2:])
    for upper, k in ((1, 0), (1, 1), (0, 0), (0, -1)):
        corner = matrix[0, -1] if upper else matrix[-1, 0]
        if corner != 0 and _is_triangle(matrix, corner, upper, k):
            full = _filled(array, np.array([corner]).view(array.dtype), array.shape)
            inputs: list[Recipe | Array] = [full, np.array(k, np.int64)] if k else [full]
            return _form(Recipe("Trilu", inputs, _dtype(array), array.shape, {"upper": upper}))
    return None


def _is_triangle(matrix: Bits, corner: np.generic, upper: int, k: int) -> bool:
    """Compare row by row: most matrices differ in the first, and a copy of a big one would hurt."""
    columns = np.arange(matrix.shape[1])
    for number, row in enumerate(matrix):
        inside = columns >= number + k if upper else columns <= number + k
        if not np.array_equal(row, np.where(inside, corner, 0)):
            return False
    return True


def repeated(array: Array) -> Form | None:
    """The same along one or more axes: Expand."""
    bits, small = _bits(array), np.asarray(array)
    for axis in range(array.ndim):
        if bits.shape[axis] < 2 or not _ends_agree(bits, axis):
            continue
        first = bits.take([0], axis=axis)
        if bool((bits == first).all()):
            bits, small = first, small.take([0], axis=axis)
    if small.size == array.size:
        return None
    shape = np.array(array.shape, np.int64)
    return _form(Recipe("Expand", [np.ascontiguousarray(small), shape], _dtype(array), array.shape))


def _ends_agree(bits: Bits, axis: int) -> bool:
    """Compare a few elements of the first and last slice: tells most arrays apart without reading them."""
    slices = np.moveaxis(bits, axis, 0)
    few = (slice(0, 8),) * (bits.ndim - 1)
    return np.array_equal(slices[0][few], slices[-1][few])


def arithmetic_range(array: Array) -> Form | None:
    """Integers in equal steps: Range."""
    if array.ndim != 1 or array.size < 3 or array.dtype not in (np.int64, np.int32):
        return None
    start, step = int(array[0]), int(array[1]) - int(array[0])
    if step == 0 or int(array[-1]) != start + step * (array.size - 1) or not (np.diff(array) == step).all():
        return None
    limit = start + step * array.size
    if not -(2**31) <= limit < 2**31:
        return None
    inputs = [np.array(number, array.dtype) for number in (start, limit, step)]
    return _form(Recipe("Range", inputs, _dtype(array), array.shape))


def codebook(array: Array) -> Form | None:
    """At most 256 different values: Gather from a table by uint8 indices."""
    if array.dtype.itemsize < 2:
        return None
    bits = _bits(array)
    if np.unique(_sample(bits)).size > _MOST_CODES:
        return None
    values, indices = np.unique(bits.reshape(-1), return_inverse=True)
    if values.size > _MOST_CODES:
        return None
    table = values.view(array.dtype)
    stored = indices.reshape(array.shape).astype(np.uint8)
    cast = Recipe("Cast", [stored], ir.DataType.INT32, array.shape, {"to": int(ir.DataType.INT32)})
    return _form(Recipe("Gather", [table, cast], _dtype(array), array.shape))


def narrowed(array: Array) -> Form | None:
    """Values that a narrower type holds exactly: Cast."""
    for dtype in _NARROWER.get(array.dtype.name, ()):
        if _survives(_sample(array), dtype) and _survives(array, dtype):
            kind = _dtype(array)
            return _form(Recipe("Cast", [array.astype(dtype)], kind, array.shape, {"to": int(kind)}))
    return None


_NARROWER: Mapping[str, tuple[type[np.generic], ...]] = {
    "float32": (np.int8, np.float16),
    "float64": (np.int8, np.float16, np.float32),
    "int64": (np.int8, np.int16, np.int32),
    "int32": (np.int8, np.int16),
}


def _survives(array: Array, dtype: type[np.generic]) -> bool:
    with np.errstate(all="ignore"):
        back = array.astype(dtype).astype(array.dtype)
    return bool((_bits(back) == _bits(array)).all())


FORMS: Sequence[Callable[[Array], Form | None]] = (
    uniform,
    triangular,
    repeated,
    arithmetic_range,
    codebook,
    narrowed,
)
