"""Weights of few bits beside activations in floats: within the reference's bound, read as they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import compiled, model_of
from gpu_simulated import exact_functions, functions_within_bound, needs_nvcc

from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.gpu.schedules import lowbit_product


@dataclass(frozen=True)
class Case:
    """A product's sizes and the format of its weights, [K, N] or transposed."""

    m: int
    n: int
    k: int
    kind: str = "int4"
    block: int = 32
    zeros: bool = False
    data: str = "float16"
    transposed: bool = False
    tail: str = "y = Relu(p)"


CASES = [
    Case(1, 40, 96), Case(9, 32, 128, block=64, transposed=True),
    Case(17, 33, 160, "int8", block=32), Case(2, 20, 64, "int8", block=0), Case(70, 48, 64, "int4", block=0),
    Case(5, 16, 256, "int2", block=128), Case(4, 30, 96, data="float"),
    Case(1, 7, 72, "int8", 0, data="float"),
    Case(6, 19, 256, "uint4", 64, True, "float", True, "y = Gelu(p)"),
]  # fmt: skip


def product(case: Case, rng: np.random.Generator) -> ir.Model:
    """Return a product with its weights' dequantization, a bias and what follows."""
    onnx_kind = {"float16": np.float16, "float": np.float32}[case.data]
    shape = (case.n, case.k) if case.transposed else (case.k, case.n)
    along = 1 if case.transposed else 0
    stored = ir.DataType[case.kind.upper().replace("2", "4")].value
    low, high = {"int2": (-2, 2), "int4": (-7, 8), "uint4": (0, 16), "int8": (-127, 128)}[case.kind]
    blocks = [1, 1]
    blocks[along], blocks[1 - along] = (case.k // case.block if case.block else 1), case.n
    parameters = tuple(blocks) if case.block else (case.n,)
    constants: dict[str, npt.ArrayLike] = {
        "w": rng.integers(low, high, shape).astype(np.int8 if low else np.uint8),
        "s": rng.uniform(0.01, 0.1, parameters).astype(onnx_kind),
        "b": rng.normal(size=case.n).astype(onnx_kind),
    }
    constants["z"] = rng.integers(low, high, parameters).astype(np.int8 if low else np.uint8)
    axis = along if case.block else 1 - along
    zero = ", z" if case.zeros else ""
    body = f"""
        q = Cast<to = {stored}>(w)
        z4 = Cast<to = {stored}>(z)
        d = DequantizeLinear<axis = {axis}, block_size = {case.block}>(q, s{zero and ", z4"})
        p = Gemm<transB = {int(case.transposed)}>(x, d, b)
        {case.tail}
    """
    return model_of(
        body, f"{case.data}[{case.m},{case.k}] x", f"{case.data}[{case.m},{case.n}] y", **constants
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_product_by_few_bits_stays_in_the_bound(case: Case) -> None:
    rng = np.random.default_rng(case.n)
    model = product(case, rng)
    x = {"x": rng.normal(size=(case.m, case.k)).astype(np.float16 if case.data == "float16" else np.float32)}
    functions_within_bound(model, x)


def test_bfloat16_keeps_its_own_bits() -> None:
    rng = np.random.default_rng(5)
    model = model_of(
        """h = Cast<to = 16>(x)
           q = Cast<to = 22>(w)
           t = Cast<to = 16>(s)
           d = DequantizeLinear<axis = 0, block_size = 32>(q, t)
           c = MatMul(h, d)
           y = Cast<to = 1>(c)""",
        "float[3,96] x", "float[3,20] y", w=rng.integers(-7, 8, (96, 20)).astype(np.int8),
        s=rng.uniform(0.01, 0.1, (3, 20)).astype(np.float32),
    )  # fmt: skip
    x = {"x": rng.normal(size=(3, 96)).astype(np.float32)}
    assert "w4_product" in functions_within_bound(model, x)


def test_a_quantized_layer_with_weights_of_4_bits_is_exact() -> None:
    rng = np.random.default_rng(6)
    model = model_of(
        """xr = DequantizeLinear(x, xs, xz)
           q = Cast<to = 22>(w)
           wr = DequantizeLinear<axis = 1>(q, ws)
           c = MatMul(xr, wr)
           y = QuantizeLinear(c, ys, yz)""",
        "uint8[5,64] x", "int8[5,24] y", w=rng.integers(-8, 8, (64, 24)).astype(np.int8),
        xs=np.float32(0.02), xz=np.uint8(7), ws=rng.uniform(0.01, 0.1, 24).astype(np.float32),
        ys=np.float32(0.1), yz=np.int8(-3),
    )  # fmt: skip
    exact_functions(model, {"x": rng.integers(0, 256, (5, 64)).astype(np.uint8)})


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_codes_are_loaded_by_16_bytes_and_multiplied_on_tensor_cores(arch: str) -> None:
    _, _, kernels, _ = compiled(product(Case(1, 64, 512, block=128), np.random.default_rng(0)))
    ptx = compile_ptx(kernels.sources[0], arch, contract=True)
    assert "ld.global.nc.v4.u32" in ptx
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in ptx


def test_every_code_has_its_place_in_the_packed_weights() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (37, 200)).astype(np.uint8)
    packed = lowbit_product.pack(codes, 4)
    assert packed.shape == (3, 4, 32, 4)
    assert np.bitwise_count(packed).sum() == np.bitwise_count(codes).sum()
