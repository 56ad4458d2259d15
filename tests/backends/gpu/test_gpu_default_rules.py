"""What TVM's own rules got wrong. Only threads show it: the loops before they are mapped are right."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import model_of
from gpu_simulated import functions_within_bound

from pared.compiler.ir.export import signature_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


def _array(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "inputs", "outputs", "constants"),
    [
        ("y = Gemm(x, w, b)", "float[3,1] x", "float[3,7] y", {"w": _array(1, 7), "b": _array(7)}),
        (
            "c = Conv(x, w, b)\ny = Relu(c)", "float[1,1,5,5] x", "float[1,6,5,5] y",
            {"w": _array(6, 1, 1, 1), "b": _array(6)},
        ),
        (
            "p = MatMul(x, z)\ny = Add(p, b)", "float[2,4,1] x, float[2,1,5] z", "float[2,4,5] y",
            {"b": _array(5)},
        ),
        (
            "p = AveragePool<kernel_shape=[1,1]>(x)\ny = Add(p, b)", "float[1,3,2,2] x", "float[1,3,2,2] y",
            {"b": _array(3, 1, 1)},
        ),
    ],
    ids=["gemm", "conv", "matmul", "pool"],
)  # fmt: skip
def test_what_follows_a_sum_of_one_term_is_computed_once(
    body: str, inputs: str, outputs: str, constants: dict[str, np.ndarray]
) -> None:
    model = model_of(body, inputs, outputs, **constants)
    functions_within_bound(model, {port.name: _array(*port.shape) for port in signature_of(model).inputs})


def test_a_divided_axis_of_a_sum_loses_nothing() -> None:
    model = model_of(
        "y = Conv<group=3>(x, w, b)", "float[1,3,17,5] x", "float[1,6,16,5] y",
        w=_array(6, 1, 2, 1), b=_array(6),
    )  # fmt: skip
    functions_within_bound(model, {"x": _array(1, 3, 17, 5)})


def test_nothing_is_written_behind_few_results() -> None:
    model = model_of("y = MatMul(x, w)", "float[1,1,4,5] x", "float[1,1,4,1] y", w=_array(5, 1))
    functions_within_bound(model, {"x": _array(1, 1, 4, 5)})
