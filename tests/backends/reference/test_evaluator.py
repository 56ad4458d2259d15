"""The evaluator: any value by name, batches, bodies, rounding once per operator, memory, refusals."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from pared.backends.reference import Evaluator, evaluate
from pared.compiler.errors import DataError, ModelError, UnsupportedOp


def model(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


TWO_LAYERS = model(
    """g (float[2,3] x) => (float[2,4] y)
    <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {-1,0,1,-30}>
    { h = MatMul(x, w) [add] s = Add(h, b) y = Relu(s) }"""
)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_any_value_can_be_asked_for_by_name() -> None:
    found = evaluate(TWO_LAYERS, {"x": X}, ["y", "h", "b", "x"])
    w = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(found["h"], X @ w)
    np.testing.assert_array_equal(found["b"], np.float32([-1, 0, 1, -30]))
    np.testing.assert_array_equal(found["y"], np.maximum(found["h"] + found["b"], 0))
    assert list(found) == ["y", "h", "b", "x"]


def test_an_unknown_value_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match="valid: ") as caught:
        Evaluator(TWO_LAYERS, ["hh"])
    assert caught.value.reason == "unknown-value"


def test_the_model_is_not_edited() -> None:
    before = ir.to_proto(TWO_LAYERS).SerializeToString()
    evaluate(TWO_LAYERS, {"x": X})
    assert ir.to_proto(TWO_LAYERS).SerializeToString() == before


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(DataError):
        evaluate(TWO_LAYERS, {"z": X})
    with pytest.raises(DataError):
        evaluate(TWO_LAYERS, {"x": X.T})


def test_a_multiple_of_a_fixed_batch_is_run_piece_by_piece() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    whole = evaluate(TWO_LAYERS, {"x": x})["y"]
    pieces = [evaluate(TWO_LAYERS, {"x": x[i : i + 2]})["y"] for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_a_batch_equals_its_samples_one_by_one() -> None:
    m = model(
        """g (float[N,3,8,8] x, float[4,3,3,3] w) => (float[N,4,1,1] y)
        { c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) y = GlobalAveragePool(r) }"""
    )
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    x = rng.normal(size=(5, 3, 8, 8)).astype(np.float32)
    alone = [evaluate(m, {"x": x[i : i + 1], "w": w})["y"] for i in range(5)]
    np.testing.assert_array_equal(evaluate(m, {"x": x, "w": w})["y"], np.concatenate(alone))


def test_a_dot_product_is_rounded_once() -> None:
    m = model("g (float[1,64] a, float[64,1] b) => (float[1,1] y) { y = MatMul(a, b) }")
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.normal(size=(2, 64)).astype(np.float32)
        exact = sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a, b, strict=True)), Fraction(0))
        got = evaluate(m, {"a": a[None], "b": b[:, None]})["y"].item()
        neighbours = [np.nextafter(np.float32(got), np.float32(s)) for s in (-np.inf, np.inf)]
        # correctly rounded but for sums within 2^-29 of the middle of two floats
        assert all(abs(exact - Fraction(got)) <= abs(exact - Fraction(float(n))) for n in neighbours)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float16", np.float16), ("double", np.float64), ("int32", np.int32)]
)
def test_other_number_types_keep_their_type(kind: str, dtype: type) -> None:
    m = model(f"g ({kind}[2,3] a, {kind}[3,2] b) => ({kind}[2,2] y) {{ y = MatMul(a, b) }}")
    a = np.arange(6).reshape(2, 3).astype(dtype)
    got = evaluate(m, {"a": a, "b": a.T.copy()})["y"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, a @ a.T)


def test_a_half_precision_sum_is_rounded_once() -> None:
    m = model("g (float16[4096] x) => (float16 y) { y = ReduceSum<keepdims=0>(x) }")
    assert evaluate(m, {"x": np.ones(4096, np.float16)})["y"] == 4096


def test_values_are_freed_after_their_last_use() -> None:
    steps = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(40))
    m = model(f"g (float[N] v0) => (float[N] v40) {{ {steps} }}")
    evaluator, x = Evaluator(m), np.ones(1 << 18, np.float32)
    tracemalloc.start()
    evaluator.run({"v0": x})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * x.nbytes


def test_a_value_that_a_body_captures_is_kept_until_then() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y) {
          a = Neg(x) b = Abs(a)
          y = If (c) <then_branch = t () => (float[2] p) { p = Add(a, b) },
                      else_branch = e () => (float[2] q) { q = Sub(a, b) }>
        }"""
    )
    x = np.float32([1, -2])
    np.testing.assert_array_equal(evaluate(m, {"c": np.array(True), "x": x})["y"], -x + np.abs(x))
    np.testing.assert_array_equal(evaluate(m, {"c": np.array(False), "x": x})["y"], -x - np.abs(x))


