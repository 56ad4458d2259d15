"""Elementwise chains and softmax in float32 against float64, within derived bounds."""

from __future__ import annotations

from collections.abc import Callable

import f32_arrays as f
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.isa import host_isa, isa_of
from pared.backends.cpu.native.kernels import elementwise_f32, softmax_f32
from pared.backends.cpu.native.kernels.elementwise_f32 import ElementwiseF32Spec, Op
from pared.backends.cpu.native.kernels.softmax_f32 import SoftmaxF32Spec
from pared.targets import load_target

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")

U = f.UNIT


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf)(x)


# Name: the function in float64, and the accepted error as a function of x: relative roundings of the formula
# (exp: 2 ulp, and u |x| from the rounding of the reduced argument), absolute errors of the polynomials.
CASES: dict[str, tuple[Op, Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "exp": (Op("exp", (0,)), np.exp, lambda x: 6 * U * np.exp(x)),
    "sigmoid": (Op("sigmoid", (0,)), _sigmoid, lambda x: 8 * U * _sigmoid(x)),
    "tanh": (Op("tanh", (0,)), np.tanh, lambda x: 8 * U * abs(np.tanh(x))),
    "silu": (Op("silu", (0,)), lambda x: x * _sigmoid(x), lambda x: 10 * U * abs(x) * _sigmoid(x)),
    "gelu": (
        Op("gelu", (0,)), lambda x: x / 2 * (1 + _erf(x / 2**0.5)), lambda x: abs(x) / 2 * (1.5e-7 + 12 * U)
    ),
    "gelu-tanh": (
        Op("gelu-tanh", (0,)), lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        lambda x: abs(x) * 16 * U,
    ),
    "hard-swish": (
        Op("hard-swish", (0,)), lambda x: x * np.clip(x / 6 + 0.5, 0, 1), lambda x: 8 * U * abs(x)
    ),
    "hard-sigmoid": (
        Op("hard-sigmoid", (0,), 0.2, 0.5), lambda x: np.clip(0.2 * x + 0.5, 0, 1), lambda x: 4 * U + 0 * x
    ),
    "elu": (
        Op("elu", (0,), 1.5), lambda x: np.where(x < 0, 1.5 * np.expm1(x), x), lambda x: 12 * U + 0 * x
    ),
    "softplus": (
        Op("softplus", (0,)), lambda x: np.logaddexp(0, x), lambda x: 8 * U * (1 + np.maximum(x, 0))
    ),
    "leaky-relu": (
        Op("leaky-relu", (0,), 0.1), lambda x: np.where(x < 0, 0.1 * x, x), lambda x: 3 * U * abs(x)
    ),
    "sqrt": (Op("sqrt", (0,)), np.sqrt, lambda x: 2 * U * np.sqrt(x)),
    "reciprocal": (Op("reciprocal", (0,)), lambda x: 1 / x, lambda x: 2 * U / abs(x)),
    "clip": (Op("clip", (0,), -1.0, 2.0), lambda x: np.clip(x, -1, 2), lambda x: 0 * x),
    "relu": (Op("relu", (0,)), lambda x: np.maximum(x, 0), lambda x: 0 * x),
    "abs": (Op("abs", (0,)), abs, lambda x: 0 * x),
    "floor": (Op("floor", (0,)), np.floor, lambda x: 0 * x),
    "ceil": (Op("ceil", (0,)), np.ceil, lambda x: 0 * x),
    "neg": (Op("neg", (0,)), lambda x: -x, lambda x: 0 * x),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_within_its_error(name: str) -> None:
    op, wanted, error = CASES[name]
    x = (
        np.concatenate([np.linspace(-20, 20, 4001), np.linspace(-0.6, 0.6, 799)])
        .astype(np.float32)
        .reshape(300, 16)
    )
    x = abs(x) + np.float32(1e-3) if name in ("sqrt", "reciprocal") else x
    spec = ElementwiseF32Spec(300, 16, ("full",), (op,))
    got = f.run(elementwise_f32, spec, [x], spec.out_shape).astype(np.float64)
    exact = x.astype(np.float64)
    gap = abs(got - wanted(exact))
    worst = np.argmax(gap - error(exact))
    assert np.all(gap <= error(exact) + 1e-37), (x.flat[worst], gap.flat[worst], error(exact).flat[worst])


@pytest.mark.parametrize("name", ["exp", "tanh"])
def test_a_cpu_without_avx512_scales_in_two_factors(name: str) -> None:
    spec = ElementwiseF32Spec(20, 16, ("full",), (Op(name, (0,)),))
    x = np.linspace(-100, 88, 320, dtype=np.float32).reshape(20, 16)
    isa = isa_of(load_target("cpu-x86-avx2"))
    got, wide = (f.run(elementwise_f32, spec, [x], spec.out_shape, isa=one) for one in (isa, None))
    assert np.array_equal(got, wide)


def test_exp_reaches_denormals_zero_and_infinity() -> None:
    x = np.array([[-1000, -104.5, -100, -88, 0, 88.7, 88.8, 1000] * 2], np.float32)
    spec = ElementwiseF32Spec(1, 16, ("full",), (Op("exp", (0,)),))
    got = f.run(elementwise_f32, spec, [x], spec.out_shape)[0, :8].astype(np.float64)
    with np.errstate(over="ignore"):
        want = np.exp(x[0, :8]).astype(np.float64)
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
    np.testing.assert_array_equal(got == 0, want == 0)
    rest = np.isfinite(want)
    assert np.all(abs(got[rest] - want[rest]) <= 6 * U * want[rest] + 2.0**-149)


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("kind", ["full", "channel", "image"])
def test_a_binary_operation_is_one_rounding(name: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 37)).astype(np.float32)
    y = rng.standard_normal({"full": (12, 37), "channel": (1, 37), "image": (3, 37)}[kind]).astype(np.float32)
    spec = ElementwiseF32Spec(12, 37, ("full", kind), (Op(name, (0, 1)),), 3)
    other = f.matrix(y)[0] if kind == "channel" else f.matrix(y)
    got = f.run(elementwise_f32, spec, [f.matrix(x), other], spec.out_shape)[:, :37]
    wide = np.repeat(y, 4, 0) if kind == "image" else y
    np.testing.assert_array_equal(got, BINARY[name](x, wide))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 300), st.integers(1, 70))
