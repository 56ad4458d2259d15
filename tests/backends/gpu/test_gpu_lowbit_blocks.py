"""Activations in int8 blocks made at run time beside weights of 4 bits in blocks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import compiled
from gpu_simulated import devices, needs_nvcc

from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.ir.importer import import_model


def product(m: int, n: int, k: int, block: int, *, transposed: bool, read: bool = False) -> ir.Model:
    """Return a product of blocks; `read`: somebody else reads the dequantized activations too."""
    rng = np.random.default_rng(n)
    w = rng.integers(-7, 8, (n, k) if transposed else (k, n)).astype(ml_dtypes.int4)
    scales = rng.uniform(0.01, 0.1, (n, k // block) if transposed else (k // block, n)).astype(np.float32)
    imports = '["" : 21, "pared.ops" : 1]'
    body = f"""
        q, t = pared.ops.DynamicBlockQuantize<block_size = {block}>(x)
        d = DequantizeLinear<axis = -1, block_size = {block}>(q, t)
        e = DequantizeLinear<axis = {int(transposed)}, block_size = {block}>(w, s)
        y = Gemm<transB = {int(transposed)}>(d, e, b)
        {"z = Relu(d)" if read else ""}
    """
    outputs = f"float[{m},{n}] y" + (f", float[{m},{k}] z" if read else "")
    proto = onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: {imports}> g (float[{m},{k}] x) => ({outputs}) {{ {body} }}"
    )
    tensors = {"s": scales, "b": rng.normal(size=n).astype(np.float32)}
    proto.graph.initializer.append(ir.to_proto(ir.tensor(w, name="w")))
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()
    )
    return import_model(proto).model


@pytest.mark.parametrize(
    ("m", "n", "k", "block", "transposed"),
    [
        (1, 40, 96, 32, False),
        (18, 33, 128, 128, True),
        (9, 24, 192, 96, False),
    ],
)
def test_a_product_of_blocks_stays_in_the_bound(m: int, n: int, k: int, block: int, transposed: bool) -> None:
    model = product(m, n, k, block, transposed=transposed)
    x = {"x": np.random.default_rng(m).normal(size=(m, k)).astype(np.float32)}
    x["x"][0, :block] = 0
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    names, found = devices(model)
    assert "w4a8_product" in names
    # Sums differ in their order alone, far below the bound that allows for another int8 value.
    close = min(bound.limit(want), 64 * 2.0**-24 * float(np.abs(want).max()))
    for device in found:
        assert np.abs(device.run(x)["y"] - want).max() <= close


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_bytes_are_multiplied_on_tensor_cores(arch: str) -> None:
    sources = compiled(product(1, 64, 256, 64, transposed=True))[2].sources
    assert "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32" in compile_ptx(sources[0], arch, contract=True)
