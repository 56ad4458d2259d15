"""The integers of a network are the reference's, value for value, and what cannot be integers is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fpga_models import binary, joined, mlp, model, qdq_conv, quant, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pared.backends.fpga.backend import FpgaBackend
from pared.backends.fpga.graph import Requant
from pared.backends.fpga.host import Host
from pared.backends.fpga.read import read_network
from pared.backends.fpga.requant import check_order
from pared.backends.fpga.simulate import simulate
from pared.backends.fpga.steps import find_steps
from pared.backends.reference import evaluate
from pared.compiler.errors import UnsupportedOp
from pared.targets import load_target


def differing(net: ir.Model, x: np.ndarray) -> int:
    """Return how many outputs differ between the integers' way and the reference."""
    network = read_network(net)
    host = Host(network)
    wires = simulate(network, host.encode({"x": x}))
    got = host.decode({name: wires[name] for name in network.outputs})["y"]
    return int((got != evaluate(net, {"x": x})["y"]).sum())


def samples(net: ir.Model, count: int, seed: int) -> np.ndarray:
    shape = [int(size) for size in list(net.graph.inputs[0].shape or ())[1:] if isinstance(size, int)]
    return np.random.default_rng(seed).normal(0, 3, (count, *shape)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1]),
    st.sampled_from([1, 2]),
)
def test_qdq_convolutions_are_bit_exact(seed: int, relu: bool, stride: int, pads: int, group: int) -> None:
    net = qdq_conv(np.random.default_rng(seed), relu, stride, pads, group)
    assert differing(net, samples(net, 20, seed)) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_qonnx_layers_with_power_of_two_scales_are_bit_exact(seed: int, bits: int) -> None:
    net = mlp(bits, seed)
    assert differing(net, samples(net, 100, seed)) == 0


@pytest.mark.parametrize(
    ("ratio", "axis", "zero"), [(1.6, 1, 7), (1.0, 1, 100), (1.0, 2, 100), (1.0, -1, 100)]
)
def test_joined_tensors_are_bit_exact(ratio: float, axis: int, zero: int) -> None:
    net = joined(ratio, axis, zero)
    assert differing(net, samples(net, 200, 1) * 5) == 0


def test_tensors_of_unlike_scales_along_another_axis_are_left_to_the_host() -> None:
    net = joined(1.6, 2)
    assert next(node.op_type for node in read_network(net).tail.graph) == "Concat"
    assert differing(net, samples(net, 50, 1) * 5) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_binary_layers_with_batch_norm_of_any_sign_are_bit_exact(seed: int) -> None:
    net = binary(np.random.default_rng(seed))
    assert differing(net, samples(net, 100, seed)) == 0


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0, 2.8, 0.37])
def test_sums_of_operands_with_any_scales_are_bit_exact(ratio: float) -> None:
    net = residual(ratio)
    assert differing(net, samples(net, 2000, 1)) == 0


def test_thresholds_of_power_of_two_layers_are_all_proven() -> None:
    found = [layer for layer in read_network(mlp()).layers if isinstance(layer, Requant)]
    assert [layer.unproven for layer in found] == [0]


def test_a_model_without_quantizers_is_refused() -> None:
    net = model([helper.make_node("Relu", ["x"], ["y"])], {}, [4], [4])
    with pytest.raises(UnsupportedOp, match="no quantizer") as caught:
        read_network(net)
    assert caught.value.reason == "fpga-not-quantized"


@pytest.mark.parametrize(("op", "ok"), [("Scan", False), ("LSTM", False), ("Conv", True), ("Softmax", True)])
def test_a_look_at_a_node_tells_that_state_over_steps_is_not_taken(op: str, ok: bool) -> None:
    verdict = FpgaBackend().supports(ir.Node("", op, []), load_target("fpga-ecp5-25k"))
    assert verdict.ok == ok
    assert ok or op in verdict.reason


def test_float_weights_are_refused_by_name() -> None:
    arrays = {
        "w": np.full((4, 2), 0.3, np.float32),
        "s": np.float32(1),
        "zero": np.float32(0),
        "b": np.float32(4),
    }
    nodes = [quant("x", "xq", "s", "b", signed=1, narrow=0), helper.make_node("MatMul", ["xq", "w"], ["y"])]
    with pytest.raises(UnsupportedOp, match="'w' are floats") as caught:
        read_network(model(nodes, arrays, [4], [2]))
    assert caught.value.reason == "fpga-weights"


