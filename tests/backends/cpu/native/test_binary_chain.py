import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from popcount_oracle import isa

from pared.backends.cpu.native import codegen
from pared.backends.cpu.native.engine import load
from pared.backends.cpu.native.lower import lower, supported
from pared.backends.cpu.native.planner import plan
from pared.backends.reference import evaluate
from pared.compiler.ir.importer import import_model
from pared.compiler.manager import Manager
from pared.compiler.pass_api import Context
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES

QUANTIZERS = {
    "binary": "qonnx.custom_op.general.BipolarQuant({}, half)",
    "ternary": "qonnx.custom_op.general.Quant<narrow=1, signed=1>({}, half, zero, two)",
    "int2": "qonnx.custom_op.general.Quant<narrow=0, signed=1>({}, half, zero, two)",
    "uint2": "qonnx.custom_op.general.Quant<narrow=0, signed=0>({}, half, zero, two)",
}


def floats(name, array):
    values = ", ".join(f"{value:.9g}" for value in array.ravel())
    return f"float[{','.join(map(str, array.shape))}] {name} = {{{values}}}"


def perceptron(data, weight, sizes, seed, batch=3):
    """Two layers with BatchNorm between them; channels rise, fall and stay constant."""
    rng = np.random.default_rng(seed)
    inputs, hidden, outputs = sizes
    scale = rng.normal(size=hidden)
    scale[0] = 0
    constants = {
        "w1": rng.normal(size=(hidden, inputs)), "w2": rng.normal(size=(outputs, hidden)),
        "s": scale, "b": rng.normal(size=hidden), "m": rng.normal(size=hidden),
        "v": rng.uniform(1, 9, hidden), "o": rng.normal(size=outputs),
    }  # fmt: skip
    extra = ", ".join(floats(name, array) for name, array in constants.items())
    text = f"""<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
    g (float[{batch},{inputs}] x) => (float[{batch},{outputs}] y)
      <{extra}, float half = {{0.5}}, float zero = {{0.0}}, float two = {{2.0}}, float k = {{-0.7}}> {{
        x1 = Mul(x, k)
        q1 = {QUANTIZERS[data].format("x1")}
        p1 = {QUANTIZERS[weight].format("w1")}
        t1 = Transpose<perm=[1,0]>(p1)
        a1 = MatMul(q1, t1)
        n1 = BatchNormalization(a1, s, b, m, v)
        q2 = {QUANTIZERS[data].format("n1")}
        p2 = {QUANTIZERS[weight].format("w2")}
        t2 = Transpose<perm=[1,0]>(p2)
        a2 = MatMul(q2, t2)
        d = Div(a2, k)
        y = Add(d, o)
    }}"""
    return import_model(ir.from_onnx_text(text)).model


def run(model, samples, folder):
    """Compile `model` into a library, load it and run it on every sample."""
    program = lower(model, isa())
    files = codegen.build(program, plan(program), isa())
    for name, content in files.items():
        (folder / name).write_bytes(content)
    executable = load(folder, {"isa": " ".join([isa().arch, *isa().features]), "batched": False}, 1)
    try:
        return [executable.run(inputs) for inputs in samples]
    finally:
        executable.close()


PAIRS = (
    ("binary", "binary"),
    ("binary", "ternary"),
    ("ternary", "ternary"),
    ("uint2", "ternary"),
    ("int2", "ternary"),
)


@settings(deadline=None, max_examples=8)
@given(
    st.sampled_from(PAIRS),
    st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 20)),
    st.integers(0, 999),
)
def test_chains_give_what_the_reference_gives_to_the_last_bit(tmp_path_factory, codes, sizes, seed):
    model = perceptron(*codes, sizes, seed)
    x = np.random.default_rng(seed).normal(size=(3, sizes[0])).astype(np.float32)
    x[0] = 0
    (got,) = run(model, [{"x": x}], tmp_path_factory.mktemp("chain"))
    np.testing.assert_array_equal(got["y"], evaluate(model, {"x": x})["y"])


def test_a_chain_is_supported_and_its_steps_cover_all_nodes_between_input_and_output():
    model = perceptron("binary", "binary", (9, 8, 7), 1)
    assert supported(model, isa()) == []
    program = lower(model, isa())
    families = [step.family for step in program.steps]
    assert families == ["binarize", "dense_binary", "dense_binary", "move"]
    kept = [n.op_type for n in model.graph if n.name in {c for step in program.steps for c in step.covers}]
    assert kept.count("MatMul") == 2
    assert kept.count("BipolarQuant") == 2


@pytest.mark.parametrize("name", ["tfc_1w1a_qonnx", "tfc_2w2a_qonnx"])
def test_real_models_give_what_the_reference_gives_to_the_last_bit(name, tmp_path):
    folder = os.environ.get("PARED_DATA")
    if not folder or not (Path(folder) / "models" / f"{name}.onnx").exists():
        pytest.skip(f"PARED_DATA has no models/{name}.onnx")
    original = import_model(Path(folder) / "models" / f"{name}.onnx").model
    model = Manager().run(original, parse_pipeline("canonicalize", PASSES, MACROS), Context()).model
    (port,), (out,) = model.graph.inputs, model.graph.outputs
    x = np.random.default_rng(0).random((20, 1, 1, 28, 28), np.float32)
    x[x < 0.3] = 0.5  # the sign's tie
    samples = [{port.name: sample} for sample in x]
    for sample, got in zip(samples, run(model, samples, tmp_path), strict=True):
        np.testing.assert_array_equal(got[out.name], evaluate(original, sample)[out.name])
