"""uint8 values between quantized operators are kept as int8; every result stays what it was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import emulated, model_of

from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.reference import evaluate

_LAYER = """
    xr = DequantizeLinear(x, sx, zx)
    wr = DequantizeLinear(w, sw)
    c = MatMul(xr, wr)
    a = QuantizeLinear(c, s1, z1)
"""
_SECOND = """
    ar = DequantizeLinear(a, s1, z1)
    d = MatMul(ar, wr)
    b = QuantizeLinear(d, s2, z2)
    br = DequantizeLinear(b, s2, z2)
"""


def _model(body: str, outputs: str) -> ir.Model:
    scales = {"sx": 0.02, "sw": 0.01, "s1": 0.041, "s2": 0.027, "s3": 0.05}
    zeros = {"zx": 120, "z1": 131, "z2": 0, "z3": 255}
    given: dict[str, npt.ArrayLike] = {name: np.float32(scale) for name, scale in scales.items()}
    given |= {name: np.uint8(zero) for name, zero in zeros.items()}
    given["w"] = np.random.default_rng(0).integers(-127, 128, (16, 16)).astype(np.int8)
    used = {name: array for name, array in given.items() if name in body}
    return model_of(body, "uint8[16,16] x", outputs, **used)


def _assert_exact(model: ir.Model) -> None:
    x = {"x": np.random.default_rng(1).integers(0, 256, (16, 16)).astype(np.uint8)}
    got, want = emulated(model).run(x), evaluate(model, x)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def _between(model: ir.Model) -> list[str]:
    """Return the types of what kernels write for other kernels."""
    calls = calls_of(relax_module(model))
    made = [name for step in calls.steps for name in step.outputs if name not in calls.outputs]
    return sorted(calls.tensors[name].dtype for name in made)


_SUM = f"{_LAYER}{_SECOND} s = Add(ar, br)\n y = QuantizeLinear(s, s3, z3)"


def test_a_residual_value_is_written_once_as_int8() -> None:
    """Behind the first layer, beside what of the input is turned to int8."""
    assert _between(_model(_SUM, "uint8[16,16] y")) == ["int8", "int8"]


def test_a_residual_sum_is_exact() -> None:
    _assert_exact(_model(_SUM, "uint8[16,16] y"))


def test_a_quantizer_without_zero_point_is_exact() -> None:
    _assert_exact(_model(_SUM.replace("s1, z1", "s1").replace("s3, z3", "s3"), "uint8[16,16] y"))


def test_a_function_by_table_is_exact() -> None:
    body = f"{_LAYER} ar = DequantizeLinear(a, s1, z1)\n t = Tanh(ar)\n b = QuantizeLinear(t, s2, z2)"
    _assert_exact(_model(f"{body}\n y = DequantizeLinear(b, s2, z2)", "float[16,16] y"))


def test_a_product_of_two_quantized_values_is_exact() -> None:
    body = f"{_LAYER}{_SECOND} e = MatMul(ar, br)\n f = QuantizeLinear(e, s3, z3)"
    _assert_exact(_model(f"{body}\n y = DequantizeLinear(f, s3, z3)", "float[16,16] y"))


def test_an_output_of_the_model_stays_uint8() -> None:
    model = _model(_SUM, "uint8[16,16] y, uint8[16,16] a")
    _assert_exact(model)


def test_what_another_operator_reads_stays_uint8() -> None:
    model = _model(
        f"{_LAYER}{_SECOND} y = Transpose(a)\n z = QuantizeLinear(br, s3, z3)",
        "uint8[16,16] y, uint8[16,16] z",
    )
    assert "uint8" in _between(model)
    _assert_exact(model)