def between(*last: onnx.NodeProto) -> ir.Model:
    arrays = {
        "s": np.float32(0.25), "zero": np.float32(0), "b": np.float32(4), "w": np.eye(4, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        helper.make_node("MatMul", ["xq", "w"], ["h"]),
        helper.make_node("Softmax", ["h"], ["p"]),
        quant("p", "q", "s", "b", signed=0, narrow=0),
    ]
    return model([*nodes, *last], arrays, [4], [4])


def test_a_float_operator_between_layers_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="Softmax") as caught:
        read_network(between(helper.make_node("MatMul", ["q", "w"], ["y"])))
    assert caught.value.reason == "fpga-op"


def test_a_quantizer_behind_the_last_float_operator_runs_on_the_host() -> None:
    net = between(helper.make_node("Identity", ["q"], ["y"]))
    assert differing(net, samples(net, 50, 0)) == 0


def test_float_operators_behind_the_last_integer_run_on_the_host() -> None:
    arrays = {
        "s": np.float32(0.25),
        "zero": np.float32(0),
        "b": np.float32(4),
        "w": np.eye(4, dtype=np.float32),
    }
    nodes = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        helper.make_node("MatMul", ["xq", "w"], ["h"]),
        helper.make_node("Softmax", ["h"], ["y"]),
    ]
    net = model(nodes, arrays, [4], [4])
    assert differing(net, samples(net, 50, 0)) == 0


def test_wide_accumulators_are_refused() -> None:
    weights = np.full((70000, 1), 32767, np.float32)
    arrays = {"w": weights, "s": np.float32(1), "zero": np.float32(0), "b": np.float32(8)}
    nodes = [quant("x", "xq", "s", "b", signed=1, narrow=0), helper.make_node("MatMul", ["xq", "w"], ["y"])]
    with pytest.raises(UnsupportedOp, match="over 32 bits") as caught:
        read_network(model(nodes, arrays, [70000], [1]))
    assert caught.value.reason == "fpga-overflow"


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_activations_of_four_bits_with_a_zero_point_are_bit_exact(name: str) -> None:
    kind = getattr(ml_dtypes, name)
    arrays = {
        "s": np.float32(0.3), "z": np.array(3, kind), "t": np.float32(0.7), "u": np.array(6, kind),
        "w": np.array([[3, -1, 2], [1, 1, -4], [0, 2, 5], [-2, 1, 1]], np.int8), "ws": np.float32(0.25),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "t", "u"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "t", "u"], ["y"]),
    ]
    net = model(nodes, arrays, [4], [3])
    assert differing(net, samples(net, 200, 0)) == 0


def test_sums_that_are_quantized_differently_per_channel_are_bit_exact() -> None:
    arrays = {
        "s": np.float32(0.5), "t": np.float32(0.25), "z": np.int8(0), "u": np.float32(1), "v": np.int8(4),
        "c": np.array([0.5, -1.5, 3.0], np.float32).reshape(3, 1),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "s", "z"], ["a"]),
        helper.make_node("QuantizeLinear", ["x", "t", "z"], ["bq"]),
        helper.make_node("DequantizeLinear", ["bq", "t", "z"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["sum", "c"], ["scaled"]),
        helper.make_node("QuantizeLinear", ["scaled", "u", "v"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "u", "v"], ["y"]),
    ]
    net = model(nodes, arrays, [3, 5], [3, 5])
    assert differing(net, samples(net, 100, 0)) == 0


def chained(*nodes: onnx.NodeProto, **arrays: np.ndarray) -> ir.Model:
    """Return a layer, these nodes from `h` to `r`, a quantizer and a layer."""
    given = {
        "s": np.float32(0.25),
        "zero": np.float32(0),
        "b": np.float32(6),
        "w": np.eye(4, dtype=np.float32),
    }
    around = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        quant("w", "wq", "s", "b", signed=1, narrow=1),
        helper.make_node("MatMul", ["xq", "wq"], ["h"]),
        *nodes,
        quant("r", "rq", "s", "b", signed=1, narrow=0),
        helper.make_node("MatMul", ["rq", "wq"], ["y"]),
    ]
    return model(around, {**given, **arrays}, [4], [4])


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("LeakyRelu", {"alpha": -0.5}), ("Elu", {"alpha": -1.0}), ("ThresholdedRelu", {"alpha": -0.7})],
)
def test_activations_that_fall_and_rise_are_refused(op: str, attributes: dict[str, float]) -> None:
    with pytest.raises(UnsupportedOp):
        read_network(chained(helper.make_node(op, ["h"], ["r"], **attributes)))


