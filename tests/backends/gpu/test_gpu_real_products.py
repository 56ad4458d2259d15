"""Products of quantized values with real results: integer sums, and floats only behind them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import emulated, model_of

from pared.backends.gpu.emit.real_products import use_real_products
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.reference import derive_bound, evaluate

_DEPTH, _COLUMNS = 40, 24
_MATMUL = """
    xr = DequantizeLinear(x, sx, zx)
    wr = DequantizeLinear<axis = 1>(w, sw)
    c = MatMul(xr, wr)
"""
_QUANTIZED = f"{_MATMUL} s = Add(c, b)\n r = Relu(s)\n y = QuantizeLinear(r, sy, zy)"


def _model(body: str, output: str, kind: str = "uint8", **constants: npt.ArrayLike) -> ir.Model:
    """Scales are powers of two, so that dequantized values and their products are exact."""
    rng = np.random.default_rng(0)
    given: dict[str, npt.ArrayLike] = {
        "w": rng.integers(-127, 128, (_DEPTH, _COLUMNS)).astype(np.int8),
        "sw": np.exp2(-rng.integers(4, 9, _COLUMNS)).astype(np.float32), "sx": np.float32(2**-6),
        "zx": np.array(100, kind), "b": rng.normal(size=_COLUMNS).astype(np.float32), "sy": np.float32(0.3),
        "zy": np.int8(-100),
    } | constants  # fmt: skip
    used = {name: array for name, array in given.items() if name in body}
    return model_of(body, f"{kind}[5,{_DEPTH}] x", output, **used)


def _functions(model: ir.Model) -> list[str]:
    return [step.function for step in calls_of(relax_module(model)).steps]


def _inputs(kind: str = "uint8") -> dict[str, npt.NDArray[np.generic]]:
    limits = np.iinfo(kind)
    rng = np.random.default_rng(1)
    return {"x": rng.integers(limits.min, limits.max + 1, (5, _DEPTH)).astype(kind)}


def _assert_exact(model: ir.Model, kind: str = "uint8") -> None:
    x = _inputs(kind)
    np.testing.assert_array_equal(emulated(model).run(x)["y"], evaluate(model, x)["y"])


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_product_with_a_float_bias_and_a_quantizer_is_exact(kind: str) -> None:
    _assert_exact(_model(_QUANTIZED, f"int8[5,{_COLUMNS}] y", kind), kind)


def test_its_sums_are_integers_and_all_is_one_kernel() -> None:
    model = _model(_QUANTIZED, f"int8[5,{_COLUMNS}] y", "int8")
    assert _functions(model) == ["fused_product_real_add_relu_quantize"]


def test_a_product_whose_result_is_an_output_is_exact() -> None:
    _assert_exact(_model(_MATMUL.replace("c =", "y ="), f"float[5,{_COLUMNS}] y"))


def test_a_gemm_with_turned_weights_and_a_bias_is_exact() -> None:
    """The bias is a multiple of the steps, so that every order of adding gives the same."""
    body = """
        xr = DequantizeLinear(x, sx, zx)
        wr = DequantizeLinear<axis = 0>(w, sw)
        y = Gemm<transB = 1>(xr, wr, b)
    """
    rng = np.random.default_rng(2)
    turned = rng.integers(-127, 128, (_COLUMNS, _DEPTH)).astype(np.int8)
    bias = (rng.integers(-99, 99, _COLUMNS) / 64).astype(np.float32)
    model = _model(body, f"float[5,{_COLUMNS}] y", w=turned, b=bias)
    _assert_exact(model)
    assert "real" in " ".join(_functions(model))


def test_with_any_scales_the_result_is_in_the_bound() -> None:
    scales = np.random.default_rng(3).uniform(0.001, 0.02, _COLUMNS).astype(np.float32)
    body = f"{_MATMUL} y = Add(c, b)"
    model = _model(body, f"float[5,{_COLUMNS}] y", sw=scales, sx=np.float32(0.0173))
    x = _inputs()
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    got = emulated(model).run(x)["y"]
    assert np.abs(got - want).max() <= bound.atol + bound.rtol_of_max * np.abs(want).max()


def test_scales_along_the_depth_are_none_of_a_column() -> None:
    """As many rows as columns: only the axis tells which they belong to."""
    body = _MATMUL.replace("axis = 1", "axis = 0").replace("c =", "y =")
    rng = np.random.default_rng(4)
    w = rng.integers(-127, 128, (_DEPTH, _DEPTH)).astype(np.int8)
    scales = np.exp2(-rng.integers(4, 9, _DEPTH)).astype(np.float32)
    model = _model(body, f"float[5,{_DEPTH}] y", w=w, sw=scales)
    assert "real" not in " ".join(_functions(model))


def test_weights_with_zero_points_keep_their_float_product() -> None:
    zeros = np.full(_COLUMNS, 3, np.int8)
    body = _MATMUL.replace("(w, sw)", "(w, sw, zw)").replace("c =", "y =")
    model = _model(body, f"float[5,{_COLUMNS}] y", zw=zeros)
    assert "real" not in " ".join(_functions(model))


def test_floats_by_int8_weights_keep_their_float_product() -> None:
    model = _model(
        "wr = DequantizeLinear<axis = 1>(w, sw)\n f = Cast<to = 1>(x)\n y = MatMul(f, wr)",
        f"float[5,{_COLUMNS}] y",
    )
    assert "real" not in " ".join(_functions(model))


@pytest.mark.parametrize(("depth", "replaced"), [(65_793, 1), (65_794, 0)])
def test_sums_that_could_leave_int32_keep_their_float_product(depth: int, replaced: int) -> None:
    """65,793 products of 255 and -128 are the most that int32 holds."""
    model = model_of(
        _MATMUL.replace("axis = 1", "axis = 0").replace("c =", "y ="), f"uint8[1,{depth}] x", "float[1,1] y",
        w=np.zeros((depth, 1), np.int8), sw=np.float32(0.01), sx=np.float32(0.01), zx=np.uint8(0),
    )  # fmt: skip
    assert use_real_products(model) == replaced
