"""The quantization view reads what the graph says; quantizing obeys its laws."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pared.compiler import ops
from pared.compiler.ir.quant import (
    QuantParams,
    QuantSpec,
    Rounding,
    Scheme,
    broadcast_params,
    container,
    dequantize_array,
    pack_bits,
    quantize_array,
    unpack_bits,
    view,
)

KINDS = {
    TensorProto.INT2: (2, True), TensorProto.UINT2: (2, False), TensorProto.INT4: (4, True),
    TensorProto.UINT4: (4, False), TensorProto.INT8: (8, True), TensorProto.UINT8: (8, False),
    TensorProto.INT16: (16, True), TensorProto.UINT16: (16, False), TensorProto.INT32: (32, True),
}  # fmt: skip


def viewed(text: str) -> QuantParams | None:
    ops.register()
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>\n{text}'
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return view(model.graph.outputs[0])


def linear(kind: int, shape: list[int], scale: list[float], zero: list[int] | None, **attributes) -> ir.Value:
    dims = [len(scale)] if len(scale) > 1 else []
    if attributes.get("block_size"):
        dims = [*shape[:-1], len(scale) // int(np.prod(shape[:-1]))]
    initializers = [helper.make_tensor("s", TensorProto.FLOAT, dims, scale)]
    if zero is not None:
        initializers.append(helper.make_tensor("z", kind, dims, zero))
    node = helper.make_node("DequantizeLinear", ["x", "s"] + ["z"] * (zero is not None), ["y"], **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], initializers,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    return ir.from_proto(proto).graph.outputs[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_integer_type_of_dequantize_linear_is_read(kind: int) -> None:
    params = view(linear(kind, [2, 3], [0.5], [1]))
    assert params is not None
    bits, signed = KINDS[kind]
    assert (params.spec.bits, params.spec.signed, params.spec.axis) == (bits, signed, None)
    assert params.spec.scheme is Scheme.ASYMMETRIC
    assert params.scale.shape == params.zero_point.shape == ()
    assert int(params.zero_point) == 1


def test_a_missing_zero_point_is_zero_and_symmetric() -> None:
    params = view(linear(TensorProto.INT8, [2, 3], [0.5], None))
    assert params is not None
    assert params.spec.scheme is Scheme.SYMMETRIC
    assert int(params.zero_point) == 0


@pytest.mark.parametrize("axis", [1, -1])
def test_channels_are_read_with_a_non_negative_axis(axis: int) -> None:
    params = view(linear(TensorProto.INT8, [2, 3], [0.5, 1, 2], [0, 0, 0], axis=axis))
    assert params is not None
    assert params.spec.axis == 1
    np.testing.assert_array_equal(params.scale, np.float32([0.5, 1, 2]))


def test_blocks_are_read_and_spread_over_the_tensor() -> None:
    params = view(linear(TensorProto.INT4, [2, 5], [1, 2, 3, 4, 5, 6], None, axis=1, block_size=2))
    assert params is not None
    assert (params.spec.axis, params.spec.block_size) == (1, 2)
    scale, _ = broadcast_params(params, (2, 5))
    np.testing.assert_array_equal(scale, np.float32([[1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]))


def test_a_float8_dequantizer_is_no_integer_quantization() -> None:
    assert view(linear(TensorProto.FLOAT8E4M3FN, [2, 3], [0.5], None)) is None


def test_a_scale_computed_from_constants_is_evaluated() -> None:
    params = viewed(
        """g (int32[4] x) => (float[4] y) <float a = {0.5}, float b = {0.25}>
        { s = Mul(a, b) y = DequantizeLinear(x, s) }"""
    )
    assert params is not None
    assert float(params.scale) == 0.125


def test_a_scale_that_comes_in_at_run_time_has_no_view() -> None:
    assert viewed("g (int8[4] x, float s) => (float[4] y) { y = DequantizeLinear(x, s) }") is None


def test_quant_is_read_with_its_channel_axis() -> None:
    params = viewed(
        """g (float[2,3,4,4] x) => (float[2,3,4,4] y)
        <float[1,3,1,1] s = {0.5, 1.0, 2.0}, float z = {0.0}, float b = {4.0}>
        { y = qonnx.custom_op.general.Quant
            <signed = 1, narrow = 1, rounding_mode = "FLOOR"> (x, s, z, b) }"""
    )
    assert params is not None
    assert params.spec == QuantSpec(4, True, True, Scheme.SYMMETRIC, axis=1, rounding=Rounding.FLOOR)
    assert params.scale.shape == (3,)
    assert (params.spec.qmin, params.spec.qmax) == (-7, 7)


def test_quant_of_one_signed_bit_is_bipolar() -> None:
    params = viewed(
        """g (float[2] x) => (float[2] y) <float s = {0.5}, float z = {0.0}, float b = {1.0}>
        { y = qonnx.custom_op.general.Quant <signed = 1, narrow = 1> (x, s, z, b) }"""
    )
    assert params is not None
    assert params.spec.scheme is Scheme.BIPOLAR


def test_quant_with_a_scale_along_two_axes_has_no_view() -> None:
    params = viewed(
        """g (float[2,2] x) => (float[2,2] y)
        <float[2,2] s = {0.5, 1.0, 2.0, 3.0}, float z = {0.0}, float b = {4.0}>
        { y = qonnx.custom_op.general.Quant(x, s, z, b) }"""
    )
    assert params is None


def test_bipolar_quant_is_read() -> None:
    params = viewed(
        "g (float[2] x) => (float[2] y) <float s = {0.5}> { y = qonnx.custom_op.general.BipolarQuant(x, s) }"
    )
    assert params is not None
    assert (params.spec.bits, params.spec.qmin, params.spec.qmax) == (1, -1, 1)


def test_trunc_is_read_with_its_output_format() -> None:
    params = viewed(
        """g (float[2] x) => (float[2] y)
        <float s = {0.5}, float z = {8.0}, float i = {8.0}, float t = {2.0}, float o = {4.0}>
        { y = qonnx.custom_op.general.Trunc <signed = 0> (x, s, z, i, t, o) }"""
    )
    assert params is not None
    assert (params.spec.bits, params.spec.signed, float(params.scale), int(params.zero_point)) == (
        4,
        False,
        2.0,
        2,
    )


def test_a_plain_value_has_no_view() -> None:
    assert viewed("g (float[2] x) => (float[2] y) { y = Relu(x) }") is None
    assert view(None) is None


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        (QuantSpec(8), -128, 127),
        (QuantSpec(8, narrow=True), -127, 127),
        (QuantSpec(8, signed=False), 0, 255),
        (QuantSpec(8, signed=False, narrow=True), 0, 254),
        (QuantSpec(32), -(2**31), 2**31 - 1),
        (QuantSpec(1, scheme=Scheme.BIPOLAR), -1, 1),
    ],
)
def test_the_range_of_a_spec(spec: QuantSpec, low: int, high: int) -> None:
    assert (spec.qmin, spec.qmax) == (low, high)
    assert np.iinfo(container(spec)).min <= low
    assert high <= np.iinfo(container(spec)).max


@pytest.mark.parametrize(
    "fields", [{"bits": 0}, {"bits": 33}, {"bits": 8, "block_size": 4}, {"bits": 2, "scheme": Scheme.BIPOLAR},
               {"bits": 1, "narrow": True}],
)  # fmt: skip
def test_a_meaningless_spec_is_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"bits?|block_size|range"):
        QuantSpec(**fields)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        QuantParams(QuantSpec(8), np.float32(scale).reshape(()), np.int64(0).reshape(()))


def params_strategy() -> st.SearchStrategy[QuantParams]:
    @st.composite
    def build(draw) -> QuantParams:
        bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
        spec = QuantSpec(
            bits,
            signed,
            draw(st.booleans()),
            Scheme.ASYMMETRIC,
            rounding=draw(st.sampled_from(list(Rounding))),
        )
        scale = np.asarray(draw(st.floats(2**-12, 8, width=32)), np.float32)
        return QuantParams(spec, scale, np.asarray(draw(st.integers(spec.qmin, spec.qmax)), np.int64))

    return build()


REALS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(params_strategy(), REALS)
@settings(deadline=None)
def test_quantizing_to_nearest_twice_equals_once(params: QuantParams, reals: list[float]) -> None:
    spec = QuantSpec(params.spec.bits, params.spec.signed, params.spec.narrow, Scheme.ASYMMETRIC)
    nearest = QuantParams(spec, params.scale, params.zero_point)
    once = quantize_array(np.float32(reals), nearest)
    np.testing.assert_array_equal(quantize_array(dequantize_array(once, nearest), nearest), once)


@given(params_strategy(), REALS)
@settings(deadline=None)
def test_integers_stay_in_range_and_in_their_container(params: QuantParams, reals: list[float]) -> None:
    q = quantize_array(np.float32(reals), params)
    assert q.dtype == container(params.spec)
    assert q.min() >= params.spec.qmin
    assert q.max() <= params.spec.qmax


@given(params_strategy(), REALS)
@settings(deadline=None)
def test_rounding_to_nearest_inside_the_range_errs_by_half_a_step(
    params: QuantParams, reals: list[float]
) -> None:
    spec = QuantSpec(params.spec.bits, params.spec.signed, params.spec.narrow, Scheme.ASYMMETRIC)
    nearest = QuantParams(spec, params.scale, params.zero_point)
    low, high = (float(dequantize_array(np.asarray(q), nearest)) for q in (spec.qmin, spec.qmax))
    x = np.clip(np.float32(reals), np.float32(low), np.float32(high))
    error = np.abs(dequantize_array(quantize_array(x, nearest), nearest).astype(np.float64) - x)
    # half a step, and the float32 roundings of quotient and product
    slack = 2 * np.finfo(np.float32).eps * (np.abs(x) + float(params.scale) * (abs(spec.qmin) + spec.qmax))
    assert np.all(error <= 0.5 * float(params.scale) + slack)


def test_overflow_can_wrap() -> None:
    spec = QuantSpec(4, overflow="wrap")
    params = QuantParams(spec, np.float32(1).reshape(()), np.int64(0).reshape(()))
    np.testing.assert_array_equal(
        quantize_array(np.float32([7, 8, 9, -8, -9, 24]), params), [7, -8, -7, -8, 7, -8]
    )


def test_channels_use_their_own_scale() -> None:
    params = QuantParams(QuantSpec(8, axis=0), np.float32([1, 0.5]), np.int64([0, 0]))
    np.testing.assert_array_equal(quantize_array(np.float32([[2, 3], [2, 3]]), params), [[2, 3], [4, 6]])


@given(st.integers(1, 16), st.booleans(), st.data())
def test_unpacking_what_was_packed_gives_it_back(bits: int, signed: bool, data: st.DataObject) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    q = np.array(data.draw(st.lists(st.integers(low, high), min_size=1, max_size=40)))
    packed = pack_bits(q, bits)
    assert packed.size == -(-q.size * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, signed, q.shape), q)


@pytest.mark.parametrize(
    ("kind", "bits"), [(TensorProto.INT4, 4), (TensorProto.UINT4, 4), (TensorProto.INT2, 2)]
)
def test_packing_four_and_two_bits_is_what_onnx_stores(kind: int, bits: int) -> None:
    q = np.array([0, 1, 1, 0, 1, 0, 1])
    tensor = helper.make_tensor("t", kind, [7], q.tolist())
    stored = tensor.raw_data or bytes(tensor.int32_data)
    assert pack_bits(q, bits).tobytes() == stored
