"""Activations in int8 blocks at run time and weights of few bits: to the last bit as the reference."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_lower_run import ISA, executable
from test_sequence_run import families, graph

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import supported
from pared.backends.reference import evaluate
from pared.compiler.ir.shapes import infer_shapes
from pared.compiler.pass_api import Context
from pared.passes.quantize.quantize import Quantize

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def quantized(body, ports, arrays, bits, block=32):
    """Return a model of float32 operators with weights of few bits."""
    rng = np.random.default_rng(0)
    floats = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    model = graph(body, *ports, floats)
    Quantize(bits=bits, act="dynamic", weights="block", block_size=block).apply(model, Context())
    infer_shapes(model)
    return model


def assert_equal(model, x, folder):
    got, want = executable(model, folder).run({"x": x})["y"], evaluate(model, {"x": x})["y"]
    np.testing.assert_array_equal(got, want)


FORMS = {
    "MatMul": "y = MatMul(x, w)",
    "biased": "h = MatMul(x, w)\n y = Add(b, h)",
    "Gemm": "y = Gemm(x, w, b)",
}


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from(sorted(FORMS)), st.sampled_from([4, 2]), st.sampled_from([32, 64]), st.integers(2, 4),
    st.integers(1, 40), st.sampled_from([(1,), (3,), (2, 5), (11,)]), st.integers(0, 99),
)  # fmt: skip
def test_products_are_bit_exact(tmp_path_factory, form, bits, block, blocks, outputs, outer, seed):
    outer = outer[-1:] if form == "Gemm" else outer
    depth, rows = block * blocks, ",".join(map(str, outer))
    ports = f"float[{rows},{depth}] x", f"float[{rows},{outputs}] y"
    arrays = {"w": (depth, outputs)} | ({"b": (outputs,)} if "b" in FORMS[form] else {})
    model = quantized(FORMS[form], ports, arrays, bits, block)
    assert families(model).count("lowbit_gemv") == 1
    assert "lowbit_f32" not in families(model)
    x = np.random.default_rng(seed).standard_normal((*outer, depth), dtype=np.float32)
    x[..., :block] *= seed % 3
    assert_equal(model, x, tmp_path_factory.mktemp("run"))


def test_products_of_one_activation_share_its_blocks(tmp_path):
    body = "g = MatMul(x, w)\n u = MatMul(x, v)\n s = Relu(g)\n h = Mul(s, u)\n"
    body += "d = MatMul(h, z)\n y = Add(d, x)"
    arrays = {"w": (64, 96), "v": (64, 96), "z": (96, 64)}
    model = quantized(body, ("float[1,64] x", "float[1,64] y"), arrays, 4)
    assert (families(model).count("quantize_blocks"), families(model).count("lowbit_gemv")) == (2, 3)
    assert_equal(model, np.random.default_rng(1).standard_normal((1, 64), dtype=np.float32), tmp_path)


def test_blocks_that_no_product_reads_are_refused_with_a_reason():
    model = quantized("y = MatMul(x, w)", ("float[1,64] x", "float[1,8] y"), {"w": (64, 8)}, 4)
    model.graph.outputs.append(next(n for n in model.graph if n.op_type == "DynamicBlockQuantize").outputs[0])
    assert supported(model, ISA)
