"""The derived bound accepts honest engines and rejects faults."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quantized_layers import Layer, model_of

from pared.backends.reference import Bound, derive_bound, evaluate
from pared.backends.reference.bound import Deriver, constant_values
from pared.compiler.differences import largest_difference
from pared.compiler.errors import DataError
from pared.compiler.ort import make_session, run_session

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N,3,12,12] x) => (float[N,10] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1)
  c2 = Conv<group=8, pads=[1,1,1,1], strides=[2,2]>(r1, w2) s2 = Sigmoid(c2)
  c3 = Conv(s2, w3) r3 = Relu(c3) p = GlobalAveragePool(r3) f = Flatten(p)
  h = Gemm<transB=1>(f, w4, b4) y = Softmax(h)
}"""
SHAPES = {
    "w1": (8, 3, 3, 3),
    "b1": (8,),
    "w2": (8, 1, 3, 3),
    "w3": (16, 8, 1, 1),
    "w4": (10, 16),
    "b4": (10,),
}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def network(arrays: dict[str, np.ndarray]) -> ir.Model:
    import onnx
    from onnx import numpy_helper

    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def sample(seed: int, count: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(100 + seed).normal(size=(count, 3, 12, 12)).astype(np.float32)}


MODEL = network(weights())
BOUND = derive_bound(MODEL, [sample(0), sample(1)], seed=0)["y"]


@pytest.mark.parametrize("optimize", ["none", "all"])
def test_it_accepts_onnxruntime_on_samples_it_has_not_seen(optimize) -> None:
    session = make_session(MODEL, optimize=optimize)
    for seed in range(2, 30):
        x = sample(seed)
        assert BOUND.accepts(run_session(session, x)["y"], evaluate(MODEL, x)["y"])


def test_it_is_far_below_the_largest_value() -> None:
    want = evaluate(MODEL, sample(0))["y"]
    assert BOUND.limit(want) < 1e-4 * np.abs(want).max()


def dropped_channel(arrays: dict[str, np.ndarray]) -> None:
    arrays["w2"][3] = 0


def scale_off_by_a_percent(arrays: dict[str, np.ndarray]) -> None:
    arrays["w3"] *= np.float32(1.01)


def one_sign_flipped(arrays: dict[str, np.ndarray]) -> None:
    arrays["w1"][2, 1, 1, 1] *= -1


def bias_forgotten(arrays: dict[str, np.ndarray]) -> None:
    arrays["b4"][:] = 0


def kernel_transposed(arrays: dict[str, np.ndarray]) -> None:
    arrays["w1"] = arrays["w1"].swapaxes(2, 3).copy()


@pytest.mark.parametrize(
    "fault", [dropped_channel, scale_off_by_a_percent, one_sign_flipped, bias_forgotten, kernel_transposed]
)
def test_it_rejects_a_fault(fault) -> None:
    arrays = weights()
    fault(arrays)
    x = sample(5)
    assert not BOUND.accepts(evaluate(network(arrays), x)["y"], evaluate(MODEL, x)["y"])


def test_the_same_seed_gives_the_same_bound_and_another_seed_a_similar_one() -> None:
    samples = [sample(0), sample(1)]
    assert derive_bound(MODEL, samples, seed=0)["y"] == BOUND
    other = derive_bound(MODEL, samples, seed=1)["y"]
    assert 0.3 < other.atol / BOUND.atol < 3


def test_it_says_how_it_was_found() -> None:
    assert "Monte Carlo" in BOUND.how
    assert "2 samples" in BOUND.how


def test_without_samples_there_is_no_bound() -> None:
    with pytest.raises(DataError, match="sample"):
        derive_bound(MODEL, [], seed=0)


def int8_network() -> tuple[ir.Model, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(0, 256, (4, 8, 9, 9)).astype(np.uint8),
        rng.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8),
    )
    layer = Layer(
        "Conv", x, w, x_scale=0.0173, y_scale=2.3, w_scale=np.float32(0.0379), x_zero=128, y_zero=128
    )
    return model_of(layer), {"x": x}


def test_a_quantized_layer_is_exact() -> None:
    model, x = int8_network()
    bound = derive_bound(model, [x], seed=0)["y"]
    want = evaluate(model, x)["y"]
    assert bound.accepts(run_session(make_session(model, optimize="none"), x)["y"], want)
    assert bound.limit(want) == 0
    assert not bound.accepts(want.astype(int) - 1, want)


def text(body: str) -> ir.Model:
    import onnx

    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{body}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_clear_indices_must_be_exactly_equal() -> None:
    m = text("g (float[1,4] x) => (int64[1] y) { e = Exp(x) y = ArgMax<axis=1, keepdims=0>(e) }")
    bound = derive_bound(m, [{"x": np.float32([[1, 2, 3, 0]])}], seed=0)["y"]
    assert (bound.atol, bound.rtol_of_max) == (0, 0)
    assert not bound.accepts(np.array([1]), np.array([2]))


