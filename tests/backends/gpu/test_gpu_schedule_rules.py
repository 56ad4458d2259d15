"""What schedules read in a function, and the rules by which they choose: positives beside near misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from pared.backends.gpu.schedules import depthwise, gemv, tensor_core
from pared.backends.gpu.schedules.base import chip_of
from pared.backends.gpu.schedules.gemm_form import Axis, Product, product_of
from pared.backends.gpu.schedules.tiles import Tile, clocks

if TYPE_CHECKING:
    from tvm import te, tirx

CHIP = chip_of("sm_80")


def _function(*tensors: te.Tensor) -> tirx.PrimFunc:
    from tvm import te

    return te.create_prim_func(list(tensors))


def _product(
    i: int, j: int, k: int, kind: str = "int8", sums: str = "int32", *, by_columns: bool = True
) -> tirx.PrimFunc:
    """Return C[i, j] += A[i, k] * B[j, k], or B[k, j]."""
    from tvm import te

    a = te.placeholder((i, k), kind, "a")
    b = te.placeholder((j, k) if by_columns else (k, j), kind, "b")
    axis = te.reduce_axis((0, k), "k")

    def element(x: tirx.Var, y: tirx.Var) -> tirx.Expr:
        other = b[y, axis] if by_columns else b[axis, y]
        return te.sum(a[x, axis].astype(sums) * other.astype(sums), axis=axis)

    return _function(a, b, te.compute((i, j), element, "c"))


def test_a_product_has_its_sizes_and_stretches() -> None:
    columns, rows = product_of(_product(5, 7, 24)), product_of(_product(5, 7, 24, by_columns=False))
    assert columns is not None
    assert rows is not None
    assert [columns.extent(role) for role in ("s", "i", "j", "k")] == [1, 5, 7, 24]
    assert columns.runs == ((24, "k"), (24, "k"))
    assert rows.runs == ((24, "k"), (7, "j"))


@pytest.mark.parametrize(("turned", "run"), [(False, 8), (True, 1)])
def test_a_stretch_counts_where_its_axis_is_the_innermost_of_its_role(turned: bool, run: int) -> None:
    from tvm import te

    a, b = te.placeholder((6, 4, 8), "int8", "a"), te.placeholder((9, 4, 8), "int8", "b")
    outer, inner = te.reduce_axis((0, 4), "outer"), te.reduce_axis((0, 8), "inner")
    order = [inner, outer] if turned else [outer, inner]

    def element(x: tirx.Var, y: tirx.Var) -> tirx.Expr:
        return te.sum(a[x, outer, inner].astype("int32") * b[y, outer, inner].astype("int32"), axis=order)

    product = product_of(_function(a, b, te.compute((6, 9), element, "c")))
    assert product is not None
    assert product.runs == ((run, "k"), (run, "k"))


def test_what_is_no_product_of_two_matrices_is_none() -> None:
    from tvm import te, tirx

    a, b = te.placeholder((8, 8), "float32", "a"), te.placeholder((8, 8), "float32", "b")
    k = te.reduce_axis((0, 8), "k")
    square = te.compute((8, 8), lambda x, y: te.sum(a[x, k] * a[y, k], axis=k), "c")
    greatest = te.compute((8, 8), lambda x, y: te.max(a[x, k] * b[y, k], axis=k), "c")
    total = te.compute((8, 8), lambda x, y: te.sum(a[x, k] + b[y, k], axis=k), "c")
    along = te.compute((8,), lambda x: te.sum(a[x, k], axis=k), "c")
    twice = te.compute((8, 8), lambda x, y: te.sum(square[x, k] * b[y, k], axis=k), "d")
    for tensors in ((a, square), (a, b, greatest), (a, b, total), (a, along), (a, b, twice)):
        assert product_of(_function(*tensors)) is None
    open_size = tirx.Var("n", "int64")
    c = te.placeholder((open_size, 8), "float32", "c")
    unknown = te.compute((open_size, 8), lambda x, y: te.sum(c[x, k] * b[y, k], axis=k), "d")
    assert product_of(_function(c, b, unknown)) is None


@pytest.mark.parametrize(
    ("size", "kind", "sums", "taken"),
    [
        ((12, 8, 16), "int8", "int32", True), ((11, 8, 16), "int8", "int32", False),
        ((12, 7, 16), "int8", "int32", False), ((12, 8, 15), "int8", "int32", False),
        ((12, 8, 16), "float16", "float32", True), ((12, 8, 16), "float16", "float16", False),
        ((12, 8, 16), "float32", "float32", False), ((12, 8, 16), "int8", "float32", False),
    ],
)  # fmt: skip
def test_tensor_cores_take_products_of_their_types_from_a_size_on(
    size: tuple[int, int, int], kind: str, sums: str, taken: bool
) -> None:
    assert tensor_core.ENTRIES[0].takes(_product(*size, kind, sums), CHIP) == taken


@pytest.mark.parametrize(
    ("size", "kind", "sums", "by_columns", "taken"),
    [
        ((11, 9, 32), "int8", "int32", True, True), ((12, 9, 32), "int8", "int32", True, False),
        ((11, 9, 31), "int8", "int32", True, False), ((11, 9, 32), "int8", "int32", False, False),
        ((1, 9, 64), "float32", "float32", True, True), ((1, 9, 64), "float16", "float16", True, False),
    ],
)  # fmt: skip
def test_warps_take_products_of_few_rows_along_k(
    size: tuple[int, int, int], kind: str, sums: str, by_columns: bool, taken: bool
) -> None:
    function = _product(*size, kind, sums, by_columns=by_columns)
    assert gemv.ENTRIES[0].takes(function, CHIP) == taken


@pytest.mark.parametrize(
    ("j", "k", "run", "wanted"),
    [
        (4096, 4096, 4096, (4, 32, 16)),  # whole vectors, four columns
        (100, 4096, 4096, (1, 128, 16)),  # fewer columns than twice the multiprocessors: all lanes on one
        (100, 1024, 1024, (4, 32, 16)),   # not long enough for 128 lanes
        (3, 512, 512, (3, 32, 16)),
        (4096, 256, 256, (4, 32, 8)),     # a step of 32 lanes is not longer than k
        (4096, 4096, 12, (4, 32, 4)),
    ],
)  # fmt: skip
def test_lanes_and_columns_follow_from_sizes(j: int, k: int, run: int, wanted: tuple[int, int, int]) -> None:
    axes = (Axis("i", 1), Axis("j", j), Axis("k", k))
    product = Product("c", axes, ("int8", "int8", "int32"), ((run, "k"), (run, "k")), "int64")
    assert gemv.shares(product, CHIP) == wanted


@pytest.mark.parametrize(
    ("shape", "width", "wanted"),
    [
        ([1, 112, 112, 64], 1, (8, 1)),  # 100 352 threads of 8 channels, two neighbours would leave 50 176
        ([8, 112, 112, 64], 1, (8, 4)),
        ([2, 112, 112, 64], 1, (8, 2)),
        ([1, 14, 14, 64], 1, (4, 1)),    # vectors down to four bytes
        ([8, 112, 112, 64], 2, (4, 4)),
        ([8, 112, 112, 6], 1, (2, 4)),
        ([8, 4000, 2, 64], 1, (8, 2)),
    ],
)  # fmt: skip
def test_a_thread_of_a_depthwise_convolution_has_less_where_threads_are_few(
    shape: list[int], width: int, wanted: tuple[int, int]
) -> None:
    assert depthwise._shares(shape, width, CHIP) == wanted


@pytest.mark.parametrize(
    ("tile", "size", "wanted"),
    [
        # 2048 blocks in 19 rounds of 108; 128 steps, each bound by 12 288 bytes of L2.
        (Tile(128, 64, 32, 4, 2), (1, 4096, 4096, 4096), 19 * (128 * 12288 / 47 + 1500)),
        # Eight warps read 16 + 128 rows of 64 bytes each.
        (Tile(128, 128, 32, 8, 1), (1, 128, 128, 320), 10 * 8 * 144 * 64 / 128 + 1500),
        # One warp keeps one of four tensor cores busy.
        (Tile(128, 128, 32, 1, 1), (1, 128, 128, 32), 4 * 128 * 128 * 32 / 1024 + 1500),
        # Batches, and a column and a step that are not full.
        (Tile(32, 32, 32, 2, 2), (55, 32, 33, 33), 2 * (2 * 64 * 64 / 47 + 1500)),
    ],
)
def test_clocks_are_those_of_the_slowest_part(
    tile: Tile, size: tuple[int, int, int, int], wanted: float
) -> None:
    assert clocks(tile, size, 2, CHIP) == pytest.approx(wanted)


def test_bytes_take_half_the_clocks_of_halves() -> None:
    tiles = Tile(128, 128, 32, 4, 2), Tile(128, 128, 64, 4, 2)
    halves, whole = (
        clocks(t, (1, 128, 128, 4096), w, CHIP) - 1500 for t, w in zip(tiles, (2, 1), strict=True)
    )
    assert halves == pytest.approx(2 * whole)
