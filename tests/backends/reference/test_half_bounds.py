"""Bounds of half results: as wide as their rounding, too narrow for sums made in half floats."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.reference import derive_bound, evaluate
from pared.backends.reference.bound import Bound
from pared.backends.reference.noise import unit_roundoff
from pared.compiler.ir.importer import import_model

Array = npt.NDArray[np.generic]
HALVES: dict[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def product(k: int, n: int, kind: str, w: Array) -> ir.Model:
    """x @ w in half floats between float32 borders."""
    short = int(ir.DataType[kind.upper()])
    text = f"""<ir_version: 10, opset_import: ["" : 22]>
        g (float[m,{k}] x, {kind}[{k},{n}] w) => (float[m,{n}] y) {{
            s = Cast<to: int = {short}>(x) p = MatMul(s, w) y = Cast<to: int = 1>(p) }}"""
    model = ir.from_onnx_text(text)
    value = model.graph.inputs.pop(1)
    value.const_value = ir.tensor(w.astype(HALVES[kind]), name="w")
    model.graph.register_initializer(value)
    return import_model(ir.to_proto(model)).model


def judged(model: ir.Model, x: Array) -> tuple[Array, Bound]:
    inputs = {"x": x.astype(np.float32)}
    return evaluate(model, inputs)["y"], derive_bound(model, [inputs], seed=0)["y"]


@pytest.mark.parametrize("kind", HALVES)
def test_the_unit_is_half_the_spacing_at_one(kind: str) -> None:
    one = np.ones(1, HALVES[kind])
    following = (one.view(np.uint16) + 1).astype(np.uint16).view(HALVES[kind])
    assert unit_roundoff(one) == float(following[0].astype(np.float64) - 1) / 2


@pytest.mark.parametrize("kind", HALVES)
@given(k=st.integers(1, 300), n=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_sums_in_float32_rounded_once_are_within_the_bound(kind: str, k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(k, n)).astype(np.float32)
    model, x = product(k, n, kind, w), rng.normal(size=(3, k)).astype(HALVES[kind])
    # In another order than the reference's: backwards.
    total = x[:, ::-1].astype(np.float32) @ w.astype(HALVES[kind])[::-1].astype(np.float32)
    want, bound = judged(model, x)
    assert bound.accepts(total.astype(HALVES[kind]).astype(np.float32), want)


@pytest.mark.parametrize("kind", HALVES)
def test_sums_in_half_floats_are_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    w = np.abs(rng.normal(size=(4096, 4))).astype(np.float32)
    model, x = product(4096, 4, kind, w), np.abs(rng.normal(size=(2, 4096))).astype(HALVES[kind])
    total = np.zeros((2, 4), HALVES[kind])
    for row, column in zip(x.T, w.astype(HALVES[kind]), strict=True):
        products = row[:, None].astype(np.float32) * column.astype(np.float32)
        total = (total.astype(np.float32) + products).astype(HALVES[kind])
    want, bound = judged(model, x)
    assert not bound.accepts(total.astype(np.float32), want)
    assert bound.accepts(want, want)


def test_the_bound_is_a_few_units_of_the_result() -> None:
    rng = np.random.default_rng(1)
    model = product(64, 4, "float16", rng.normal(size=(64, 4)).astype(np.float32))
    want, bound = judged(model, rng.normal(size=(8, 64)).astype(np.float16))
    top = float(np.abs(want.astype(np.float64)).max())
    assert 2.0**-11 * top < bound.limit(want) < 16 * 2.0**-10 * top


def test_results_near_the_largest_number_keep_a_finite_bound() -> None:
    model = product(1, 1, "float16", np.full((1, 1), 65504, np.float32))
    want, bound = judged(model, np.ones((4, 1), np.float16))
    assert np.isfinite(bound.limit(want))


def test_an_overflow_is_infinite_and_must_be_met() -> None:
    model = product(1, 1, "float16", np.full((1, 1), 600, np.float32))
    want, bound = judged(model, np.full((1, 1), 600, np.float16))
    assert np.isposinf(want).all()
    assert bound.accepts(want, want)
    assert not bound.accepts(np.full((1, 1), 65504, np.float32), want)


def test_weights_scaled_behind_the_sums_are_within_the_bound() -> None:
    """An engine need not round dequantized weights to half floats."""
    rng = np.random.default_rng(2)
    q, s = rng.integers(-8, 8, (64, 8)).astype(np.int8), np.float16(0.0377)
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float16[4,64] x, int8[64,8] q, float16 s) => (float16[4,8] y) {
            w = DequantizeLinear(q, s) y = MatMul(x, w) }"""
    model = ir.from_onnx_text(text)
    for name, array in (("s", s), ("q", q)):
        value = model.graph.inputs.pop()
        while value.name != name:
            model.graph.inputs.insert(0, value)
            value = model.graph.inputs.pop()
        value.const_value = ir.tensor(np.asarray(array), name=name)
        model.graph.register_initializer(value)
    model = import_model(ir.to_proto(model)).model
    x = rng.normal(size=(4, 64)).astype(np.float16)
    scaled = ((x.astype(np.float32) @ q.astype(np.float32)) * np.float32(s)).astype(np.float16)
    want, bound = evaluate(model, {"x": x})["y"], derive_bound(model, [{"x": x}], seed=0)["y"]
    assert bound.accepts(scaled, want)
    assert not bound.accepts((scaled.astype(np.float32) * 1.02).astype(np.float16), want)
