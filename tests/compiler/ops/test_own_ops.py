"""The own operators equal the qonnx package, and their expansions equal the own operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from qonnx.custom_op.general.bipolar_quant import binary_quant
from qonnx.custom_op.general.intquant import int_quant
from qonnx.custom_op.general.multithreshold import multithreshold as qonnx_multithreshold
from qonnx.custom_op.general.trunc import trunc_v1, trunc_v2

from pared.compiler import ops
from pared.compiler.errors import UnsupportedOp
from pared.compiler.ops.bipolar_quant import bipolar_quant
from pared.compiler.ops.multithreshold import channel_axis_of, multithreshold
from pared.compiler.ops.quant import ROUNDINGS, quant
from pared.compiler.ops.trunc import trunc_by_scale, trunc_by_width
from pared.compiler.ort import make_session, run_session

ROUNDING_NAMES = ["ROUND", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"]
QONNX, FINN = "qonnx.custom_op.general", "finn.custom_op.general"


def f32(value) -> np.ndarray:
    return np.asarray(value, np.float32)


def samples(seed: int = 0, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    """Normal values, exact ties of a step of 0.25, and values far outside any range."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, shape).astype(np.float32)
    x.flat[:12] = f32([0, -0.0, 0.125, -0.125, 0.375, -0.375, 0.625, -0.625, 1e6, -1e6, 0.1, -0.1])
    return x


def model(op: str, domain: str, x: np.ndarray, consts: Mapping[str, np.ndarray], **attributes) -> ir.Model:
    ops.register()
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *consts], ["y"], domain=domain, name="n", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in consts.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))


def run_expanded(m: ir.Model, x: np.ndarray) -> np.ndarray:
    assert ops.expand_custom_ops(m) == 1
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    return run_session(make_session(m, optimize="none"), {"x": x})["y"]


@pytest.mark.parametrize("rounding", ROUNDING_NAMES)
@pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16, 24, 32])
def test_quant_equals_the_qonnx_package(bits: int, signed: int, narrow: int, rounding: str) -> None:
    x, scale, zero, width = samples(), f32(0.25), f32(0), f32(bits)
    want = int_quant(x, scale, zero, width, signed, narrow, rounding)
    got = quant(x, scale, zero, width, bool(signed), bool(narrow), rounding)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.float32


@given(
    st.integers(1, 16), st.booleans(), st.booleans(), st.sampled_from(ROUNDING_NAMES),
    st.floats(2**-10, 4, width=32), st.integers(-20, 20), st.integers(0, 2**31),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_quant_equals_qonnx_for_any_scale_and_zero_point(
    bits, signed, narrow, rounding, scale, zero, seed
) -> None:
    x = samples(seed)
    channels = f32(scale) * f32([1, 0.5, 3, 0.1]).reshape(1, 4, 1)
    for s in (f32(scale), channels):
        want = int_quant(x, s, f32(zero), f32(bits), int(signed), int(narrow), rounding)
        np.testing.assert_array_equal(quant(x, s, f32(zero), f32(bits), signed, narrow, rounding), want)


def test_round_to_zero_is_another_name_of_down() -> None:
    assert ROUNDINGS["ROUND_TO_ZERO"] is ROUNDINGS["DOWN"]


def test_an_unknown_rounding_mode_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UnsupportedOp, match="HALF_EVEN"):
        quant(samples(), f32(1), f32(0), f32(8), True, False, "STOCHASTIC")


@pytest.mark.parametrize("scale", [f32(0.5), f32([0.1, 1, 2, 3]).reshape(1, 4, 1)])
def test_bipolar_quant_equals_the_qonnx_package(scale: np.ndarray) -> None:
    np.testing.assert_array_equal(bipolar_quant(samples(), scale), binary_quant(samples(), scale))


@pytest.mark.parametrize("rounding", ROUNDING_NAMES)
@pytest.mark.parametrize("zero", [0, 3])
def test_trunc_with_five_inputs_equals_the_qonnx_package(rounding: str, zero: int) -> None:
    x = np.rint(samples()) * f32(0.5)
    parameters = (f32(0.5), f32(zero), f32(8), f32(4), rounding)
    np.testing.assert_array_equal(trunc_by_width(x, *parameters), trunc_v1(x, *parameters))


@pytest.mark.parametrize("rounding", ROUNDING_NAMES)
@pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_trunc_with_six_inputs_equals_the_qonnx_package(rounding: str, signed: int, narrow: int) -> None:
    x = np.rint(samples()) * f32(0.5)
    want = trunc_v2(x, f32(0.5), f32(3), f32(8), narrow, signed, f32(4.1), f32(4), rounding)
    got = trunc_by_scale(x, f32(0.5), f32(3), f32(4.1), f32(4), bool(signed), bool(narrow), rounding)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("layout", "axis"), [("NCW", 1), ("NWC", 2), ("NHWC", 3), ("NCHW", 1), ("", None)])
