"""Reads a function as one product C[s, i, j] += A[s, i, k] * B[s, j, k], whatever its operator is called.

Convolutions are products too: i runs over batch and image, j over channels out, k over the window and the
channels in; A is then read by an address computed from i and k (implicit GEMM), never written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from tvm import s_tir, tirx

Role = Literal["s", "i", "j", "k"]
Sides: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
_ELEMENT_BYTES = {"int8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}


@dataclass(frozen=True)
class Axis:
    """A loop of the product.

    Attributes:
        role: which of the four directions it belongs to.
        extent: its length.
    """

    role: Role
    extent: int


@dataclass(frozen=True)
class Product:
    """A function's product.

    Attributes:
        block: name of the block that sums.
        axes: its loops in order.
        dtypes: of A, B and C.
        runs: per operand, how many elements lie next to each other in memory along the last loop, and the
            role of that loop.
        index: type of the loops' variables.
    """

    block: str
    axes: tuple[Axis, ...]
    dtypes: tuple[str, str, str]
    runs: tuple[tuple[int, Role], tuple[int, Role]]
    index: str

    def extent(self, role: Role) -> int:
        """Return how long a direction is."""
        return prod(axis.extent for axis in self.axes if axis.role == role)

    @property
    def innermost(self) -> int:
        """Number of the innermost axis of k that is longer than one, or of the last."""
        along_k = [number for number, axis in enumerate(self.axes) if axis.role == "k"]
        return max((number for number in along_k if self.axes[number].extent > 1), default=along_k[-1])

    def width(self, side: int) -> int:
        """Return the bytes of an element of an operand."""
        return element_bytes(self.dtypes[side])


def element_bytes(dtype: str) -> int:
    """Return the bytes of an element."""
    return _ELEMENT_BYTES[dtype]


def product_of(function: tirx.PrimFunc) -> Product | None:
    """Return a function's product, or None where it has none, or more than one sum."""
    from tvm import s_tir

    root = function.body
    if not isinstance(root, s_tir.SBlockRealize):
        return None
    blocks = leaf_blocks(function)
    sums = [block for block in blocks if block.init is not None]
    if len(sums) != 1 or any(not _is_plain(block) for block in blocks):
        return None
    return _product(sums[0])


def leaf_blocks(function: tirx.PrimFunc) -> list[s_tir.SBlock]:
    """Return the blocks of an unscheduled function but its root, in order."""
    import tvm_ffi
    from tvm import s_tir

    found: list[s_tir.SBlock] = []
    tvm_ffi.structural_walk(function.body, [(s_tir.SBlock, found.append)], order="post")
    return found[:-1]


def _is_plain(block: s_tir.SBlock) -> bool:
    """Tell whether every axis of a block is of fixed length and is either kept or summed over."""
    from tvm import tirx

    kinds = {tirx.IterVar.DataPar, tirx.IterVar.CommReduce}
    return all(
        axis.iter_type in kinds and isinstance(axis.dom.extent, tirx.IntImm) for axis in block.iter_vars
    )


def _product(block: s_tir.SBlock) -> Product | None:
    reads, write, sides = _factors(block), block.writes[0], sides_of(block)
    if reads is None or sides is None:
        return None
    variables = [axis.var for axis in block.iter_vars]
    axes = [_axis(block, number, sides) for number in range(len(variables))]
    if any(axis is None for axis in axes):
        return None
    whole = tuple(axis for axis in axes if axis is not None)
    runs = tuple(_run(region, variables, whole) for region in reads)
    dtypes = tuple(str(region.source.dtype) for region in (*reads, write))
    index = str(block.iter_vars[0].var.ty)
    return Product(str(block.name_hint), whole, (dtypes[0], dtypes[1], dtypes[2]), (runs[0], runs[1]), index)


def sides_of(block: s_tir.SBlock) -> Sides | None:
    """Return the axes, by number, that A, B and C depend on; None where not one element of each is used."""
    variables = [axis.var for axis in block.iter_vars]
    if len(block.reads) != 2 or len(block.writes) != 1:
        return None
    found = [_axes_of(region, variables) for region in (*block.reads, *block.writes)]
    a, b, c = found
    return None if a is None or b is None or c is None else (a, b, c)


def _factors(block: s_tir.SBlock) -> tuple[tirx.BufferRegion, tirx.BufferRegion] | None:
    """Return the two regions that are multiplied, or None where the block does something else."""
    from tvm import ir, tirx

    store = block.body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add):
        return None
    term = _uncast(store.value.b)
    if not isinstance(term, tirx.Mul):
        return None
    loads = [_uncast(side) for side in (term.a, term.b)]
    if any(not isinstance(load, ir.TensorLoad) for load in loads) or len(block.reads) != 2:
        return None
    regions = [next((r for r in block.reads if r.source.same_as(load.source)), None) for load in loads]
    first, second = regions
    if first is None or second is None or first.same_as(second):
        return None
    return (first, second) if block.reads[0].same_as(first) else None


def _uncast(expr: tirx.Expr) -> tirx.Expr:
    from tvm import tirx

    return expr.value if isinstance(expr, tirx.Cast) else expr


def _axes_of(region: tirx.BufferRegion, variables: list[tirx.Var]) -> tuple[int, ...] | None:
    """Return the numbers of the axes that a region depends on; None where it is more than one element."""
    from tvm.tirx.analysis import undefined_vars

    used = [v for part in region.region for v in undefined_vars(part.min)]
    if any(int(part.extent) != 1 for part in region.region):
        return None
    return tuple(n for n, v in enumerate(variables) if any(v.same_as(other) for other in used))


def _axis(block: s_tir.SBlock, number: int, sides: Sides) -> Axis | None:
    """Return an axis with its role; one of length one may be of any role, however many sides need it."""
    roles: dict[tuple[bool, bool, bool], Role] = {
        (True, True, True): "s", (True, False, True): "i", (False, True, True): "j", (True, True, False): "k",
    }  # fmt: skip
    extent = int(block.iter_vars[number].dom.extent)
    used = (number in sides[0], number in sides[1], number in sides[2])
    role = roles.get(used)
    if extent == 1 and role in (None, "k"):
        role = _role_of_one(block.iter_vars[number], used)
    return Axis(role, extent) if role is not None else None


def _role_of_one(axis: tirx.IterVar, used: tuple[bool, bool, bool]) -> Role:
    """Return a role for an axis of length one: summed axes and kept ones cannot be fused."""
    from tvm import tirx

    if axis.iter_type == tirx.IterVar.CommReduce and not used[2]:
        return "k"
    return "s" if used[0] and used[1] else "i"


def _run(region: tirx.BufferRegion, variables: list[tirx.Var], axes: tuple[Axis, ...]) -> tuple[int, Role]:
    """Return the stretch of memory that the last index walks through, and the role of its axis.

    It counts where that axis is the innermost of its role, so that fusing the role's axes keeps the stretch.
    """
    last = region.region[-1].min
    for number, variable in enumerate(variables):
        if variable.same_as(last):
            role = axes[number].role
            others = [n for n, axis in enumerate(axes) if axis.role == role and axis.extent > 1]
            inner = max([*others, number])
            return (axes[number].extent if inner == number else 1), role
    return 1, "k"
