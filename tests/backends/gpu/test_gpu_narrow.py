"""What is quantized crosses memory as integers; whoever reads it dequantizes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import model_of
from gpu_simulated import devices

from pared.backends.gpu.module import Calls, calls_of, relax_module
from pared.backends.reference import evaluate
from pared.compiler.backend import Array

_ADD = "s = Add(ar, br)\n y = QuantizeLinear(s, s3, z3)"


def _two_branches(tail: str, output: str, **constants: npt.ArrayLike) -> ir.Model:
    """Return two quantized products of [5, 16], dequantized as `ar` and `br`, and what follows."""
    rng = np.random.default_rng(0)
    body = f"""
        xr = DequantizeLinear(x, sx)
        v1 = DequantizeLinear(w1, sw)
        v2 = DequantizeLinear(w2, sw)
        c1 = MatMul(xr, v1)
        a = QuantizeLinear(c1, s1, z1)
        ar = DequantizeLinear(a, s1, z1)
        c2 = MatMul(xr, v2)
        b = QuantizeLinear(c2, s2, z2)
        br = DequantizeLinear(b, s2, z2)
        {tail}
    """
    scales = {"sx": 0.02, "sw": 0.01, "s1": 0.031, "s2": 0.047, "s3": 0.05}
    given: dict[str, npt.ArrayLike] = {name: np.float32(scale) for name, scale in scales.items()}
    given |= {name: np.int8(zero) for name, zero in {"z1": 3, "z2": -8, "z3": 1}.items()}
    given |= {name: rng.integers(-127, 128, (16, 16)).astype(np.int8) for name in ("w1", "w2")}
    used = {name: array for name, array in (given | constants).items() if name in body}
    return model_of(body, "int8[5,16] x", output, **used)


def _calls(model: ir.Model) -> Calls:
    return calls_of(relax_module(model))


def _between(model: ir.Model) -> list[str]:
    """Return the types of what kernels write for other kernels."""
    calls = _calls(model)
    made = [name for step in calls.steps for name in step.outputs if name not in calls.outputs]
    return sorted(calls.tensors[name].dtype for name in made)


def _differences(model: ir.Model) -> list[Array]:
    """Return what every device gives beside what the reference does, for all outputs."""
    x = {"x": np.random.default_rng(1).integers(-128, 128, (5, 16)).astype(np.int8)}
    want = evaluate(model, x)
    return [
        np.flatnonzero(array != want[name])
        for device in devices(model)[1]
        for name, array in device.run(x).items()
    ]


def test_a_residual_branch_is_read_as_int8() -> None:
    assert _between(_two_branches(_ADD, "int8[5,16] y")) == ["int8"]


def test_a_residual_branch_takes_no_further_kernel() -> None:
    assert len(_calls(_two_branches(_ADD, "int8[5,16] y")).steps) == 2


def test_a_sum_of_two_branches_is_exact() -> None:
    assert not any(map(len, _differences(_two_branches(_ADD, "int8[5,16] y"))))


def test_a_maximum_of_what_was_quantized_reads_int8() -> None:
    model = _two_branches("y = ReduceMax<keepdims = 0>(ar, last)", "float[5] y", last=np.array([1]))
    assert _between(model) == ["int8"]
    assert not any(map(len, _differences(model)))


def test_several_readers_of_one_dequantized_value_read_its_integers() -> None:
    tail = f"{_ADD}\n z = ReduceMax<keepdims = 0>(ar, last)"
    model = _two_branches(tail, "int8[5,16] y, float[5] z", last=np.array([1]))
    assert _between(model) == ["int8"]
    assert not any(map(len, _differences(model)))


def test_a_dequantized_value_that_is_an_output_is_written_as_it_is() -> None:
    model = _two_branches(_ADD, "int8[5,16] y, float[5,16] ar")
    assert _between(model) == []
    assert not any(map(len, _differences(model)))


@pytest.mark.parametrize("columns", [4, 40])
def test_a_product_reads_floats(columns: int) -> None:
    """For each of its columns it would dequantize every element anew, and its schedules take it as it is."""
    m = np.ones((16, columns), np.float32)
    assert _between(_two_branches("y = MatMul(ar, m)", f"float[5,{columns}] y", m=m)) == ["float32"]


def test_a_reshape_stays_a_name_of_memory() -> None:
    tail = "f = Reshape(ar, shape)\n y = MatMul(f, m)"
    model = _two_branches(tail, "float[20,40] y", m=np.ones((4, 40), np.float32), shape=np.array([20, 4]))
    assert len(_calls(model).steps) == 2


def test_integers_as_wide_as_floats_are_dequantized_where_they_are_made() -> None:
    body = """c = Add(x, x)
        y = DequantizeLinear(c, s)
        m = ReduceMax<keepdims = 0>(y, first)
        n = ReduceMax<keepdims = 0>(y, last)"""
    axes = {"first": np.array([0]), "last": np.array([1])}
    model = model_of(body, "int32[5,16] x", "float[16] m, float[5] n", s=np.float32(0.1), **axes)
    assert _between(model) == ["float32"]