@pytest.mark.parametrize("alpha", [0.0, 0.125, 1.0])
def test_activations_that_rise_are_bit_exact(alpha: float) -> None:
    net = chained(helper.make_node("LeakyRelu", ["h"], ["r"], alpha=alpha))
    assert differing(net, samples(net, 200, 0)) == 0


def test_a_quotient_by_the_data_is_refused() -> None:
    net = chained(helper.make_node("Div", ["one", "h"], ["r"]), one=np.float32(1))
    with pytest.raises(UnsupportedOp):
        read_network(net)


def test_a_cast_to_bool_between_is_refused() -> None:
    nodes = (
        helper.make_node("Cast", ["h"], ["c"], to=onnx.TensorProto.BOOL),
        helper.make_node("Cast", ["c"], ["r"], to=onnx.TensorProto.FLOAT),
    )
    with pytest.raises(UnsupportedOp):
        read_network(chained(*nodes))


def test_what_is_no_number_for_some_sums_is_refused() -> None:
    net = chained(helper.make_node("Log", ["h"], ["r"]))
    with pytest.raises(UnsupportedOp, match="no number"):
        read_network(net)


def test_arithmetic_that_falls_and_rises_is_found_by_trying() -> None:
    def codes(acc: np.ndarray, nudge: int) -> np.ndarray:
        return np.clip(np.abs(acc) // 4, 0, 7)

    def rising(acc: np.ndarray, nudge: int) -> np.ndarray:
        return np.clip((acc + 40) // 16, 0, 7)

    low, high = np.array([-40]), np.array([90])
    steps = find_steps(codes, low, high, 0, 7, 1)
    node = next(iter(chained(helper.make_node("Relu", ["h"], ["r"])).graph))
    check_order(node, rising, find_steps(rising, low, high, 0, 7, 1), low, high)
    with pytest.raises(UnsupportedOp, match="rises"):
        check_order(node, codes, steps, low, high)


def test_a_bias_off_the_grid_is_rounded_by_the_quantizer_behind() -> None:
    arrays = {
        "s": np.float32(0.25), "zero": np.float32(0), "b": np.float32(3), "wide": np.float32(8),
        "one": np.float32(1), "w": np.ones((4, 1), np.float32), "bias": np.array([0.1], np.float32),
    }  # fmt: skip
    nodes = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        quant("w", "wq", "one", "b", signed=1, narrow=1),
        helper.make_node("Gemm", ["xq", "wq", "bias"], ["h"]),
        quant("h", "y", "s", "wide", signed=1, narrow=0),
    ]
    net = model(nodes, arrays, [4], [1])
    assert differing(net, samples(net, 100, 0)) == 0


def test_a_layer_of_one_channel_and_a_bias_is_no_operand() -> None:
    net = chained(
        helper.make_node("Gemm", ["h", "v", "c"], ["g"]), helper.make_node("Gemm", ["g", "v2"], ["r"]),
        v=np.ones((4, 1), np.float32), c=np.array([0.1], np.float32), v2=np.ones((1, 4), np.float32),
    )  # fmt: skip
    with pytest.raises(UnsupportedOp):
        read_network(net)


def test_a_convolution_of_one_channel_is_quantized() -> None:
    arrays = {
        "s": np.float32(0.25), "zero": np.float32(0), "b": np.float32(3), "t": np.float32(0.1),
        "w": np.ones((1, 2, 1, 1), np.float32), "one": np.float32(1), "wide": np.float32(8),
    }  # fmt: skip
    nodes = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        quant("w", "wq", "one", "b", signed=1, narrow=1),
        helper.make_node("Conv", ["xq", "wq"], ["h"]),
        quant("h", "y", "t", "wide", signed=1, narrow=0),
    ]
    net = model(nodes, arrays, [2, 3, 3], [1, 3, 3])
    assert differing(net, samples(net, 50, 0)) == 0
