"""Quantized layers: the definition, and bit-equality with what onnxruntime fuses."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantized_layers import Layer, model_of

from pared.backends.reference import evaluate
from pared.backends.reference.regions import use_integer_layers
from pared.compiler.errors import ModelError
from pared.compiler.ort import make_session, run_session

# Scales whose quotients make exact ties frequent, and scales that do not.
SCALES = st.sampled_from([0.1, 0.2, 0.05, 0.3, 0.0173, 0.0379])
FUSED = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}


def integers(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max + 1, shape).astype(kind)


@st.composite
def layers(draw: Any) -> Layer:
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    op = draw(st.sampled_from(sorted(FUSED)))
    # onnxruntime fuses MatMul for unsigned data only, and unsigned weights only with unsigned data
    x_kind = "uint8" if op == "MatMul" else draw(st.sampled_from(["uint8", "int8"]))
    w_kind = "int8" if x_kind == "int8" else draw(st.sampled_from(["int8", "uint8"]))
    if op == "Conv":
        group, depth, fan = draw(st.sampled_from([(1, 3, 4), (2, 2, 3), (4, 1, 1), (6, 1, 2)]))
        rank = draw(st.integers(1, 2))
        attributes: dict[str, Any] = {
            "group": group,
            "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
            "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
            "pads": [draw(st.integers(0, 1)) for _ in range(2 * rank)],
        }
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
        x_shape: tuple[int, ...] = (draw(st.integers(1, 2)), group * depth, *(7,) * rank)
        w_shape: tuple[int, ...] = (group * fan, depth, *kernel)
        axis, outputs = 0, group * fan
    else:
        depth, outputs = draw(st.integers(1, 60)), draw(st.integers(1, 9))
        transposed = op == "Gemm" and draw(st.booleans())
        x_shape, w_shape = (3, depth), (outputs, depth) if transposed else (depth, outputs)
        attributes, axis = ({"transB": 1}, 0) if transposed else ({}, 1)
    w_zero = int(integers(rng, w_kind, ())) if w_kind == "uint8" else 0
    scales = [draw(SCALES) for _ in range(outputs)] if draw(st.booleans()) else draw(SCALES)
    bias = rng.integers(-9999, 9999, outputs) if draw(st.booleans()) else None
    y_zero = int(integers(rng, x_kind, ()))
    x, w = integers(rng, x_kind, x_shape), integers(rng, w_kind, w_shape)
    return Layer(
        op, x, w, bias, draw(SCALES), draw(SCALES) * 8,
        np.float32(scales), w_zero, int(integers(rng, x_kind, ())), y_zero, x_kind,
        "int32", "", attributes, axis,
    )  # fmt: skip


def run_fused(model: ir.Model, x: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Run in onnxruntime, signed data fused too (by default it does so on ARM only); return its operators."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.log_severity_level = 4
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        optimized = onnx.load(options.optimized_model_filepath)
    return [node.op_type for node in optimized.graph.node], session.run(None, {"x": x})[0]


@given(layers())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_fused_layers_of_onnxruntime_are_bit_equal(layer: Layer) -> None:
    model = model_of(layer)
    ops, want = run_fused(model, layer.x)
    biased = layer.op == "MatMul" and layer.bias is not None
    assert ("QGemm" if biased else FUSED[layer.op]) in ops
    np.testing.assert_array_equal(evaluate(model, {"x": layer.x})["y"], want)


@given(layers(), st.sampled_from(["", "Relu"]))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_unfused_float_evaluation_differs_by_at_most_one_step(layer: Layer, activation: str) -> None:
    model = model_of(replace(layer, activation=activation))
    floats = run_session(make_session(model, optimize="none"), {"x": layer.x})["y"]
    ours = evaluate(model, {"x": layer.x})["y"]
    assert np.abs(floats.astype(int) - ours.astype(int)).max() <= 1


def by_definition(layer: Layer) -> np.ndarray:
    """The definition of docs/semantics.md for a MatMul, in Python integers and float32 scalars."""
    rows, columns = layer.x.shape[0], layer.w.shape[1]
    factor = np.float32(layer.x_scale) * np.float32(layer.w_scale) / np.float32(layer.y_scale)
    info = np.iinfo(layer.y_type)
    result = np.empty((rows, columns), layer.y_type)
    for i in range(rows):
        for j in range(columns):
            pairs = zip(layer.x[i].tolist(), layer.w[:, j].tolist(), strict=True)
            total = sum((a - layer.x_zero) * (b - layer.w_zero) for a, b in pairs)
            total += 0 if layer.bias is None else int(layer.bias[j])
            real = float(np.float32(total) * factor)
            low, high = (0.0 if layer.activation == "Relu" else -np.inf), np.inf
            result[i, j] = min(max(round(min(max(real, low), high)) + layer.y_zero, info.min), info.max)
    return result


MATMUL = Layer(
    "MatMul",
    np.random.default_rng(0).integers(0, 256, (4, 33)).astype(np.uint8),
    np.random.default_rng(1).integers(-127, 128, (33, 5)).astype(np.int8),
    x_scale=0.05, y_scale=0.3, w_scale=np.float32(0.1), x_zero=100, y_zero=90, w_axis=1,
)  # fmt: skip


BIAS = np.random.default_rng(2).integers(-9999, 9999, 5)


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("activation", ["", "Relu"])
def test_a_matmul_follows_the_definition(activation: str, bias: np.ndarray | None) -> None:
    layer = replace(MATMUL, activation=activation, bias=bias)
    np.testing.assert_array_equal(evaluate(model_of(layer), {"x": layer.x})["y"], by_definition(layer))


def layers_in(layer: Layer, **shapes: tuple[int, ...]) -> int:
    """Count the integer layers that the reference finds, initializers reshaped as asked."""
    model = model_of(layer)
    for name, shape in shapes.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy().reshape(shape), name=name)
        value.shape = ir.Shape(shape)
    return use_integer_layers(model)


def test_the_int32_bias_behind_a_matmul_is_part_of_the_layer_and_no_other_is() -> None:
    biased = replace(MATMUL, bias=BIAS)
    assert layers_in(biased) == 1
    assert layers_in(replace(biased, bias_kind="float")) == 0
    assert layers_in(biased, b=(1, 5)) == 0
    assert layers_in(replace(biased, w=MATMUL.w[None])) == 0


def test_a_float_bias_behind_a_matmul_is_added_in_float() -> None:
    layer = replace(MATMUL, bias=BIAS + 0.4, bias_kind="float")
    model = model_of(layer)
    r = evaluate(model, {"x": layer.x}, ["r"])["r"]
    want = np.clip(np.rint(r / np.float32(layer.y_scale)) + layer.y_zero, 0, 255)
    np.testing.assert_array_equal(evaluate(model, {"x": layer.x})["y"], want)


def test_ties_go_to_the_even_step_before_the_zero_point_is_added() -> None:
    x = np.arange(-7, 8, 2, dtype=np.int8)[:, None]
    layer = Layer(
        "MatMul", x, np.ones((1, 1), np.int8), x_scale=1, y_scale=2, w_scale=np.float32(1), w_axis=1
    )
    got = evaluate(model_of(replace(layer, y_zero=101)), {"x": x})["y"]
    assert (got[:, 0].astype(int) - 101).tolist() == [-4, -2, -2, 0, 0, 2, 2, 4]


def test_a_relu_cuts_at_the_zero_point() -> None:
    got = evaluate(model_of(replace(MATMUL, activation="Relu")), {"x": MATMUL.x})["y"]
    plain = evaluate(model_of(MATMUL), {"x": MATMUL.x})["y"]
    assert plain.min() < MATMUL.y_zero
    np.testing.assert_array_equal(got, np.maximum(plain, MATMUL.y_zero))


def conv(**changes: Any) -> Layer:
    rng = np.random.default_rng(2)
    base = Layer(
        "Conv", integers(rng, "uint8", (1, 4, 6, 6)), integers(rng, "int8", (3, 4, 3, 3)),
        rng.integers(-999, 999, 3), x_zero=7, y_zero=3, y_scale=1.5,
    )  # fmt: skip
    return replace(base, **changes)


def test_padding_counts_as_the_zero_point() -> None:
    layer = conv(attributes={"pads": [1, 1, 1, 1]})
    wide = np.pad(layer.x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=layer.x_zero)
    got = evaluate(model_of(layer), {"x": layer.x})["y"]
    np.testing.assert_array_equal(got, evaluate(model_of(conv(x=wide)), {"x": wide})["y"])


def test_a_float_bias_is_rounded_to_accumulator_steps() -> None:
    exact, floats = model_of(conv()), model_of(conv(bias_kind="float"))
    x = {"x": conv().x}
    np.testing.assert_array_equal(evaluate(exact, x)["y"], evaluate(floats, x)["y"])


def test_a_transposed_conv_is_the_gradient_of_the_conv() -> None:
    """<conv(a), b> = <a, conv_transposed(b)> on the accumulators, which checks every index."""
    rng = np.random.default_rng(3)
    a, b = integers(rng, "int8", (1, 2, 7, 7)), integers(rng, "int8", (1, 3, 3, 3))
    w = integers(rng, "int8", (3, 2, 3, 3))
    shared = {"strides": [2, 2], "pads": [0, 0, 0, 0]}
    forward = model_of(
        Layer("Conv", a, w, x_scale=1, y_scale=1, w_scale=np.float32(1), y_type="int8", attributes=shared)
    )
    backward = model_of(
        Layer(
            "ConvTranspose",
            b,
            w,
            x_scale=1,
            y_scale=1,
            w_scale=np.float32(1),
            y_type="int8",
            attributes=shared,
        )
    )
    left = np.sum(evaluate(forward, {"x": a}, ["r"])["r"].astype(np.float64) * b)
    right = np.sum(evaluate(backward, {"x": b}, ["r"])["r"].astype(np.float64) * a)
    assert left == right


def test_a_transposed_conv_is_requantized_like_its_float_value_up_to_ties() -> None:
    rng = np.random.default_rng(4)
    x, w = integers(rng, "uint8", (2, 3, 5, 5)), integers(rng, "int8", (3, 4, 3, 3))
    attributes = {"strides": [2, 2], "output_padding": [1, 1]}
    scale = np.float32(0.0379)
    layer = Layer("ConvTranspose", x, w, None, 0.0173, 0.7, scale, 0, 128, 128, attributes=attributes)
    model = model_of(layer)
    want = run_session(make_session(model, optimize="none"), {"x": layer.x})["y"]
    got = evaluate(model, {"x": layer.x})["y"]
    assert use_integer_layers(model.clone()) == 1
    assert np.mean(got != want) < 0.001


def test_the_value_inside_a_layer_is_its_real_result() -> None:
    model = model_of(MATMUL)
    real = evaluate(model, {"x": MATMUL.x}, ["r", "y"])
    total = (MATMUL.x.astype(np.int64) - MATMUL.x_zero) @ MATMUL.w.astype(np.int64)
    unit = np.float64(np.float32(0.05)) * np.float64(np.float32(0.1))
    # inputs are dequantized in float32: one rounding each, and one of the result
    np.testing.assert_allclose(real["r"], total * unit, rtol=0, atol=3 * 2**-24 * 33 * 155 * 127 * unit)
    np.testing.assert_array_equal(real["y"], evaluate(model, {"x": MATMUL.x})["y"])


def test_an_accumulator_beyond_32_bits_is_refused_by_name() -> None:
    x, w = np.full((1, 70000), 255, np.uint8), np.full((70000, 1), 127, np.int8)
    layer = Layer("MatMul", x, w, w_scale=np.float32(1), w_axis=1)
    with pytest.raises(ModelError, match="layer") as caught:
        evaluate(model_of(layer), {"x": x})
    assert caught.value.reason == "int32-overflow"


def test_the_largest_accumulator_that_fits_is_exact() -> None:
    x, w = np.full((1, 66311), 255, np.uint8), np.full((66311, 1), 127, np.int8)
    layer = Layer("MatMul", x, w, x_scale=1, y_scale=2.0**31, w_scale=np.float32(1), w_axis=1)
    assert 255 * 127 * 66311 <= 2**31 - 1
    assert evaluate(model_of(layer), {"x": x})["y"].tolist() == [[1]]


def replaced(text: str) -> int:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    return use_integer_layers(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


TWELVE = "{1,2,3,4,5,6,7,8,9,10,11,12}"
HEAD = f"g (int8[2,3] x) => (int8[2,4] y) <float s = {{0.5}}, int8[3,4] w = {TWELVE}, int8 z = {{0}}"
QUANTIZE = "y = QuantizeLinear(r, s, z)"


def test_a_quantized_matmul_becomes_one_integer_operator() -> None:
    body = "a = DequantizeLinear(x, s) b = DequantizeLinear(w, s) r = MatMul(a, b)"
    assert replaced(f"{HEAD}> {{ {body} {QUANTIZE} }}") == 1


@pytest.mark.parametrize(
    "body",
    [
        # data per channel
        "a = DequantizeLinear<axis=1>(x, s3) b = DequantizeLinear(w, s) r = MatMul(a, b)",
        # weights along the contracted axis
        "a = DequantizeLinear(x, s) b = DequantizeLinear<axis=0>(w, s3) r = MatMul(a, b)",
        # weights in blocks
        "a = DequantizeLinear(x, s) b = DequantizeLinear<axis=0, block_size=3>(w, s14) r = MatMul(a, b)",
        # another operator in between
        "a = DequantizeLinear(x, s) b = DequantizeLinear(w, s) q = MatMul(a, b) r = Tanh(q)",
        # float weights
        "a = DequantizeLinear(x, s) b = Cast<to=1>(w) r = MatMul(a, b)",
    ],
)
def test_near_misses_stay_in_float(body: str) -> None:
    more = ", float[3] s3 = {1.0, 2.0, 3.0}, float[1,4] s14 = {1.0, 2.0, 3.0, 4.0}"
    assert replaced(f"{HEAD}{more}> {{ {body} {QUANTIZE} }}") == 0


def test_sixteen_bit_layers_stay_in_float() -> None:
    head = HEAD.replace("int8", "int16")
    assert (
        replaced(
            f"{head}> {{ a = DequantizeLinear(x, s) b = DequantizeLinear(w, s) r = MatMul(a, b) {QUANTIZE} }}"
        )
        == 0
    )
