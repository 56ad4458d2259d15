"""Which values of a quantizer's output may be one step off: those beside a tie, by the float bound."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from pared.backends.reference import evaluate
from pared.bench.gpu.threads import compared
from pared.compiler.backend import Array
from pared.compiler.ir.importer import import_model

_X = {"x": np.float32([[1.0, 1.25, 1.75, 0.3]])}
# Values, those that differ, the largest difference, its bound; then these two.
_BEYOND, _TIES = 4, 5


def _model() -> ir.Model:
    """`x @ 1` is x, quantized to steps of 0.5: 1.25 and 1.75 are ties."""
    text = """<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
        g (float[1,4] x) => (float[1,4] y)
        <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float s = {0.5}, float z = {0}, float b = {8}> {
        m = MatMul(x, w)
        y = qonnx.custom_op.general.Quant<signed: int = 1, narrow: int = 0,
            rounding_mode: string = "ROUND">(m, s, z, b) }"""
    return import_model(onnx.parser.parse_model(text)).model


def _off(*steps: float) -> dict[str, Array]:
    return {"y": evaluate(_model(), _X)["y"] + np.float32([steps])}


def test_equal_values_are_within_any_bound() -> None:
    assert compared(_model(), _X, _off(0, 0, 0, 0))[_BEYOND:] == (0, "-")


def test_a_step_beside_a_tie_is_told_from_another() -> None:
    assert compared(_model(), _X, _off(0, 0.5, 0, 0))[_BEYOND:] == (1, 1)
    assert compared(_model(), _X, _off(0.5, 0.5, 0, 0))[_BEYOND:] == (2, 1)
    assert compared(_model(), _X, _off(0, 0, 0, -0.5))[_BEYOND:] == (1, 0)


def test_two_steps_are_no_tie() -> None:
    assert compared(_model(), _X, _off(0, 1.0, 0, 0))[_BEYOND:] == (1, 0)


def test_an_output_that_no_quantizer_made_has_no_ties() -> None:
    model = import_model(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]> g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }'
        )
    ).model
    got = {"y": evaluate(model, _X)["y"] + np.float32(0.5)}
    assert compared(model, _X, got)[_BEYOND:] == (4, 0)
