"""Kernels for weights that are mostly zero, against float64 and within the bound of a plain sum."""

from __future__ import annotations

import f32_arrays as f
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.kernels import sparse_blocks_f32, sparse_f32
from pared.backends.cpu.native.kernels.after_f32 import After
from pared.backends.cpu.native.kernels.sparse_blocks_f32 import SparseBlocksF32Spec
from pared.backends.cpu.native.kernels.sparse_f32 import SparseF32Spec, Tile
from pared.backends.cpu.native.kernels.window import Window

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")

RICH = After(bias=True, residual=True, low=-1.0, high=2.5)
Spec = SparseF32Spec | SparseBlocksF32Spec


def weights(shape: tuple[int, ...], zeros: float, rows: int = 1, seed: int = 0) -> np.ndarray:
    """Random weights; `rows` consecutive outputs have the same zeros."""
    rng = np.random.default_rng(seed)
    gone = rng.random((-(-shape[0] // rows), *shape[1:])) < zeros
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[gone.repeat(rows, axis=0)[: shape[0]]] = 0
    return weight


def check(spec: Spec, window: Window, weight: np.ndarray, isa: Isa | None = None) -> None:
    rng = np.random.default_rng(1)
    family = sparse_f32 if isinstance(spec, SparseF32Spec) else sparse_blocks_f32
    x = rng.standard_normal((window.batch, weight.shape[1], window.height, window.width)).astype(np.float32)
    want, size, arrays = f.conv(x, weight, window), f.conv(abs(x), abs(weight), window), [f.nhwc(x)]
    bias = rng.standard_normal(len(weight)).astype(np.float32) if spec.after.bias else None
    if bias is not None:
        want, size = want + bias[:, None, None], size + abs(bias)[:, None, None]
    if spec.after.residual:
        other = rng.standard_normal(want.shape).astype(np.float32)
        arrays.append(f.nhwc(other))
        want, size = want + other, size + abs(other)
    want = np.clip(want, spec.after.low, spec.after.high)
    packed = family.pack(spec, weight, bias)
    got = f.run(family, spec, [*arrays, *packed], spec.out_shape, isa).reshape(
        window.batch, window.out_height, window.out_width, -1
    )
    assert np.all(np.isfinite(got)), "lanes behind the channels are written too"
    gap = abs(f.nchw(got, len(weight)) - want)
    terms = int(np.count_nonzero(weight.reshape(len(weight), -1), axis=1).max()) + sparse_blocks_f32.UNIT
    assert np.all(gap <= f.dot_bound(terms, size)), float(gap.max())


WINDOWS = st.builds(
    Window,
    st.integers(1, 2), st.integers(4, 20), st.integers(4, 20), st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(*[st.integers(1, 2)] * 2),
).filter(lambda window: not window.refusal())  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(
    WINDOWS, st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.6, 0.9, 1.0]),
    st.sampled_from([Tile(1, 16, 16), Tile(3, 16, 32), Tile(2, 8, 16), Tile(4, 8, 48), Tile(1, 64, 16)]),
    st.booleans(),
)  # fmt: skip
def test_any_zeros_are_left_out_within_the_bound(
    window: Window, c: int, oc: int, zeros: float, tile: Tile, rich: bool
) -> None:
    weight = weights((oc, c, *window.kernel), zeros, seed=c)
    check(sparse_f32.spec_of(window, weight, RICH if rich else After(), tile), window, weight)


@settings(max_examples=8, deadline=None)
@given(
    WINDOWS, st.integers(1, 40), st.integers(1, 70), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans()
)  # fmt: skip
def test_common_zeros_are_left_out_within_the_bound(
    window: Window, c: int, oc: int, zeros: float, rich: bool
) -> None:
    vectors = 1 if -(-oc // 16) % 2 else 2
    weight = weights((oc, c, *window.kernel), zeros, 16 * vectors, seed=c)
    spec = sparse_blocks_f32.spec_of(window, weight, RICH if rich else After(), vectors, host_isa())
    check(spec, window, weight)


@pytest.mark.parametrize("rows", [1, 2, 3, 30])
def test_a_product_of_few_or_many_rows_is_within_the_bound(rows: int) -> None:
    window = Window(rows, 1, 1, (1, 1))
    weight = weights((64, 300, 1, 1), 0.5, 32)
    blocks = sparse_blocks_f32.spec_of(window, weight, RICH, 2, host_isa())
    assert blocks.apart == (rows < 5)
    check(blocks, window, weight)
    check(sparse_f32.spec_of(window, weight, RICH, Tile(1, 32, 128)), window, weight)


def test_narrower_vectors_compute_the_same() -> None:
    host = host_isa()
    if not (isinstance(host, Isa) and host.has("avx2", "fma")):
        pytest.skip("this CPU has no AVX2")
    narrow = Isa(host.arch, tuple(name for name in host.features if not name.startswith("avx512")))
    window = Window(1, 9, 9, (3, 3), pads=(1, 1, 1, 1))
    weight = weights((32, 20, 3, 3), 0.7, 32)
    blocks = sparse_blocks_f32.spec_of(window, weight, RICH, 2, narrow)
    assert blocks.pixels == 3
    check(blocks, window, weight, narrow)
    check(sparse_f32.spec_of(window, weight, RICH, Tile(4, 8, 16)), window, weight, narrow)


def test_rows_without_weights_are_the_bias() -> None:
    window = Window(1, 6, 6, (3, 3), pads=(1, 1, 1, 1))
    weight = weights((40, 33, 3, 3), 0.7)
    weight[[0, 17, 39]] = 0
    for block in (16, 48):
        check(sparse_f32.spec_of(window, weight, After(bias=True), Tile(2, 8, block)), window, weight)


def test_packed_weights_are_their_nonzeros() -> None:
    weight = weights((64, 64, 3, 3), 0.9)
    window = Window(1, 14, 14, (3, 3), pads=(1, 1, 1, 1))
    packed = sparse_f32.pack(sparse_f32.spec_of(window, weight, After(), Tile(2, 16, 64)), weight)
    most = 1.25 * 6 * np.count_nonzero(weight) + 4 * 65
    assert sum(array.nbytes for array in packed) <= most < 0.25 * weight.nbytes
    kept = np.concatenate([packed[0][packed[0] != 0]])
    np.testing.assert_array_equal(np.sort(kept), np.sort(weight[weight != 0]))


def test_packed_blocks_are_half_of_the_weights_at_two_of_four() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 128, 1, 1)).astype(np.float32)
    weight[:32, 0::2], weight[32:, 1::2] = 0, 0
    window = Window(1, 7, 7, (1, 1))
    packed = sparse_blocks_f32.pack(sparse_blocks_f32.spec_of(window, weight, After(), 2, host_isa()), weight)
    assert sum(array.nbytes for array in packed) <= 0.53 * weight.nbytes


