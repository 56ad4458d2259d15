"""Weights-only products of whole models against the reference: forms of weights, and what stays float."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from test_lower_run import ISA, assert_as_reference

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import lower
from pared.compiler.ir.importer import import_model
from pared.compiler.pass_api import Context
from pared.passes.quantize.quantize import Quantize

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")

DEPTH, OUTPUTS = 96, 40


def _model(body: str, arrays: dict[str, np.ndarray], rows: int = 1) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[{rows},{DEPTH}] x) => (float[{rows},{OUTPUTS}] y) {{ {body} }}"""
    model = ir.from_onnx_text(text)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        value = known[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return import_model(ir.to_proto(model)).model


def _blocks(
    rng: np.random.Generator, dtype: type, low: int, high: int, block: int = 32
) -> dict[str, np.ndarray]:
    return {
        "q": rng.integers(low, high, (DEPTH, OUTPUTS)).astype(dtype),
        "s": (0.01 + rng.random((DEPTH // block, OUTPUTS))).astype(np.float32),
    }


def _steps(model: ir.Model) -> list[str]:
    assert isinstance(ISA, Isa)
    return [str(step.spec) for step in lower(model, ISA).steps if step.family == "lowbit_f32"]


BLOCKS = "w = DequantizeLinear<axis=0, block_size=32>(q, s) y = MatMul(x, w)"
ZEROS = "w = DequantizeLinear<axis=0, block_size=32>(q, s, z) y = MatMul(x, w)"
RNG = np.random.default_rng(0)
FORMS = {
    "signed blocks": (BLOCKS, _blocks(RNG, ml_dtypes.int4, -8, 8), "bits=4"),
    "unsigned blocks, each with a zero": (
        ZEROS,
        _blocks(RNG, ml_dtypes.uint4, 0, 16)
        | {"z": RNG.integers(0, 16, (3, OUTPUTS)).astype(ml_dtypes.uint4)},
        "bits=4",
    ),
    "three values": (BLOCKS, _blocks(RNG, ml_dtypes.int4, -1, 2), "bits=2"),
    "channels of a transposed Gemm": (
        "w = DequantizeLinear<axis=0>(q, s) y = Gemm<transB=1>(x, w, b)",
        {
            "q": RNG.integers(-8, 8, (OUTPUTS, DEPTH)).astype(ml_dtypes.int4),
            "s": RNG.random(OUTPUTS, np.float32),
            "b": RNG.standard_normal(OUTPUTS).astype(np.float32),
        },
        "bias=True",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_of_few_bits_stay_so(name: str, tmp_path: Path) -> None:
    body, arrays, said = FORMS[name]
    model = _model(body, arrays, rows=2)
    (spec,) = _steps(model)
    assert said in spec
    assert_as_reference(model, {"x": RNG.standard_normal((2, DEPTH)).astype(np.float32)}, tmp_path)


def test_signs_are_one_bit(tmp_path: Path) -> None:
    signs = np.where(RNG.random((DEPTH, OUTPUTS)) < 0.5, -1, 1).astype(ml_dtypes.int4)
    model = _model(BLOCKS, _blocks(RNG, ml_dtypes.int4, -1, 2) | {"q": signs})
    (spec,) = _steps(model)
    assert "bipolar=True" in spec
    assert_as_reference(model, {"x": RNG.standard_normal((1, DEPTH)).astype(np.float32)}, tmp_path)


def test_quantizers_of_qonnx_give_such_weights(tmp_path: Path) -> None:
    weight = RNG.standard_normal((DEPTH, OUTPUTS)).astype(np.float32)
    model = _model("y = MatMul(x, w)", {"w": weight})
    assert Quantize(bits=4, act="none").apply(model, Context()).changed
    (spec,) = _steps(model)
    assert "bits=4" in spec
    assert_as_reference(model, {"x": RNG.standard_normal((1, DEPTH)).astype(np.float32)}, tmp_path)


def test_many_rows_are_faster_in_float() -> None:
    assert _steps(_model(BLOCKS, _blocks(RNG, ml_dtypes.int4, -8, 8), rows=33)) == []


def test_small_weights_of_bytes_become_floats() -> None:
    assert _steps(_model(BLOCKS, _blocks(RNG, np.int8, -128, 128))) == []