def test_a_chain_of_any_size_runs_in_one_pass(rows: int, channels: int) -> None:
    rng = np.random.default_rng(rows)
    x, slope = (
        rng.standard_normal((rows, channels)).astype(np.float32),
        rng.random((1, channels)).astype(np.float32),
    )
    ops = (Op("const", (), 2.0), Op("mul", (0, 2)), Op("prelu", (3, 1)), Op("sub", (4, 0)))
    spec = ElementwiseF32Spec(rows, channels, ("full", "channel"), ops)
    got = f.run(elementwise_f32, spec, [f.matrix(x), f.matrix(slope)[0]], spec.out_shape)[:, :channels]
    twice = 2 * x.astype(np.float64)
    want = np.where(twice < 0, twice * slope, twice) - x
    assert np.all(abs(got - want) <= f.dot_bound(2, abs(twice) + abs(x)))


def test_a_chain_that_reads_a_later_value_is_refused() -> None:
    verdict = elementwise_f32.supports(ElementwiseF32Spec(1, 1, ("full",), (Op("add", (0, 1)),)), host_isa())
    assert not verdict.ok
    assert "earlier values" in verdict.reason


def test_an_unknown_operation_is_refused_by_name() -> None:
    verdict = elementwise_f32.supports(ElementwiseF32Spec(1, 1, ("full",), (Op("cosh", (0,)),)), host_isa())
    assert "'cosh'" in verdict.reason


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.booleans(), st.sampled_from([0.1, 1.0, 30.0]))
def test_softmax_is_within_the_bound(rows: int, channels: int, log: bool, spread: float) -> None:
    rng = np.random.default_rng(channels)
    x = (rng.standard_normal((rows, channels)) * spread).astype(np.float32)
    spec = SoftmaxF32Spec(rows, channels, log)
    got = f.run(softmax_f32, spec, [f.matrix(x, 1e9)], spec.out_shape)[:, :channels]
    low = x.astype(np.float64) - x.max(1, keepdims=True)
    total = np.exp(low).sum(1, keepdims=True)
    # x - max is rounded once (u |x - max|), exp 6 u, the sum C u, the quotient 3 u.
    relative = (abs(low) + channels + 12) * U
    want = low - np.log(total) if log else np.exp(low) / total
    bound = (
        (relative + abs(want) * 2 * U + relative.max())
        if log
        else want * relative + relative.max() * want + 1e-37
    )
    assert np.all(abs(got - want) <= bound), float((abs(got - want) / bound).max())


def test_softmax_sums_to_one() -> None:
    x = np.random.default_rng(0).standard_normal((5, 1001)).astype(np.float32)
    spec = SoftmaxF32Spec(5, 1001)
    got = f.run(softmax_f32, spec, [f.matrix(x)], spec.out_shape)[:, :1001]
    np.testing.assert_allclose(got.astype(np.float64).sum(1), 1, rtol=0, atol=1001 * U)
