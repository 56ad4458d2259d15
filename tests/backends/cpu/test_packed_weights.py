"""Weights of few values are stored in few bits and come out of onnxruntime bit for bit."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import parse

from pared.backends.cpu import ort_engine
from pared.backends.cpu.packed_weights import find_table, pack_weights
from pared.compiler import ort


def of_values(count: int, shape: tuple[int, ...], dtype=np.int8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.choice(np.arange(-60, 60) + (60 if dtype is np.uint8 else 0), count, replace=False).astype(
        dtype
    )
    array: np.ndarray = values[rng.integers(count, size=shape)]
    array.reshape(-1)[:count] = values
    return array


def model_of(array: np.ndarray) -> ir.Model:
    kind = {"int8": "int8", "uint8": "uint8", "float32": "float"}[array.dtype.name]
    sizes = ",".join(map(str, array.shape))
    return parse("y = Identity(w)", f"(float[1] x) => ({kind}[{sizes}] y)", {"w": array})


def worth(model: ir.Model) -> np.ndarray:
    return ort.run_session(ort.make_session(model, optimize="none"), {"x": np.zeros(1, np.float32)})["y"]


def stored(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("values", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)])
def test_few_values_take_few_bits_and_stay_what_they_are(values: int, bits: int, dtype) -> None:
    array = of_values(values, (64, 65), dtype)
    model = model_of(array)
    assert pack_weights(model) == 1
    assert stored(model) <= array.size * bits / 8 + 16 * array.itemsize + 100
    got = worth(model)
    assert got.dtype == array.dtype
    assert np.array_equal(got, array)


@pytest.mark.parametrize("axis", [0, -1])
def test_values_that_differ_per_slice_get_a_table_per_slice(axis: int) -> None:
    slices = [of_values(4, (70, 2), seed=i).reshape(-1) for i in range(24)]
    array = np.stack(slices, axis=axis)
    model = model_of(array)
    assert pack_weights(model) == 1
    assert stored(model) <= array.size * 2 // 8 + 24 * 4 + 100
    assert np.array_equal(worth(model), array)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(1, 5), st.integers(100, 700), st.integers(0, 99))
def test_any_shape_survives(values: int, rows: int, columns: int, seed: int) -> None:
    array = of_values(values, (rows, columns), seed=seed)
    model = model_of(array)
    packed = pack_weights(model)
    assert packed == 0 or values <= 16
    assert np.array_equal(worth(model), array)


def test_seventeen_values_are_left_alone() -> None:
    assert find_table(of_values(17, (300, 300))) is None
    assert pack_weights(model_of(of_values(17, (1, 4000)))) == 0


def test_small_constants_are_left_alone() -> None:
    assert pack_weights(model_of(of_values(2, (20, 20)))) == 0


def test_floats_are_left_alone() -> None:
    assert pack_weights(model_of(of_values(2, (40, 40), np.float32))) == 0


QDQ = """
    xq = QuantizeLinear(x, a, z)
    xd = DequantizeLinear(xq, a, z)
    wd = DequantizeLinear<axis = 0>(w, s)
    c = Conv(xd, wd)
    cq = QuantizeLinear(c, a, z)
    y = DequantizeLinear(cq, a, z)
"""


def test_packed_weights_of_integer_layers_still_run_on_integers() -> None:
    weights = {
        "w": of_values(8, (32, 16, 3, 3)),
        "s": np.full(32, 0.01, np.float32),
        "a": np.float32(0.05),
        "z": np.uint8(128),
    }
    model = parse(QDQ, "(float[1, 16, 6, 6] x) => (float[1, 32, 4, 4] y)", weights)
    payload = ort_engine.lower(model).read("model.onnx")
    assert len(payload) < 32 * 16 * 9 * 3 // 8 + 1500
    assert "QLinearConv" in [
        n.op_type for n in ort.optimized_model(ir.from_proto(_proto(payload))).graph.node
    ]


def _proto(payload: bytes):

    return onnx.load_from_string(payload)


def test_signs_of_a_binary_layer_take_a_bit_each() -> None:
    signs = np.where(np.random.default_rng(0).normal(size=(64, 512)) > 0, 1.0, -1.0).astype(np.float32)
    scale = np.linspace(0.1, 1, 64, dtype=np.float32)[:, None]
    body = "b = qonnx.custom_op.general.BipolarQuant(w, s)\n y = Gemm<transB = 1>(x, b)"
    model = parse(body, "(float[1, 512] x) => (float[1, 64] y)", {"w": signs, "s": scale})
    payload = ort_engine.lower(model).read("model.onnx")
    assert len(payload) < 64 * 512 // 8 + 1500
    x = np.random.default_rng(1).normal(size=(1, 512)).astype(np.float32)
    got = ort.run_session(ort.make_session(payload), {"x": x})["y"]
    np.testing.assert_allclose(got, x @ (signs * scale).T, rtol=1e-4, atol=1e-3)


def test_ternary_weights_with_a_scale_per_channel_take_two_bits_each() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (64, 512)).astype(np.float32)
    scale = np.linspace(0.1, 1, 64, dtype=np.float32)[:, None]
    body = "b = qonnx.custom_op.general.Quant<narrow = 1>(w, s, z, n)\n y = Gemm<transB = 1>(x, b)"
    weights = {"w": codes * scale, "s": scale, "z": np.zeros((64, 1), np.float32), "n": np.float32(2)}
    model = parse(body, "(float[1, 512] x) => (float[1, 64] y)", weights)
    payload = ort_engine.lower(model).read("model.onnx")
    assert len(payload) < 64 * 512 // 4 + 1500
    x = np.random.default_rng(1).normal(size=(1, 512)).astype(np.float32)
    got = ort.run_session(ort.make_session(payload), {"x": x})["y"]
    np.testing.assert_allclose(got, x @ (codes * scale).T, rtol=1e-4, atol=1e-3)
