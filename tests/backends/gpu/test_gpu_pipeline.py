"""Operands on their way while others are multiplied: what is copied, how far ahead, and in time."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import ARCH, compiled, model_of
from test_gpu_schedules import integers, quantized, run

from pared.backends.gpu.kernels import generate
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.schedules import tensor_core
from pared.backends.gpu.schedules.base import chip_of
from pared.backends.gpu.schedules.pipeline import ahead
from pared.backends.gpu.schedules.table import alternatives
from pared.backends.gpu.schedules.tiles import Tile
from pared.backends.gpu.simulate import simulate
from pared.backends.reference import derive_bound, evaluate

if TYPE_CHECKING:
    from tvm import tirx

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")

# What a thread writes to shared memory itself, constants left out.
_STORE = re.compile(r"^ *[*(].*buf_dyn_shmem_ptr.* = (?!make_|\(int\)\d)", re.MULTILINE)


def _copies(source: str) -> bool:
    """Tell whether operands are copied by `cp.async`."""
    return "commit_group();" in source


def _float(kind: str, body: str, shape: tuple[int, ...], w: tuple[int, ...]) -> ir.Model:
    dtype = ir.DataType[kind.upper()]
    weights = np.random.default_rng(1).normal(size=w).astype(dtype.numpy())
    rank = ",".join("pqrs"[: len(shape)])
    whole = f"x = Cast<to = {dtype.value}>(f)\n y = {body}\n g = Cast<to = 1>(y)"
    return model_of(whole, f"float[{','.join(map(str, shape))}] f", f"float[{rank}] g", w=weights)


# Type, operator, shape of x, shape of w: sizes that no tile divides, pads, strides, dilations.
_FLOATS = {
    "two steps": ("bfloat16", "MatMul(x, w)", (17, 40), (40, 24)),
    "three steps": ("float16", "MatMul(x, w)", (12, 96), (96, 9)),
    "many steps": ("bfloat16", "MatMul(x, w)", (133, 352), (352, 146)),
    "half vectors": ("float16", "MatMul(x, w)", (44, 76), (76, 53)),
    "pads": ("float16", "Conv<pads = [1,0,2,1]>(x, w)", (1, 16, 11, 12), (54, 16, 3, 3)),
    "a stride": ("float16", "Conv<pads = [0,1,0,1], strides = [2,2]>(x, w)", (1, 24, 10, 13), (51, 24, 2, 2)),
    "holes": ("float16", "Conv<pads = [2,2,2,2], dilations = [2,2]>(x, w)", (1, 8, 9, 7), (20, 8, 3, 3)),
}  # fmt: skip


@needs_gxx
@pytest.mark.parametrize("name", _FLOATS)
def test_halves_are_copied_ahead_and_stay_in_their_bound(name: str) -> None:
    kind, body, shape, w = _FLOATS[name]
    model = _float(kind, body, shape, w)
    x = {"f": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    want, bound = evaluate(model, x)["g"].astype(np.float64), derive_bound(model, [x], seed=0)["g"]
    assert _copies(compiled(model)[2].sources[0])
    got = run(model, x, "tensor-core")["g"]
    assert np.abs(got - want).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


# Layer, shape of x, shape of w.
_QUANTIZED = {
    "product": ("Gemm", (61, 144), (144, 46)),
    "product of many steps": ("Gemm", (37, 528), (528, 24)),
    "one tap": ("Conv", (1, 144, 5, 4), (19, 144, 1, 1)),
    "window without pads": ("Conv<strides = [2,1]>", (1, 16, 9, 8), (21, 16, 3, 3)),
    "pads of a zero point": ("Conv<pads = [1,1,1,1]>", (1, 32, 7, 6), (24, 32, 3, 3)),
    "pads, a stride": ("Conv<pads = [2,0,1,3], strides = [2,2]>", (1, 24, 9, 7), (26, 24, 3, 4)),
    "words of four channels": ("Conv<pads = [1,1,1,1]>", (1, 20, 6, 7), (33, 20, 3, 3)),
}  # fmt: skip


@needs_gxx
@pytest.mark.parametrize("name", _QUANTIZED)
def test_integers_are_copied_ahead_and_exact_also_where_pads_hold_a_zero_point(name: str) -> None:
    layer, shape, w = _QUANTIZED[name]
    rng = np.random.default_rng(len(name))
    model = quantized(layer, ",".join(map(str, shape)), integers(rng, *w), rng)
    assert _copies(compiled(model)[2].sources[1])
    x = {"x": integers(rng, *shape)}
    assert np.array_equal(run(model, x, "tensor-core")["y"], evaluate(model, x)["y"])


@pytest.mark.parametrize("name", ["product", "one tap", "window without pads", "pads of a zero point"])
def test_no_thread_waits_for_what_it_copies(name: str) -> None:
    """Of what the threads store themselves, only constants are left."""
    layer, shape, w = _QUANTIZED[name]
    rng = np.random.default_rng(0)
    model = quantized(layer, ",".join(map(str, shape)), integers(rng, *w), rng)
    assert not _STORE.search(compiled(model)[2].sources[1])


def test_three_steps_are_under_way_where_there_are_more() -> None:
    for name, waits in (("many steps", 3), ("three steps", 2)):
        source = compiled(_float(*_FLOATS[name]))[2].sources[0]
        assert max(map(int, re.findall(r"wait_group_(\d)\(\);", source))) == waits


def test_single_halves_are_loaded() -> None:
    model = _float("float16", "Conv<pads = [1,1,1,1]>(x, w)", (1, 13, 9, 9), (19, 13, 3, 3))
    assert not _copies(compiled(model)[2].sources[0])


@needs_gxx
def test_single_bytes_are_loaded() -> None:
    rng = np.random.default_rng(5)
    model = quantized("Conv<pads = [1,1,1,1]>", "1,13,9,9", integers(rng, 19, 13, 3, 3), rng)
    assert not _copies(compiled(model)[2].sources[1])
    data = {"x": integers(rng, 1, 13, 9, 9)}
    assert np.array_equal(run(model, data, "tensor-core")["y"], evaluate(model, data)["y"])


@needs_gxx
@pytest.mark.parametrize("by_columns", [True, False])
def test_every_tile_computes_the_product(by_columns: bool) -> None:
    """Sizes of more than one tile, none of them full; operands are copied, or wait in registers."""
    from tvm import te

    i, j, k = 140, 136, 144
    a = te.placeholder((i, k), "int8", "a")
    b = te.placeholder((j, k) if by_columns else (k, j), "int8", "b")
    axis = te.reduce_axis((0, k), "k")
    places = (lambda y: (y, axis)) if by_columns else (lambda y: (axis, y))
    c = te.compute(
        (i, j), lambda x, y: te.sum(a[x, axis].astype("int32") * b[places(y)].astype("int32"), axis=axis), "c"
    )
    function = te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")
    rng = np.random.default_rng(0)
    given = [integers(rng, i, k), integers(rng, *((j, k) if by_columns else (k, j)))]
    want = given[0].astype(np.int32) @ (given[1].T if by_columns else given[1]).astype(np.int32)
    product, tiles = tensor_core._tiles(function, chip_of(ARCH))
    options = [(tile, "copies") for tile in tiles] + [(tiles[0], "registers")]
    for tile, way in options:
        source, got = _simulated(tensor_core.tiled(function, product, tile, chip_of(ARCH), way), given, want)
        assert _copies(source) == (way == "copies")
        assert np.array_equal(got, want), tile


def _simulated(function: tirx.PrimFunc, given: list[np.ndarray], want: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a scheduled product's source, and what it computes thread by thread."""
    sources, launches = generate({"main": function.with_attr("global_symbol", "main")}, ARCH, ())
    (kernel,) = launches["main"].kernels
    got = np.full_like(want, 77)
    arrays = dict(zip(launches["main"].parameters, (*given, got), strict=True))
    ordered = [arrays[parameter] for parameter in kernel.parameters]
    simulate(sources[1], kernel.name, kernel.grid, kernel.block, kernel.shared_bytes, ordered)
    return sources[1], got