def test_multithreshold_equals_the_qonnx_package(layout: str, axis: int | None, channels: int) -> None:
    shape = {"NCW": (2, 4, 5), "NWC": (2, 5, 4), "NHWC": (2, 3, 5, 4)}.get(layout, (2, 4, 3, 5))
    x = np.rint(samples(1, shape))
    thresholds = np.sort(np.rint(np.random.default_rng(0).normal(0, 3, (channels, 7))), axis=1).astype(
        np.float32
    )
    axis = channel_axis_of(layout, x.ndim) if axis is None else axis
    want = qonnx_multithreshold(x.swapaxes(axis, 1), thresholds, 0.5, -3.0).swapaxes(axis, 1)
    np.testing.assert_array_equal(multithreshold(x, thresholds, 0.5, -3.0, layout), want)


def test_rank_three_without_layout_has_channels_last() -> None:
    assert channel_axis_of("", 3) == 2
    assert channel_axis_of("", 4) == 1


@pytest.mark.parametrize("rounding", [*ROUNDING_NAMES, "ROUND_TO_ZERO"])
@pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("zero", [0, 2])
def test_expanded_quant_is_bit_equal(rounding: str, signed: int, narrow: int, zero: int) -> None:
    x = samples()
    consts = {"s": f32(0.25), "z": f32(zero), "b": f32(4)}
    m = model("Quant", QONNX, x, consts, signed=signed, narrow=narrow, rounding_mode=rounding)
    want = quant(x, f32(0.25), f32(zero), f32(4), bool(signed), bool(narrow), rounding)
    np.testing.assert_array_equal(run_expanded(m, x), want)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("channelwise", [False, True])
