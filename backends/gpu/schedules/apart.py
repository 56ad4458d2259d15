"""A product apart from what follows it: a function becomes two kernels, with the sums in memory between.

    product:   A, B            -> partial   partial[r, s, i, j] = sum of A[s, i, k] B[s, j, k], part r of k
    epilogue:  partial, others -> results   parts are added in order, then all that stood behind the product

`halve` makes the two functions, unscheduled; `joined` puts them back together, scheduled, as one function
of two kernels. `partial` is scratch of that function (`DeviceFunction.scratch`), in C order and without
gaps, int32 or float32; axes r and s are left out where they are 1 long, so that with one part and one
batch it is C[i, j]. What reads A (pads, the layout of a picture) belongs to the product.

Who can do the product by other means (a library) halves with one part (`split.apart(function, chip, 1)`).
Of what `kernels.generate` makes of that, `kernels[0].parameters` are the names of A and B in the function
and the name of `partial`; `kernels[1]` is the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING

from .gemm_form import Product, product_of
from .matrices import to_matrices
from .tiles import DEPTH_BYTES

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import SBlockRV


# What a thread loads at once.
VECTOR_BYTES = 16


@dataclass(frozen=True)
class Halves:
    """A function as two.

    Attributes:
        product: writes `partial`, its last parameter.
        epilogue: reads `partial`, its first parameter.
        partial: what lies between them.
        form: the product of `product`; s runs over parts and batch, A and B lie as they do in the function.
    """

    product: tirx.PrimFunc
    epilogue: tirx.PrimFunc
    partial: tirx.Buffer
    form: Product


def part_length(product: Product, parts: int) -> int | None:
    """Return how long the parts of k are, or None where it is not cut into so many.

    One axis is cut after whole steps of a tile, the last part may be shorter. A convolution's k is cut
    along the channels, into equal parts of whole steps and vectors: elsewhere TVM would load single elements.
    """
    whole, inner = product.extent("k"), product.axes[product.innermost].extent
    depth = DEPTH_BYTES // product.width(0)
    if parts == 1:
        return whole
    if _is_flat(product):
        steps = -(-whole // depth)
        each = -(-steps // parts)
        return each * depth if -(-steps // each) == parts else None
    channels, rest = divmod(inner, parts)
    fits = channels * product.width(0) % VECTOR_BYTES == 0 and whole // parts % depth == 0
    return whole // parts if fits and not rest else None


def _is_flat(product: Product) -> bool:
    """Tell whether k is one axis."""
    return product.axes[product.innermost].extent == product.extent("k")


def halve(function: tirx.PrimFunc, parts: int) -> Halves:
    """Cut a function behind its product, and k into parts (`part_length`).

    Raises:
        ScheduleError: what stands around the product is not to be transformed.
    """
    from tvm import s_tir

    product = product_of(function)
    assert product is not None, "halved without a product"
    length = part_length(product, parts)
    assert length is not None, f"k is not cut into {parts} parts"
    schedule = s_tir.Schedule(function)
    block = schedule.get_sblock(product.block)
    cuts = 1 if _is_flat(product) else parts
    to_matrices(schedule, product, block, b_by_columns=product.runs[1][1] == "k", parts=cuts)
    sums = _sum_parts(schedule, block, parts, length)
    partial = schedule.get(sums).writes[0].source
    first, second = _cut(schedule.mod["main"], partial)
    return Halves(first, second, partial, _form(first, product, parts, length))


def _sum_parts(schedule: s_tir.Schedule, block: SBlockRV, parts: int, length: int) -> SBlockRV:
    """Let a block of its own, which is returned, sum each part; `block` sums what it writes.

    One part is what `block` sums already.
    """
    if parts == 1:
        _drop_units(schedule, block, parts)
        return block
    *_, k = schedule.get_loops(block)
    if parts * length != int(schedule.get(k).extent):
        schedule.pad_einsum(block, [1, 1, 1, parts * length])
        *_, k = schedule.get_loops(block)
    part, _ = schedule.split(k, [parts, length])
    sums = schedule.rfactor(part, 0)
    s, i, j, part, k = schedule.get_loops(sums)
    schedule.reorder(part, s, i, j, k)
    _drop_units(schedule, sums, parts)
    return sums


def _drop_units(schedule: s_tir.Schedule, sums: SBlockRV, parts: int) -> None:
    """Leave out s where it is 1 long."""
    partial = schedule.get(sums).writes[0].source
    batch = 1 if parts > 1 else 0
    kept = [axis for axis, size in enumerate(partial.shape) if axis != batch or int(size) > 1]
    schedule.transform_layout(sums, ("write", 0), lambda *at: [at[axis] for axis in kept])


def _form(function: tirx.PrimFunc, whole: Product, parts: int, length: int) -> Product:
    """Return the product of the first half; its stretches of memory along k end with a part."""
    product = product_of(function)
    assert product is not None, "half a product is one"
    end = length if _is_flat(whole) else whole.axes[whole.innermost].extent // parts
    first, second = [(gcd(run, end) if role == "k" else run, role) for run, role in whole.runs]
    return replace(product, runs=(first, second))


def _cut(function: tirx.PrimFunc, buffer: tirx.Buffer) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Return what writes a buffer and what reads it, as functions; the buffer is a parameter of both."""
    nests = [_Nest(loops) for loops in function.body.block.body.seq]
    before = _needed(nests, [buffer], [])
    results = [p for p in function.params if any(_in(p, nest.writes) for nest in nests)]
    behind = _needed(nests, results, [buffer])
    return _part(function, before, [], [buffer]), _part(function, behind, [buffer], [])


