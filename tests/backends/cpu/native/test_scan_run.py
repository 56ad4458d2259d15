"""Scan over recurrent cells as TensorFlow's exporter writes them, against the reference, and near misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from test_lower_run import ISA, assert_as_reference

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import lower, supported
from pared.backends.cpu.native.reader import bind_batch
from pared.compiler.ir.importer import import_model
from pared.compiler.pass_api import Context
from pared.passes.quantize.recurrent import QuantizeRecurrent

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")

STEPS, SIZE, UNITS, RESULT = 5, 18, 20, 11

GRU = """joined = Concat<axis=1>(xt, h)
    sums = Gemm(joined, G, gb)
    both = Sigmoid(sums)
    r, u = Split<axis=1, num_outputs=2>(both)
    kept = Mul(u, h)
    rh = Mul(r, h)
    again = Concat<axis=1>(xt, rh)
    inner = Gemm(again, C, cb)
    new = Tanh(inner)
    rest = Sub(one, u)
    fresh = Mul(rest, new)
    next = Add(kept, fresh)"""

LSTM = """joined = Concat<axis=1>(xt, h)
    sums = Gemm(joined, G, gb)
    i, j, f, o = Split<axis=1, num_outputs=4>(sums)
    pi = Mul(c, wi)
    i2 = Add(i, pi)
    si = Sigmoid(i2)
    f1 = Add(f, one)
    pf = Mul(wf, c)
    f2 = Add(f1, pf)
    sf = Sigmoid(f2)
    tj = Tanh(j)
    kept = Mul(sf, c)
    added = Mul(si, tj)
    nextc = Add(kept, added)
    po = Mul(nextc, wo)
    o2 = Add(o, po)
    so = Sigmoid(o2)
    tc = Tanh(nextc)
    m = Mul(so, tc)
    next = MatMul(m, P)"""


def _floats(seed: int, *shape: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def _gru(body: str = GRU) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[{STEPS},1,{SIZE}] x) => (float[1,{UNITS}] last, float[{STEPS},1,{UNITS}] every) {{
  last, every = Scan<num_scan_inputs=1, body = step (float[1,{UNITS}] h, float[1,{SIZE}] xt)
    => (float[1,{UNITS}] next, float[1,{UNITS}] out) {{
    {body}
    out = Identity(next)
  }}>(zero, x)
}}"""
    return _finished(
        text,
        {
            "G": _floats(1, SIZE + UNITS, 2 * UNITS),
            "gb": _floats(2, 2 * UNITS),
            "C": _floats(3, SIZE + UNITS, UNITS),
            "cb": _floats(4, UNITS),
            "one": np.float32(1),
            "zero": np.zeros((1, UNITS), np.float32),
        },
    )


def _lstm() -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[{STEPS},1,{SIZE}] x) => (float[1,{UNITS}] lastc, float[1,{RESULT}] last) {{
  lastc, last = Scan<num_scan_inputs=1, body = step
    (float[1,{UNITS}] c, float[1,{RESULT}] h, float[1,{SIZE}] xt)
    => (float[1,{UNITS}] nextc, float[1,{RESULT}] next) {{
    {LSTM}
  }}>(zeroc, zero, x)
}}"""
    arrays = {
        "G": _floats(1, SIZE + RESULT, 4 * UNITS),
        "gb": _floats(2, 4 * UNITS),
        "P": _floats(3, UNITS, RESULT),
        "one": np.float32(1),
        "zero": np.zeros((1, RESULT), np.float32),
        "zeroc": np.zeros((1, UNITS), np.float32),
    }
    return _finished(text, arrays | {name: _floats(5, UNITS) for name in ("wi", "wf", "wo")})


def _finished(text: str, arrays: dict[str, np.ndarray]) -> ir.Model:
    """Return the model with the constants as values of the main graph."""
    names = ", ".join(
        f"{'float' if np.ndim(a) == 0 else f'float{list(np.shape(a))}'} {name}" for name, a in arrays.items()
    )
    declared = text.replace("] x)", f"] x, {names})", 1)
    model = ir.from_onnx_text(declared)
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(np.asarray(arrays[str(value.name)]), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return bind_batch(import_model(ir.to_proto(model)).model)


X = {"x": np.random.default_rng(9).standard_normal((STEPS, 1, SIZE)).astype(np.float32)}


@pytest.mark.parametrize("make", [_gru, _lstm])
def test_a_body_of_cells_runs_as_the_reference(make, tmp_path: Path) -> None:
    model = make()
    assert supported(model, ISA) == []
    assert_as_reference(model, X, tmp_path)


@pytest.mark.parametrize("make", [_gru, _lstm])
def test_weights_of_a_body_stay_bytes(make, tmp_path: Path) -> None:
    model = make()
    assert QuantizeRecurrent().apply(model, Context()).changed
    step = next(step for step in lower(model, ISA).steps if step.family == "recurrent_f32")
    assert "int8" in str(step.spec)
    assert_as_reference(model, X, tmp_path)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("rest = Sub(one, u)", "rest = Sub(one, r)"),
        ("kept = Mul(u, h)", "kept = Mul(u, rh)"),
        ("new = Tanh(inner)", "new = Sigmoid(inner)"),
        ("again = Concat<axis=1>(xt, rh)", "again = Concat<axis=1>(xt, u)"),
        ("rest = Sub(one, u)", "two = Add(one, one)\n rest = Sub(two, u)"),
    ],
)
def test_what_is_almost_a_gru_is_refused(before: str, behind: str) -> None:
    assert before in GRU
    ((_, reason),) = supported(_gru(GRU.replace(before, behind)), ISA)
    assert "no LSTM or GRU cell" in reason