def test_a_byte_quantizer_becomes_a_bit_equal_linear_pair(bits: int, signed: int, channelwise: bool) -> None:
    x = samples(2)
    scale = f32([0.25, 0.1, 0.01, 3]).reshape(1, 4, 1) if channelwise else f32(0.1)
    m = model("Quant", QONNX, x, {"s": scale, "z": f32(0), "b": f32(bits)}, signed=signed, narrow=0)
    got = run_expanded(m, x)
    assert [node.op_type for node in m.graph] == ["QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(got, quant(x, scale, f32(0), f32(bits), bool(signed), False, "ROUND"))


@pytest.mark.parametrize(("narrow", "zero", "rounding"), [(1, 0, "ROUND"), (0, 3, "ROUND"), (0, 0, "FLOOR")])
def test_near_misses_of_the_linear_pair_stay_arithmetic(narrow: int, zero: int, rounding: str) -> None:
    x = samples()
    consts = {"s": f32(0.1), "z": f32(zero), "b": f32(8)}
    m = model("Quant", QONNX, x, consts, signed=1, narrow=narrow, rounding_mode=rounding)
    got = run_expanded(m, x)
    assert "QuantizeLinear" not in {node.op_type for node in m.graph}
    np.testing.assert_array_equal(got, quant(x, f32(0.1), f32(zero), f32(8), True, bool(narrow), rounding))


def constant_data_model(op: str, scale: np.ndarray, bits: int) -> tuple[ir.Model, np.ndarray]:
    ops.register()
    w = samples(3, (4, 3, 2))
    consts = {"w": w, "s": scale, "z": f32(0), "b": f32(bits)}
    names = list(consts) if op == "Quant" else ["w", "s"]
    graph = helper.make_graph(
        [
            helper.make_node(op, names, ["q"], domain=QONNX, name="wq"),
            helper.make_node("Add", ["x", "q"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, w.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, w.shape)],
        [numpy_helper.from_array(consts[name], name) for name in names],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), w


@pytest.mark.parametrize("op", ["Quant", "BipolarQuant"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", [f32(0.1), f32([0.25, 0.1, 0.01, 3]).reshape(4, 1, 1)])
def test_constant_data_becomes_integers_behind_dequantize_linear(
    op: str, bits: int, scale: np.ndarray
) -> None:
    m, w = constant_data_model(op, scale, bits)
    assert ops.expand_custom_ops(m) == 1
    assert [node.op_type for node in m.graph] == ["DequantizeLinear", "Add"]
    assert m.graph[0].inputs[0].dtype == ir.DataType.INT8
    got = run_session(make_session(m, optimize="none"), {"x": np.zeros_like(w)})["y"]
    want = (
        quant(w, scale, f32(0), f32(bits), True, True, "ROUND") if op == "Quant" else bipolar_quant(w, scale)
    )
    np.testing.assert_array_equal(got, want)


def test_constant_data_with_a_scale_along_two_axes_is_folded_to_floats() -> None:
    m, w = constant_data_model("Quant", np.abs(samples(4, (4, 3, 1))) + 1, 4)
    ops.expand_custom_ops(m)
    got = run_session(make_session(m, optimize="none"), {"x": np.zeros_like(w)})["y"]
    np.testing.assert_array_equal(
        got, quant(w, np.abs(samples(4, (4, 3, 1))) + 1, f32(0), f32(4), True, True, "ROUND")
    )


@pytest.mark.parametrize("scale", [f32(0.5), f32([0.1, 1, 2, 3]).reshape(1, 4, 1)])
def test_expanded_bipolar_quant_is_bit_equal(scale: np.ndarray) -> None:
    x = samples()
    np.testing.assert_array_equal(
        run_expanded(model("BipolarQuant", QONNX, x, {"s": scale}), x), bipolar_quant(x, scale)
    )


@pytest.mark.parametrize("rounding", ROUNDING_NAMES)
def test_expanded_trunc_is_bit_equal_in_both_forms(rounding: str) -> None:
    x = np.rint(samples()) * f32(0.5)
    five = {"s": f32(0.5), "z": f32(3), "i": f32(8), "o": f32(4)}
    m = model("Trunc", QONNX, x, five, rounding_mode=rounding)
    np.testing.assert_array_equal(run_expanded(m, x), trunc_by_width(x, *five.values(), rounding))
    six = {"s": f32(0.5), "z": f32(3), "i": f32(8), "os": f32(4), "o": f32(4)}
    m = model("Trunc", QONNX, x, six, rounding_mode=rounding, signed=0)
    want = trunc_by_scale(x, f32(0.5), f32(3), f32(4), f32(4), False, False, rounding)
    np.testing.assert_array_equal(run_expanded(m, x), want)


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (2, 4, 3, 5)), ("NHWC", (2, 3, 5, 4)), ("", (2, 4))])
@pytest.mark.parametrize("levels", [1, 7])
def test_expanded_multithreshold_is_bit_equal(layout: str, shape: tuple[int, ...], levels: int) -> None:
    x = np.rint(samples(1, shape)) if np.prod(shape) >= 12 else f32(np.arange(-4, 4)).reshape(shape)
    t = np.sort(np.random.default_rng(0).integers(-3, 4, (4, levels)), axis=1).astype(np.float32)
    m = model("MultiThreshold", FINN, x, {"t": t}, out_scale=0.5, out_bias=-1.0, data_layout=layout)
    np.testing.assert_array_equal(run_expanded(m, x), multithreshold(x, t, 0.5, -1.0, layout))


def test_a_replaced_value_keeps_its_name_and_the_own_import_goes() -> None:
    m = model("Quant", QONNX, samples(), {"s": f32(0.1), "z": f32(0), "b": f32(4)})
    ops.expand_custom_ops(m)
    assert m.graph.outputs[0].name == "y"
    assert QONNX not in m.graph.opset_imports


def test_a_model_without_own_operators_is_left_alone() -> None:
    m = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    assert ops.expand_custom_ops(m) == 0


def test_operators_inside_a_body_are_expanded() -> None:
    ops.register()
    outer = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
        g (bool c, float[3,4,5] x) => (float[3,4,5] y) {
          y = If (c) <
            then_branch = t () => (float[3,4,5] a) <float s = {1.0}>
              { a = qonnx.custom_op.general.BipolarQuant(x, s) },
            else_branch = e () => (float[3,4,5] b) { b = Neg(x) }>
        }"""
    )
    assert ops.expand_custom_ops(outer) == 1
    assert all(node.domain == "" for node in outer.graph.all_nodes())


def test_a_scale_computed_from_constants_is_evaluated() -> None:
    x = samples()
    m = model("BipolarQuant", QONNX, x, {"s": f32(1)})
    graph = ir.to_proto(m).graph
    graph.node[0].op_type = "Quant"
    graph.node[0].input[:] = ["x", "scale", "z", "b"]
    graph.node.insert(0, helper.make_node("Pow", ["two", "e"], ["scale"]))
    arrays = {"two": f32(2), "e": f32(-3), "z": f32(0), "b": f32(8)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    graph.node[1].attribute.append(helper.make_attribute("narrow", 0))
    proto = ir.to_proto(m)
    proto.graph.CopyFrom(graph)
    got = run_expanded(ir.from_proto(proto), x)
    np.testing.assert_array_equal(got, quant(x, f32(0.125), f32(0), f32(8), True, False, "ROUND"))


def test_a_scale_that_depends_on_the_input_is_refused_by_name() -> None:
    ops.register()
    m = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
        g (float[2] x, float s) => (float[2] y) <float z = {0.0}, float b = {8.0}>
        { [act] y = qonnx.custom_op.general.Quant(x, s, z, b) }"""
    )
    with pytest.raises(UnsupportedOp, match="act"):
        ops.expand_custom_ops(m)


def test_registering_twice_is_harmless_and_shapes_are_inferred() -> None:
    ops.register()
    ops.register()
    m = model("Quant", QONNX, samples(), {"s": f32(0.1), "z": f32(0), "b": f32(4)})
    assert list(m.graph.outputs[0].shape) == [3, 4, 5]


def test_a_wrong_input_type_fails_the_full_check() -> None:
    ops.register()
    m = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
        g (int32[2] x, float s) => (float[2] y) { y = qonnx.custom_op.general.BipolarQuant(x, s) }"""
    )
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(ir.to_proto(m), check_type=True, strict_mode=True)