def test_indices_at_a_near_tie_may_be_either_and_nothing_else() -> None:
    m = text("g (float[1,4] x) => (int64[1] y) { e = Exp(x) y = ArgMax<axis=1, keepdims=0>(e) }")
    near = np.float32([[1, 3, np.nextafter(np.float32(3), np.float32(4)), 0]])
    assert derive_bound(m, [{"x": near}], seed=0)["y"].atol == 0
    judge = Deriver(m, 0).again({"x": near})
    assert judge.judge("y", np.array([1]), np.array([2]))[0] == 0
    assert judge.judge("y", np.array([0]), np.array([2]))[0] == np.inf
    assert judge.judge("y", np.array([3]), np.array([2]))[0] == np.inf


def test_a_class_cast_to_float_is_still_a_choice() -> None:
    m = text(
        "g (float[1,4] x) => (float[1] y) { e = Exp(x) k = ArgMax<axis=1, keepdims=0>(e) y = Cast<to=1>(k) }"
    )
    near = np.float32([[3, 0, 0, np.nextafter(np.float32(3), np.float32(4))]])
    assert derive_bound(m, [{"x": near}], seed=0)["y"].limit(np.float32([3])) == 0
    judge = Deriver(m, 0).again({"x": near})
    assert judge.judge("y", np.float32([0]), np.float32([3]))[0] == 0
    assert judge.judge("y", np.float32([1]), np.float32([3]))[0] == np.inf


SUM_THEN_ROUNDED = """g (float[1,4] x, float[1,4] z) => (float[1,4] y)
    <float s = {0.5}, uint8 o = {0}>
    { a = Add(x, z) q = QuantizeLinear(a, s, o) y = DequantizeLinear(q, s, o) }"""


def test_a_tie_behind_float_is_not_in_the_stated_bound_but_in_that_of_its_sample() -> None:
    m = text(SUM_THEN_ROUNDED)
    tie = {"x": np.float32([[1.2, 3, 5, 7]]), "z": np.float32([[0.05, 0.1, 0.1, 0.1]])}
    want = evaluate(m, tie)["y"]
    assert derive_bound(m, [tie], seed=0)["y"].limit(want) < 1e-4
    step = np.float32([[0.5 if want[0, 0] == 1 else -0.5, 0, 0, 0]])
    assert Deriver(m, 0).again(tie).judge("y", want + step, want)[0] <= 1


def test_a_step_that_no_tie_explains_is_refused_by_both() -> None:
    m = text(SUM_THEN_ROUNDED)
    clear = {"x": np.float32([[1, 3, 5, 7]]), "z": np.float32([[0.1, 0.1, 0.1, 0.1]])}
    want = evaluate(m, clear)["y"]
    off = want + np.float32([[0, 0.5, 0, 0]])
    assert not derive_bound(m, [clear], seed=0)["y"].accepts(off, want)
    assert Deriver(m, 0).again(clear).judge("y", off, want)[0] > 1


def test_arithmetic_on_whole_numbers_has_no_rounding_to_allow() -> None:
    m = text("g (float[4,16] x, float[16,3] w) => (float[4,3] y) { y = MatMul(x, w) }")
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.integers(-9, 9, shape).astype(np.float32)
        for name, shape in (("x", (4, 16)), ("w", (16, 3)))
    }
    assert derive_bound(m, [feeds], seed=0)["y"].atol == 0


def test_a_cast_has_one_result_however_its_type_is_named() -> None:
    def bound(cast: str) -> Bound:
        text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[8] x) => (float16[8] y) <float16[1] like = {{1}}> {{ y = {cast} }}"""
        return derive_bound(
            ir.from_onnx_text(text), [{"x": np.linspace(-3, 3, 8, dtype=np.float32)}], seed=0
        )["y"]

    assert bound("CastLike(x, like)") == bound("Cast<to = 10>(x)")


def test_cancellation_widens_the_bound() -> None:
    m = text("g (float[1,64] x, float[64,1] w) => (float[1,1] y) { y = MatMul(x, w) }")
    x, w = np.full((1, 64), 1.1, np.float32), np.where(np.arange(64) % 2, 1, -1)[:, None].astype(np.float32)
    bound = derive_bound(m, [{"x": x, "w": w}], seed=0)["y"]
    assert bound.atol > 64 * 1.1 * 2.0**-24


def test_values_computed_from_constants_are_known() -> None:
    m = text("g (float[2] x) => (float[2] y) <float a = {2.0}> { b = Exp(a) c = Mul(x, b) y = Add(c, b) }")
    assert constant_values(m) == {"a", "b"}


@pytest.mark.parametrize(
    ("got", "want", "gap"),
    [
        ([1, np.nan], [1, np.nan], 0),
        ([np.inf], [np.inf], 0),
        ([np.inf], [1], np.inf),
        ([np.nan], [1], np.inf),
        ([3], [1], 2),
    ],
)
def test_differences_with_infinities_and_nan(got: list[float], want: list[float], gap: float) -> None:
    assert largest_difference(np.float32(got), np.float32(want)) == gap


def test_another_shape_is_never_accepted() -> None:
    assert not Bound(1, 1, "").accepts(np.zeros(2), np.zeros((2, 1)))
