"""Layers of two values: exact against the reference, bits from layer to layer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import compiled, emulated
from gpu_simulated import exact_functions, needs_nvcc

from pared.backends.gpu.nvcc import compile_ptx
from pared.backends.reference import evaluate
from pared.compiler.ir.importer import import_model

_QONNX = "qonnx.custom_op.general"


def model_of_bits(body: str, inputs: str, outputs: str, **constants: npt.ArrayLike) -> ir.Model:
    """Return a model in whose text `B(...)` stands for BipolarQuant."""
    imports = f'["" : 21, "{_QONNX}" : 1]'
    body = body.replace("B(", f"{_QONNX}.BipolarQuant(")
    proto = onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: {imports}> g ({inputs}) => ({outputs}) {{ {body} }}"
    )
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return import_model(proto).model


def network(rng: np.random.Generator, c: int, m: int, strides: int, pads: int) -> ir.Model:
    """Return two convolutions with BatchNormalization and a pool between them, and a dense layer."""
    f = np.float32
    size = (9 + 2 * pads - 3) // strides + 1
    pooled = size // 2
    rows = pooled * pooled * m
    constants = {
        "w1": rng.normal(size=(m, c, 3, 3)).astype(f), "w2": rng.normal(size=(m, m, 1, 1)).astype(f),
        "w3": rng.normal(size=(10, rows)).astype(f), "s": f(0.37), "one": f(1.0), "t": f(0.11),
        "g": rng.normal(size=m).astype(f), "h": rng.normal(size=m).astype(f),
        "e": (0.3 * rng.normal(size=m)).astype(f), "v": rng.uniform(0.5, 20, m).astype(f),
        "b": rng.normal(size=10).astype(f), "a": rng.normal(size=(m, 1, 1)).astype(f),
    }  # fmt: skip
    body = f"""
        q0 = B(x, s)
        k1 = B(w1, t)
        c1 = Conv<strides = [{strides}, {strides}], pads = [{pads}, {pads}, {pads}, {pads}]>(q0, k1)
        n1 = BatchNormalization(c1, g, h, e, v)
        q1 = B(n1, one)
        p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q1)
        k2 = B(w2, one)
        c2 = Conv(p1, k2)
        n2 = Add(c2, a)
        q2 = B(n2, s)
        f2 = Flatten(q2)
        k3 = B(w3, t)
        y = Gemm<transB = 1>(f2, k3, b)
    """
    return model_of_bits(body, f"float[1,{c},9,9] x", "float[1,10] y", **constants)


@pytest.mark.parametrize(
    ("c", "m", "strides", "pads"), [(3, 8, 1, 1), (32, 40, 2, 0), (70, 33, 1, 1), (128, 64, 2, 1)]
)
def test_a_binary_network_is_exact(c: int, m: int, strides: int, pads: int) -> None:
    rng = np.random.default_rng(c + m)
    model = network(rng, c, m, strides, pads)
    exact_functions(model, {"x": rng.normal(size=(1, c, 9, 9)).astype(np.float32)})


def test_bits_go_from_layer_to_layer() -> None:
    """Signs are packed once, at the entry; nothing between the products is a number."""
    _, _, kernels, _ = compiled(network(np.random.default_rng(0), 64, 64, 1, 1))
    names = list(kernels.functions)
    assert [name for name in names if "signs" in name] == ["signs"]
    assert len([name for name in names if "binary_product" in name]) == 3
    assert len(names) == 6, names  # the image turned, signs, products, and the pool


def test_a_value_that_somebody_else_reads_stays_a_number() -> None:
    rng = np.random.default_rng(3)
    model = model_of_bits(
        """q = B(x, s)
           k = B(w, s)
           c = MatMul(q, k)
           d = B(c, s)
           k2 = B(w2, s)
           e = MatMul(d, k2)
           y = Add(e, d)""",
        "float[2,48] x", "float[2,48] y", s=np.float32(0.5), w=rng.normal(size=(48, 48)).astype(np.float32),
        w2=rng.normal(size=(48, 48)).astype(np.float32),
    )  # fmt: skip
    x = {"x": rng.normal(size=(2, 48)).astype(np.float32)}
    assert np.array_equal(emulated(model).run(x)["y"], evaluate(model, x)["y"])


def test_weights_of_more_than_two_values_are_no_binary_layer() -> None:
    rng = np.random.default_rng(4)
    w = rng.integers(-1, 2, (32, 8)).astype(np.float32)
    model = model_of_bits(
        "q = B(x, s)\n y = MatMul(q, w)", "float[1,32] x", "float[1,8] y", s=np.float32(1), w=w
    )
    assert not any("binary" in name for name in compiled(model)[2].functions)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_products_count_bits_and_results_are_voted_on(arch: str) -> None:
    _, _, kernels, _ = compiled(network(np.random.default_rng(0), 128, 64, 1, 1))
    ptx = compile_ptx(kernels.sources[1], arch, contract=False)
    assert "popc.b32" in ptx
    assert "vote.sync.ballot" in ptx
    assert "ld.global.nc.v4" in ptx


@pytest.mark.skipif("PARED_DATA" not in os.environ, reason="PARED_DATA is not set")
def test_a_trained_binary_network_is_exact() -> None:
    model = import_model(Path(os.environ["PARED_DATA"]) / "models" / "tfc_1w1a_qonnx.onnx").model
    device, rng = emulated(model), np.random.default_rng(0)
    for _ in range(5):
        x = {model.graph.inputs[0].name: rng.uniform(size=(1, 1, 28, 28)).astype(np.float32)}
        got, want = device.run(x), evaluate(model, x)
        name = model.graph.outputs[0].name
        assert np.abs(got[name] - want[name]).max() <= 1e-6 * np.abs(want[name]).max()