def test_a_lost_weight_is_outside_the_bound() -> None:
    weight = weights((32, 64, 3, 3), 0.9)
    window = Window(1, 8, 8, (3, 3), pads=(1, 1, 1, 1))
    spec = sparse_f32.spec_of(window, weight, After(), Tile(2, 8, 64))
    other = weight.copy()
    other[tuple(np.argwhere(weight)[5])] = 0
    x = np.random.default_rng(1).standard_normal((1, 64, 8, 8)).astype(np.float32)
    got = f.nchw(f.run(sparse_f32, spec, [f.nhwc(x), *sparse_f32.pack(spec, other)], spec.out_shape), 32)
    size = f.conv(abs(x), abs(weight), window)
    assert np.any(abs(got - f.conv(x, weight, window)) > f.dot_bound(100, size))


@pytest.mark.parametrize("tile", [Tile(1, 24, 16), Tile(1, 8, 16), Tile(1, 16, 8), Tile(40, 16, 16)])
def test_tiles_that_are_no_vectors_or_too_many_are_refused(tile: Tile) -> None:
    weight = weights((16, 16, 3, 3), 0.9)
    spec = sparse_f32.spec_of(Window(1, 99, 99, (3, 3)), weight, After(), tile)
    assert not sparse_f32.supports(spec, host_isa()).ok


def test_a_tile_too_large_for_the_stack_is_refused() -> None:
    weight = weights((16, 4096, 3, 3), 0.99)
    verdict = sparse_blocks_f32.supports(
        sparse_blocks_f32.spec_of(Window(1, 9, 9, (3, 3)), weight, After(), 1, host_isa()), host_isa()
    )
    assert not verdict.ok
    assert "bytes" in verdict.reason