SCAN = """g (float[2] s, float[3,2] x) => (float[2] last, %s sums) {
  last, sums = Scan <num_scan_inputs = 1%s, body = b (float[2] a, float[2] i) => (float[2] o, float[2] k) {
    o = Add(a, i) k = Identity(o) }> (s, x) }"""


def test_scan_carries_state_and_stacks() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = evaluate(model(SCAN % ("float[3,2]", "")), {"s": np.zeros(2, np.float32), "x": x})
    np.testing.assert_array_equal(found["sums"], np.cumsum(x, axis=0))
    np.testing.assert_array_equal(found["last"], x.sum(axis=0))


def test_scan_can_run_backwards_and_stack_along_another_axis() -> None:
    text = SCAN % (
        "float[2,3]",
        ", scan_input_directions = [1], scan_output_axes = [1], scan_output_directions = [1]",
    )
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = evaluate(model(text), {"s": np.zeros(2, np.float32), "x": x})
    np.testing.assert_array_equal(found["sums"], np.cumsum(x[::-1], axis=0)[::-1].T)


LOOP = """g (int64 n, bool c, float[2,2] x) => (float[2,2] last, float[K,2,2] all) {
  last, all = Loop (n, c, x) <
    body = b (int64 i, bool going, float[2,2] v) => (bool go, float[2,2] w, float[2,2] k) {
    go = Identity(going) w = Add(v, x) k = Identity(w) }> }"""


def test_loop_stacks_matrices_along_a_new_axis() -> None:
    x = np.eye(2, dtype=np.float32)
    found = evaluate(model(LOOP), {"n": np.array(3), "c": np.array(True), "x": x})
    np.testing.assert_array_equal(found["all"], np.stack([2 * x, 3 * x, 4 * x]))
    np.testing.assert_array_equal(found["last"], 4 * x)


def test_a_loop_without_a_step_has_no_shape_to_stack() -> None:
    with pytest.raises(UnsupportedOp) as caught:
        evaluate(model(LOOP), {"n": np.array(0), "c": np.array(True), "x": np.eye(2, dtype=np.float32)})
    assert caught.value.reason == "empty-loop"


def test_an_operator_without_kernel_is_refused_by_name() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
        g (float[2] x) => (float[2] y) { [odd] y = acme.Odd(x) }"""
    )
    with pytest.raises(UnsupportedOp, match=r"odd.*acme::Odd"):
        Evaluator(ir.from_proto(proto))


def test_a_node_that_fails_is_a_model_error() -> None:
    m = model("g (float[N] x, float[M] z) => (float[K] y) { y = Add(x, z) }")
    with pytest.raises(ModelError) as caught:
        evaluate(m, {"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})
    assert caught.value.reason == "reference-failed"


@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, -np.inf])
def test_quantizing_huge_values_saturates(value: float) -> None:
    m = model("g (float[1] x) => (int8[1] y) <float s = {0.5}, int8 z = {3}> { y = QuantizeLinear(x, s, z) }")
    want = 127 if value > 0 else -128
    assert evaluate(m, {"x": np.float32([value])})["y"].tolist() == [want]


@pytest.mark.parametrize(
    ("kind", "values"),
    [("int4", [-8, 7, 3, 0]), ("uint4", [15, 0, 3, 1]), ("int2", [-2, 1, 0, 1]), ("uint2", [3, 1, 0, 1])],
)
def test_weights_of_few_bits_are_dequantized(kind: str, values: list[int]) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [
            helper.make_tensor("w", getattr(TensorProto, kind.upper()), [2, 2], values),
            helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]),
        ],
    )
    m = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13))
    want = 0.5 * np.float32(values).reshape(2, 2).sum(axis=0, keepdims=True)
    np.testing.assert_array_equal(evaluate(m, {"x": np.ones((1, 2), np.float32)})["y"], want)


def test_bfloat16_values_are_rounded_once() -> None:
    m = model(
        """g (float[1,300] x) => (float[1,1] y)
        { a = Cast<to=16>(x) b = Transpose(a) c = MatMul(a, b) y = Cast<to=1>(c) }"""
    )
    # 1.01 is 1.0078125 there; 300 squares of it are 304.7, and floats above 256 are 2 apart
    assert evaluate(m, {"x": np.full((1, 300), 1.01, np.float32)})["y"].item() == 304
