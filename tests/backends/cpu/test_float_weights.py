import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse

from pared.backends.cpu.backend import CpuBackend
from pared.backends.cpu.float_weights import free_float_weights
from pared.backends.cpu.fusion import check_fusion
from pared.compiler import ort
from pared.compiler.pass_api import Context
from pared.targets import load_target

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 6, 6)).astype(np.float32)
IO = "(float[2, 4, 6, 6] x) => (float[N, C, H, W] y)"
SCALES = RNG.uniform(0.001, 0.1, 4).astype(np.float32)


def free(model: ir.Model) -> int:
    return free_float_weights(model, check_fusion(model).dequantized)


def kernel(dtype=np.int8, low=-128, high=128):
    return RNG.integers(low, high, (4, 4, 3, 3)).astype(dtype)


def run(model: ir.Model) -> np.ndarray:
    return ort.run_session(ort.make_session(model, optimize="none"), {"x": X})["y"]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("inputs", "attributes", "weights"),
    [
        ("w, s", "", {"w": kernel(), "s": np.float32(0.03)}),
        ("w, s", "<axis = 0>", {"w": kernel(), "s": SCALES}),
        ("w, s", "", {"w": kernel(), "s": SCALES}),
        ("w, s", "<axis = -4>", {"w": kernel(), "s": SCALES}),
        ("w, s, z", "<axis = 0>", {"w": kernel(), "s": SCALES, "z": np.zeros(4, np.int8)}),
        ("w, s, z", "<axis = 0>", {"w": kernel(), "s": SCALES, "z": np.arange(-2, 2, dtype=np.int8)}),
        ("w, s, z", "", {"w": kernel(np.uint8, 0, 256), "s": np.float32(0.03), "z": np.uint8(131)}),
        ("w, s, z", "", {"w": kernel(np.int16, -30000, 30000), "s": np.float32(0.03), "z": np.int16(-7)}),
    ],
)
def test_the_numbers_stay_bit_for_bit(inputs, attributes, weights):
    model = parse(f"wd = DequantizeLinear{attributes}({inputs})\n y = Conv(x, wd)", IO, weights)
    before = run(model)
    assert free(model) == 1
    assert "DequantizeLinear" not in ops(model)
    assert np.array_equal(run(model), before)


def test_a_zero_point_that_is_an_expression_is_known_too():
    body = """
        z = ConstantOfShape<value = int8[1] {3}>(n)
        wd = DequantizeLinear<axis = 0>(w, s, z)
        y = Conv(x, wd)
    """
    model = parse(body, IO, {"w": kernel(), "s": SCALES, "n": np.array([4])})
    before = run(model)
    assert free(model) == 1
    assert np.array_equal(run(model), before)


def test_a_dequantized_value_keeps_its_name():
    model = parse("wd = DequantizeLinear(w, s)\n y = Conv(x, wd)", IO, {"w": kernel(), "s": np.float32(0.03)})
    free(model)
    conv = model.graph.node(-1)
    assert conv.inputs[1] is not None
    assert conv.inputs[1].name == "wd"


def test_nothing_is_dequantized_in_a_run_any_more():
    model = parse("wd = DequantizeLinear(w, s)\n y = Conv(x, wd)", IO, {"w": kernel(), "s": np.float32(0.03)})
    assert "DequantizeLinear" in [node.op_type for node in ort.optimized_model(model).graph.node]
    free(model)
    assert [
        node.op_type for node in ort.optimized_model(model).graph.node if "Reorder" not in node.op_type
    ] == ["Conv"]


def test_the_file_holds_the_integers():
    weights = {"w": RNG.integers(-9, 9, (64, 4, 3, 3), dtype=np.int8), "s": np.float32(0.03)}
    model = parse("wd = DequantizeLinear(w, s)\n y = Conv(x, wd)", IO, weights)
    data = CpuBackend().lower(model, load_target("cpu"), "ort", Context()).files["model.onnx"]
    assert len(data) < 64 * 4 * 9 + 500


FUSED = """
    xq = QuantizeLinear(x, a, z)
    xd = DequantizeLinear(xq, a, z)
    wd = DequantizeLinear(w, s)
    c = Conv(xd, wd)
    cq = QuantizeLinear(c, a, z)
    y = DequantizeLinear(cq, a, z)
"""
FIXED = "(float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y)"


def test_weights_that_fuse_are_left_alone():
    weights = {"w": kernel(), "s": np.float32(0.03), "a": np.float32(0.05), "z": np.uint8(128)}
    model = parse(FUSED, FIXED, weights)
    assert free(model) == 0
    assert "QLinearConv" in [node.op_type for node in ort.optimized_model(model).graph.node]


def test_weights_that_two_layers_share_are_left_alone():
    body = "wd = DequantizeLinear(w, s)\n c = Conv(x, wd)\n d = Conv(x, wd)\n y = Add(c, d)"
    model = parse(body, IO, {"w": kernel(), "s": np.float32(0.03)})
    assert free(model) == 0


def test_weights_in_blocks_are_left_alone():
    weights = {"w": RNG.integers(-8, 8, (64, 8)).astype(np.int8), "s": np.ones((2, 8), np.float32)}
    body = "wd = DequantizeLinear<axis = 0, block_size = 32>(w, s)\n y = MatMul(x, wd)"
    assert free(parse(body, "(float[2, 64] x) => (float[2, 8] y)", weights)) == 0


def test_what_is_computed_is_left_alone():
    body = "xq = QuantizeLinear(x, a, z)\n y = DequantizeLinear(xq, a, z)"
    assert free(parse(body, IO, {"a": np.float32(0.05), "z": np.uint8(128)})) == 0


def test_weights_of_a_body_are_freed_too():
    model = parse(
        "y = If(c)<then_branch = t () => (float[2, 4, 4, 4] p)"
        " { wd = DequantizeLinear(w, s)\n p = Conv(x, wd) },"
        " else_branch = e () => (float[2, 4, 4, 4] q) { q = Conv(x, f) }>",
        "(float[2, 4, 6, 6] x, bool c) => (float[2, 4, 4, 4] y)",
        {"w": kernel(), "s": np.float32(0.03), "f": kernel().astype(np.float32)},
    )
    feeds = {"x": X, "c": np.array(True)}
    before = ort.run_session(ort.make_session(model, optimize="none"), feeds)["y"]
    assert free(model) == 1
    assert np.array_equal(ort.run_session(ort.make_session(model, optimize="none"), feeds)["y"], before)


@pytest.mark.parametrize(("rows", "freed"), [(64, 1), (4096, 0)])
def test_small_weights_of_dense_layers_are_freed_and_large_ones_stay_packed(rows, freed):
    weights = {
        "w": RNG.integers(-127, 128, (rows, 128)).astype(np.int8),
        "s": RNG.uniform(0.001, 0.1, 128).astype(np.float32),
        "z": np.zeros(128, np.int8),
    }
    body = "wd = DequantizeLinear<axis = 1>(w, s, z)\n y = Gemm(x, wd)"
    model = parse(body, f"(float[1, {rows}] x) => (float[1, 128] y)", weights)
    assert "MatMulNBits" in [node.op_type for node in ort.optimized_model(model).graph.node]
    assert free(model) == freed
