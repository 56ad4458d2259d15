"""Weights of 2:4: only what is kept is stored; half floats within the bound, integers exact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import compiled, model_of
from gpu_simulated import exact_functions, functions_within_bound, needs_nvcc

from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.gpu.schedules import lowbit_sparse


def pruned(weights: npt.NDArray[np.number]) -> npt.NDArray[np.number]:
    """Return weights [N, K] with the two smallest of every four set to 0."""
    groups = weights.reshape(-1, 4).copy()
    smallest = np.argsort(np.abs(groups.astype(np.float64)), axis=1)[:, :2]
    np.put_along_axis(groups, smallest, 0, axis=1)
    return groups.reshape(weights.shape)


def halves(m: int, n: int, k: int, rng: np.random.Generator) -> ir.Model:
    """Return a product by half floats of 2:4, with a bias and Relu behind it."""
    return model_of(
        "c = MatMul(x, w)\n d = Add(c, b)\n y = Relu(d)", f"float16[{m},{k}] x", f"float16[{m},{n}] y",
        w=pruned(rng.normal(size=(n, k)).astype(np.float16)).T.copy(),
        b=rng.normal(size=n).astype(np.float16),
    )  # fmt: skip


def integers(m: int, n: int, k: int, rng: np.random.Generator) -> ir.Model:
    """Return a quantized layer by bytes of 2:4."""
    return model_of(
        """xr = DequantizeLinear(x, xs, xz)
           wr = DequantizeLinear(w, ws)
           c = Gemm<transB = 1>(xr, wr, b)
           y = QuantizeLinear(c, ys, yz)""",
        f"uint8[{m},{k}] x", f"uint8[{m},{n}] y", w=pruned(rng.integers(-127, 128, (n, k)).astype(np.int8)),
        b=rng.normal(size=n).astype(np.float32), xs=np.float32(0.02), xz=np.uint8(7), ws=np.float32(0.01),
        ys=np.float32(0.1), yz=np.uint8(120),
    )  # fmt: skip


SIZES = [(1, 40, 256), (20, 33, 136)]


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_a_product_by_halves_of_two_in_four_stays_in_the_bound(m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    model = halves(m, n, k, rng)
    x = {"x": rng.normal(size=(m, k)).astype(np.float16)}
    assert functions_within_bound(model, x) == ["sparse_product"]


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_a_quantized_product_of_two_in_four_is_exact(m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    model = integers(m, n, k, rng)
    x = {"x": rng.integers(0, 256, (m, k)).astype(np.uint8)}
    assert "sparse_product" in exact_functions(model, x)


def test_one_group_with_three_weights_makes_the_product_dense() -> None:
    rng = np.random.default_rng(0)
    w = pruned(rng.normal(size=(16, 64)).astype(np.float16))
    w[3, 8:11] = 1
    model = model_of("y = Gemm<transB = 1>(x, w)", "float16[1,64] x", "float16[1,16] y", w=w)
    assert not any("sparse" in name for name in compiled(model)[2].functions)


def test_kept_weights_and_places_are_9_16_of_the_halves() -> None:
    w = pruned(np.random.default_rng(1).normal(size=(64, 1024)).astype(np.float16))
    assert 16 * sum(array.nbytes for array in lowbit_sparse.pack(w)) == 9 * w.nbytes


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kept_weights_are_loaded_by_16_bytes(arch: str) -> None:
    ptx = compile_ptx(
        compiled(halves(1, 64, 512, np.random.default_rng(0)))[2].sources[0], arch, contract=True
    )
    assert "ld.global.nc.v4.u32" in ptx
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in ptx
