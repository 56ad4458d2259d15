"""Products that read whole matrices as they lie in memory: what a library can do in a schedule's place.

A 1x1 convolution over pictures with their channels last is one; pads, larger windows, strides and operands
that are computed on the way are not in the library's reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .gemm_form import Product, Role, leaf_blocks, product_of

if TYPE_CHECKING:
    from tvm import s_tir, tirx

# Types of both operands -> of their sums.
_SUMS = {"int8": "int32", "float16": "float32", "bfloat16": "float32", "float32": "float32"}


@dataclass(frozen=True)
class Dense:
    """C[i, j] = sum over k of A[i, k] B[k, j], rows without gaps.

    Attributes:
        dtype: of A and B.
        result: of C.
        rows, columns, depth: how many i, j and k.
        b_by_columns: B lies as [j, k], else as [k, j].
        a, b: parameters of the function that A and B are.
        c: the parameter that C is; empty where the function goes on with the sums.
    """

    dtype: str
    result: str
    rows: int
    columns: int
    depth: int
    b_by_columns: bool
    a: str
    b: str
    c: str


def dense_of(function: tirx.PrimFunc) -> Dense | None:
    """Return an unscheduled function's product of matrices, or None where it has none."""
    product = product_of(function)
    if product is None or product.extent("s") != 1 or not _is_typed(product):
        return None
    block = next(block for block in leaf_blocks(function) if block.init is not None)
    a, b = block.reads
    names = [_parameter(function, region.source) for region in (a, b)]
    b_by_columns = _lies(block, b, product, ("j", "k"))
    right = b_by_columns or _lies(block, b, product, ("k", "j"))
    if not (all(names) and right and _lies(block, a, product, ("i", "k"))):
        return None
    c, result = _result(function, block, product)
    sizes = (product.extent("i"), product.extent("j"), product.extent("k"))
    return Dense(product.dtypes[0], result, *sizes, b_by_columns, names[0], names[1], c)


def _is_typed(product: Product) -> bool:
    first, second, sums = product.dtypes
    return first == second and _SUMS.get(first) == sums


def _parameter(function: tirx.PrimFunc, buffer: tirx.Buffer) -> str:
    """Return the name of the parameter that a buffer is, empty where it is none."""
    return next((str(p.name) for p in function.params if p.same_as(buffer)), "")


def _lies(block: s_tir.SBlock, region: tirx.BufferRegion, product: Product, roles: tuple[Role, ...]) -> bool:
    """Tell whether a region walks through memory without gaps when the axes of `roles` count up in order."""
    strides = _strides(block, region, product.index)
    if strides is None:
        return False
    expected = 1
    for role in reversed(roles):
        for axis, stride in reversed(list(zip(product.axes, strides, strict=True))):
            if axis.role == role and axis.extent > 1:
                if stride != expected:
                    return False
                expected *= axis.extent
    return True


def _strides(block: s_tir.SBlock, region: tirx.BufferRegion, index: str) -> list[int] | None:
    """Return elements from one step of every axis to the next; None where they differ or start elsewhere."""
    from tvm import sym, tirx

    place: tirx.Expr = tirx.IntImm(index, 0)
    for part, size in zip(region.region, region.source.shape, strict=True):
        place = place * int(size) + part.min
    found = sym.detect_linear_equation(place, [axis.var for axis in block.iter_vars])
    numbers = [number for number in found if isinstance(number, tirx.IntImm)]
    if not found or len(numbers) < len(found) or int(numbers[-1]):
        return None
    return [int(number) for number in numbers[:-1]]


def _result(function: tirx.PrimFunc, block: s_tir.SBlock, product: Product) -> tuple[str, str]:
    """Return the parameter that holds the sums, if any, and its type: as they are, or rounded once."""
    sums, behind = block.writes[0], [other for other in leaf_blocks(function) if other.init is None]
    dtype = product.dtypes[2]
    if not _lies(block, sums, product, ("i", "j")):
        return "", dtype
    if not behind:
        return _parameter(function, sums.source), dtype
    rounded = _rounded(behind, sums.source)
    if rounded is None or str(rounded.dtype) != product.dtypes[0]:
        return "", dtype
    return _parameter(function, rounded), product.dtypes[0]


def _rounded(behind: list[s_tir.SBlock], sums: tirx.Buffer) -> tirx.Buffer | None:
    """Return what the only block behind a product writes, where it converts every element and no more."""
    from tvm import ir, tirx

    store = behind[0].body
    if len(behind) > 1 or not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Cast):
        return None
    load = store.value.value
    if not isinstance(load, ir.TensorLoad) or not load.source.same_as(sums):
        return None
    same = [a.same_as(b) for a, b in zip(store.indices, load.indices, strict=False)]
    shapes = [[int(size) for size in buffer.shape] for buffer in (store.buffer, sums)]
    return store.buffer if all(same) and shapes[0] == shapes[1] else None
