"""Turns a product's block into C[s, i, j] += A[s, i, k] * B[s, j, k], whatever shape its operands have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .gemm_form import Product, Role, sides_of

if TYPE_CHECKING:
    from tvm import s_tir, tirx
    from tvm.s_tir.schedule import SBlockRV


def to_matrices(
    schedule: s_tir.Schedule, product: Product, block: SBlockRV, *, b_by_columns: bool, parts: int = 1
) -> tuple[int, ...]:
    """Fuse the loops of each role; returns the axes of the result, by number.

    Args:
        schedule: of the function.
        product: what the function computes.
        block: that sums.
        b_by_columns: B becomes [s, j, k], else [s, k, j].
        parts: the innermost axis of k is cut into so many parts, which divide it; k counts part by part.
    """
    b_roles: tuple[Role, ...] = ("s", "j", "k") if b_by_columns else ("s", "k", "j")
    views = [schedule.reindex(block, ("read", side)) for side in (0, 1)]
    result = schedule.reindex(block, ("write", 0))
    sides = sides_of(schedule.get(block))
    assert sides is not None, "a product that is none any more"
    for view, axes, roles in zip(views, sides[:2], (("s", "i", "k"), b_roles), strict=True):
        schedule.transform_layout(view, ("write", 0), fused(product, axes, roles, parts))
    schedule.transform_layout(result, ("read", 0), fused(product, sides[2], ("s", "i", "j")))
    every = tuple(range(len(product.axes)))
    schedule.transform_block_layout(block, fused(product, every, ("s", "i", "j", "k"), parts))
    return sides[2]


def fused(product: Product, axes: tuple[int, ...], roles: tuple[Role, ...], parts: int = 1) -> tirx.IndexMap:
    """Return the map that fuses all axes of one role; `parts` as in `to_matrices`."""
    from tvm import tirx

    variables = [tirx.Var(f"x{number}", product.index) for number in axes]
    found: dict[Role, tirx.Expr] = {}
    for number, variable in zip(axes, variables, strict=True):
        axis = product.axes[number]
        place, extent = variable, axis.extent
        if parts > 1 and number == product.innermost:
            extent //= parts
            place = variable // extent * (product.extent("k") // parts) + variable % extent
        found[axis.role] = found[axis.role] * extent + place if axis.role in found else place
    return tirx.IndexMap(variables, [found.get(role, tirx.IntImm(product.index, 0)) for role in roles], None)