class _Nest:
    """Loops around one block, and the buffers that it reads and writes."""

    def __init__(self, loops: tirx.Stmt) -> None:
        import tvm_ffi
        from tvm import s_tir

        blocks: list[s_tir.SBlock] = []
        tvm_ffi.structural_walk(loops, [(s_tir.SBlock, blocks.append)], order="post")
        self.loops = loops
        self.reads = [region.source for block in blocks for region in block.reads]
        self.writes = [region.source for block in blocks for region in block.writes]


def _in(buffer: tirx.Buffer, others: list[tirx.Buffer]) -> bool:
    return any(buffer.same_as(other) for other in others)


def _needed(nests: list[_Nest], wanted: list[tirx.Buffer], given: list[tirx.Buffer]) -> list[_Nest]:
    """Return the nests, in order, that compute `wanted` from `given` and parameters."""
    needed, found = list(wanted), []
    for nest in reversed(nests):
        if any(_in(buffer, needed) and not _in(buffer, given) for buffer in nest.writes):
            found.append(nest)
            needed += nest.reads
    return found[::-1]


def _part(
    function: tirx.PrimFunc, nests: list[_Nest], first: list[tirx.Buffer], last: list[tirx.Buffer]
) -> tirx.PrimFunc:
    """Return a function of some of a function's nests; its parameters lie between `first` and `last`."""
    from tvm import tirx

    used = [buffer for nest in nests for buffer in (*nest.reads, *nest.writes)]
    root = function.body.block
    inner = [b for b in root.alloc_buffers if _in(b, used) and not _in(b, [*first, *last])]
    outer = [*first, *(p for p in function.params if _in(p, used)), *last]
    body = _root(inner, [nest.loops for nest in nests])
    return tirx.PrimFunc(outer, body, attrs=function.attrs)


def _root(buffers: list[tirx.Buffer], statements: list[tirx.Stmt]) -> tirx.Stmt:
    """Return a function's body."""
    from tvm import s_tir, tirx

    body = statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
    return s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body, alloc_buffers=buffers))


def joined(function: tirx.PrimFunc, halves: Halves, *scheduled: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function's halves, both scheduled, as one function of two kernels.

    Args:
        function: that was halved.
        halves: of it.
        scheduled: the product and the epilogue.
    """
    from tvm import tirx

    roots = [half.body.block for half in scheduled]
    buffers = [halves.partial, *(b for root in roots for b in root.alloc_buffers)]
    body = _root(buffers, [root.body for root in roots])
    return tirx.PrimFunc(function.params, body, attrs=function.attrs)
