"""Products of integers in blocks: the definition to the last bit, and what is no such product."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.reference import derive_bound, evaluate
from pared.backends.reference.blocks import fused_multiply_add, use_block_products
from pared.compiler.ir.importer import import_model
from pared.compiler.ort import make_session, run_session

HEAD = '<ir_version: 10, opset_import: ["" : 21, "pared.ops" : 1]>'
QUANTIZED = """q, s = pared.ops.DynamicBlockQuantize<block_size={0}>(x)
a = DequantizeLinear<axis=-1, block_size={0}>(q, s)"""


def product(body: str, arrays: dict[str, np.ndarray], shape: str = "3,96", block: int = 32) -> ir.Model:
    text = f"{HEAD} g (float[{shape}] x) => (float y) {{ {QUANTIZED.format(block)} {body} }}"
    model = ir.from_onnx_text(text)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        value = known[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    value = model.graph.outputs[0]
    value.shape = ir.Shape([*map(int, shape.split(",")[:-1]), 5])
    return import_model(ir.to_proto(model)).model


RNG = np.random.default_rng(0)
WEIGHTS = {"w": RNG.integers(-8, 8, (96, 5)).astype(ml_dtypes.int4), "ws": RNG.random((3, 5), np.float32)}
MATMUL = "b = DequantizeLinear<axis=0, block_size=32>(w, ws) y = MatMul(a, b)"
CHANNELS = "b = DequantizeLinear<axis=1>(w, ws) y = MatMul(a, b)"
X = RNG.standard_normal((3, 96), dtype=np.float32)


def rounded(exact: Fraction) -> np.float32:
    """Round to float32, half to even, by comparing the neighbours exactly."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf)]

    def order(value: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(value)) - exact), int(value.view(np.int32)) & 1

    return min([near, *around], key=order)


def by_definition(x: np.ndarray, w: np.ndarray, scales: np.ndarray, block: int = 32) -> np.ndarray:
    """The definition of docs/semantics.md in integers, fractions and float32 scalars."""
    y = np.zeros((len(x), w.shape[1]), np.float32)
    for m, n in np.ndindex(*y.shape):
        for g in range(x.shape[1] // block):
            part = x[m, g * block : (g + 1) * block]
            largest = np.abs(part).max()
            q = [round(float(v * (np.float32(127) / largest))) if largest >= 2.0**-100 else 0 for v in part]
            codes = w[g * block : (g + 1) * block, n].tolist()
            dot = sum(a * int(b) for a, b in zip(q, codes, strict=True))
            factor = scales[g, n] * (largest / np.float32(127))
            y[m, n] = rounded(dot * Fraction(float(factor)) + Fraction(float(y[m, n])))
    return y


def test_a_product_follows_the_definition():
    got = evaluate(product(MATMUL, WEIGHTS), {"x": X})["y"]
    np.testing.assert_array_equal(got, by_definition(X, WEIGHTS["w"].astype(int), WEIGHTS["ws"]))


def test_a_gemm_adds_its_bias_at_the_end():
    bias = RNG.standard_normal(5).astype(np.float32)
    arrays = {name: np.ascontiguousarray(array.T) for name, array in WEIGHTS.items()} | {"c": bias}
    body = "b = DequantizeLinear<axis=1, block_size=32>(w, ws) y = Gemm<transB=1>(a, b, c)"
    want = by_definition(X, WEIGHTS["w"].astype(int), WEIGHTS["ws"]) + bias
    np.testing.assert_array_equal(evaluate(product(body, arrays), {"x": X})["y"], want)


def test_zero_points_are_taken_off_the_weights():
    zero = RNG.integers(0, 16, (3, 5)).astype(ml_dtypes.uint4)
    w = RNG.integers(0, 16, (96, 5)).astype(ml_dtypes.uint4)
    body = "b = DequantizeLinear<axis=0, block_size=32>(w, ws, z) y = MatMul(a, b)"
    got = evaluate(product(body, {**WEIGHTS, "w": w, "z": zero}), {"x": X})["y"]
    whole = w.astype(int) - np.repeat(zero.astype(int), 32, axis=0)
    np.testing.assert_array_equal(got, by_definition(X, whole, WEIGHTS["ws"]))


@given(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), st.integers(-30, 30))
@settings(max_examples=300)
def test_fused_multiply_add_rounds_once(numbers, exponent):
    a, b, c = (np.array([v], np.float32) for v in numbers)
    b = np.ldexp(b, exponent).astype(np.float32)
    want = rounded(Fraction(float(a[0])) * Fraction(float(b[0])) + Fraction(float(c[0])))
    if abs(want) > 1e-30:
        assert fused_multiply_add(a, b, c)[0] == want


@pytest.mark.parametrize(
    ("body", "arrays", "shape", "block"),
    [
        (MATMUL, WEIGHTS, "3,96", 48),  # blocks of other sizes
        (MATMUL.replace("32", "16"), {**WEIGHTS, "ws": np.ones((6, 5), np.float32)}, "3,96", 16),
        (MATMUL, {**WEIGHTS, "w": WEIGHTS["w"].astype(np.int8)}, "3,96", 32),  # bytes
        (CHANNELS, {**WEIGHTS, "ws": np.ones(5, np.float32)}, "3,96", 32),
    ],
)  # fmt: skip
def test_other_products_stay_floats(body, arrays, shape, block):
    assert use_block_products(product(body, arrays, shape, block)) == 0


def test_onnxruntime_is_within_the_bound_and_the_bound_can_fail():
    model = product(MATMUL, WEIGHTS)
    want, bound = evaluate(model, {"x": X})["y"], derive_bound(model, [{"x": X}], seed=0)["y"]
    got = run_session(make_session(model), {"x": X})["y"]
    assert bound.accepts(got, want)
    assert not bound.accepts(got * np.float32(1.0001), want)
