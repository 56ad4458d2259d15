"""Recurrent layers of whole models against the reference: ONNX's operators and their forms, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from test_lower_run import ISA, assert_as_reference

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import lower, supported
from pared.compiler.ir.importer import import_model
from pared.compiler.pass_api import Context
from pared.passes.quantize.recurrent import QuantizeRecurrent

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, SIZE = 4, 2, 9


def _model(
    op: str,
    hidden: int,
    *,
    states: bool = False,
    bias: bool = True,
    peepholes: bool = False,
    **attributes: object,
) -> ir.Model:
    rng = np.random.default_rng(hidden)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = GATES[op]
    weights = {"W": (directions, gates * hidden, SIZE), "R": (directions, gates * hidden, hidden)}
    if bias:
        weights["B"] = (directions, 2 * gates * hidden)
    if peepholes:
        weights["P"] = (directions, 3 * hidden)
    shapes = {"x": (STEPS, BATCH, SIZE)}
    names = ["x", "W", "R", "B" if bias else "", "", "", "", "P" if peepholes else ""]
    if states:
        shapes |= {name: (directions, BATCH, hidden) for name in (("h", "c") if op == "LSTM" else ("h",))}
        names[5], names[6] = "h", "c" if op == "LSTM" else ""
    while not names[-1]:
        names.pop()
    outs = ["Y", "Y_h", "Y_c"] if op == "LSTM" else ["Y", "Y_h"]
    sizes = {"Y": (STEPS, directions, BATCH, hidden), "Y_h": (directions, BATCH, hidden)}
    node = helper.make_node(op, names, outs, hidden_size=hidden, name="cell", **attributes)
    graph = helper.make_graph(
        [node],
        "cells",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, sizes.get(o, sizes["Y_h"])) for o in outs],
        [
            numpy_helper.from_array((0.4 * rng.standard_normal(shape)).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return import_model(made).model


def _inputs(model: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {str(v.name): rng.standard_normal(v.shape.numpy()).astype(np.float32) for v in model.graph.inputs}


FORMS = {
    "lstm, both ways, from states": ("LSTM", 20, {"direction": "bidirectional", "states": True}),
    "lstm, backwards, peepholes": ("LSTM", 7, {"direction": "reverse", "peepholes": True}),
    "lstm without bias": ("LSTM", 33, {"bias": False}),
    "gru": ("GRU", 20, {"states": True}),
    "gru, reset after, both ways": ("GRU", 24, {"linear_before_reset": 1, "direction": "bidirectional"}),
    "rnn of relu": ("RNN", 5, {"activations": ["Relu"], "direction": "reverse"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_cell_runs_as_the_reference(name: str, tmp_path: Path) -> None:
    op, hidden, options = FORMS[name]
    model = _model(op, hidden, **options)
    assert supported(model, ISA) == []
    assert_as_reference(model, _inputs(model), tmp_path)


@pytest.mark.parametrize("name", ["lstm, both ways, from states", "gru"])
def test_weights_of_the_pass_stay_bytes(name: str, tmp_path: Path) -> None:
    op, hidden, options = FORMS[name]
    model = _model(op, hidden, **options)
    assert QuantizeRecurrent().apply(model, Context()).changed
    step = next(step for step in lower(model, ISA).steps if step.family == "recurrent_f32")
    assert "int8" in str(step.spec)
    assert_as_reference(model, _inputs(model), tmp_path)


@pytest.mark.parametrize(
    ("reason", "op", "options"),
    [
        ("clip is set", "LSTM", {"clip": 1.0}),
        ("activations", "GRU", {"activations": ["Sigmoid", "Relu"]}),
        ("input_forget is set", "LSTM", {"input_forget": 1}),
    ],
)
def test_what_the_kernels_lack_is_refused(reason: str, op: str, options: dict[str, object]) -> None:
    ((_, found),) = supported(_model(op, 16, **options), ISA)
    assert reason in found