def test_the_copied_choice_and_the_one_through_registers_are_timed() -> None:
    rng = np.random.default_rng(3)
    for k, both in ((200, True), (50, False)):
        model = quantized("Gemm", f"40,{k}", integers(rng, k, 48), rng)
        (function,) = calls_of(relax_module(model)).functions.values()
        names = [name for name, _ in alternatives(function.with_attr("global_symbol", "main"), chip_of(ARCH))]
        assert ("tensor-core registers" in names) == both
        (_, tiles) = tensor_core._tiles(function, chip_of(ARCH))
        assert not {f"tensor-core {tiles[0].i}x{tiles[0].j}"} & set(names)
        assert f"tensor-core {tiles[1].i}x{tiles[1].j}" in names


def test_through_registers_loads_come_before_products_and_stores_behind() -> None:
    rng = np.random.default_rng(3)
    model = quantized("Gemm", "40,208", integers(rng, 208, 48), rng)
    (function,) = calls_of(relax_module(model)).functions.values()
    function = function.with_attr("global_symbol", "main")
    product, tiles = tensor_core._tiles(function, chip_of(ARCH))
    scheduled = tensor_core.tiled(function, product, tiles[0], chip_of(ARCH), "registers")
    sources, _ = generate({"main": scheduled.with_attr("global_symbol", "main")}, ARCH, ())
    step = sources[1].split("for (int ax3_0_0 = 0")[1]
    load, multiply, store = step.index("_local_ptr"), step.index("mma_sync("), _STORE.search(step)
    assert store is not None
    assert load < multiply < store.start()


@pytest.mark.parametrize(("kind", "bytes_of"), [("float16", 2), ("int8", 1)])
def test_rows_in_shared_memory_begin_in_different_banks(kind: str, bytes_of: int) -> None:
    rng = np.random.default_rng(3)
    quantized_model = quantized("Gemm", "40,200", integers(rng, 200, 48), rng)
    model = _float("float16", "MatMul(x, w)", (40, 200), (200, 48)) if kind == "float16" else quantized_model
    source = "".join(compiled(model)[2].sources)
    rows = [int(n) * bytes_of for n in re.findall(r"load_matrix_sync\(.*, (\d+)\);", source)]
    assert rows
    assert all(row % 32 == 16 for row in rows)
    results = [int(n) for n in re.findall(r"store_matrix_sync\(.*, (\d+), nv", source)]
    assert results
    assert all(row % 16 == 4 for row in results)


@pytest.mark.parametrize(
    ("tile", "steps", "arch", "wanted"),
    [
        (Tile(128, 128, 32, 4, 2), 64, "sm_80", 3),  # 4 x 20 KiB, two blocks on 164 KiB
        (Tile(128, 128, 32, 4, 2), 64, "sm_89", 2),  # the results take 64 KiB anyway
        (Tile(128, 64, 32, 4, 2), 64, "sm_89", 2),   # 3 x 15 KiB, two blocks on 100 KiB
        (Tile(64, 64, 32, 2, 2), 64, "sm_80", 3),    # 4 x 10 KiB, four blocks
        (Tile(64, 64, 32, 2, 2), 64, "sm_89", 1),    # 2 x 10 KiB, four blocks
        (Tile(64, 64, 32, 2, 2), 2, "sm_80", 1),
        (Tile(64, 64, 32, 2, 2), 1, "sm_80", 0),
    ],
)  # fmt: skip
def test_copies_run_ahead_as_far_as_shared_memory_and_steps_go(
    tile: Tile, steps: int, arch: str, wanted: int
) -> None:
    assert ahead(tile, 2, steps, chip_of(arch)) == wanted
