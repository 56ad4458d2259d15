"""Quantized products of rows and of activations, to the last bit as the reference computes them."""

import numpy as np
import pytest

pytest.importorskip("tvm")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_lower_run import ISA, assert_as_reference
from test_sequence_run import families, graph

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.layers import IntLayer
from pared.backends.cpu.native.layers_sequence import IntProduct
from pared.backends.cpu.native.read import read

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def quantizer(rng, name):
    """Return constants of a quantizer with a scale that makes ties, and a zero point."""
    scale = np.float32(rng.choice([0.05, 0.1, 0.0371, 0.2]))
    return {f"{name}s": scale, f"{name}z": np.uint8(rng.integers(0, 256))}


def pair(value, made, name):
    """Return a quantizer behind `value` and the real value that follows."""
    ends = f"{name}s, {name}z"
    return f"{made}q = QuantizeLinear({value}, {ends})\n {made} = DequantizeLinear({made}q, {ends})\n"


sizes = st.tuples(st.integers(1, 3), st.integers(1, 33), st.integers(1, 70), st.integers(1, 50))


@settings(deadline=None, max_examples=6)
@given(sizes, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_rows_by_weights_are_bit_exact(tmp_path_factory, shape, per_channel, added, seed):
    batch, rows, depth, columns = shape
    rng = np.random.default_rng(seed)
    arrays = {
        **quantizer(rng, "x"), **quantizer(rng, "y"),
        "w": rng.integers(-127, 128, (depth, columns)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, columns if per_channel else ()).astype(np.float32),
    }  # fmt: skip
    body = pair("x", "a", "x") + f"b = DequantizeLinear<axis={1 if per_channel else 0}>(w, ws)\n"
    body += "c = MatMul(a, b)\n" + pair("c", "d", "y")
    if added:
        arrays |= {**quantizer(rng, "t"), "n": rng.standard_normal(columns).astype(np.float32)}
        body += "e = Add(d, n)\n" + pair("e", "f", "t")
    model = graph(
        body + ("y = Identity(f)" if added else "y = Identity(d)"), f"float[{batch},{rows},{depth}] x",
        f"float[{batch},{rows},{columns}] y", arrays,
    )  # fmt: skip
    assert families(model).count("matmul_int8") == 1
    x = rng.standard_normal((batch, rows, depth), dtype=np.float32) * 5
    assert_as_reference(model, {"x": x}, tmp_path_factory.mktemp("run"))


@settings(deadline=None, max_examples=8)
@given(sizes, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_rows_with_an_int32_bias_are_bit_exact(tmp_path_factory, shape, per_channel, relu, seed):
    batch, rows, depth, columns = shape
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.001, 0.02, columns if per_channel else ()).astype(np.float32)
    arrays = {**quantizer(rng, "x"), **quantizer(rng, "y"), "ws": scale,
              "w": rng.integers(-127, 128, (depth, columns)).astype(np.int8)}  # fmt: skip
    unit, axis = np.asarray(arrays["xs"] * scale, np.float32), 1 if per_channel else 0
    steps = rng.integers(-5000, 5000, columns).astype(np.int32)
    arrays |= {"n": steps, "ns": unit}
    body = pair("x", "a", "x") + f"b = DequantizeLinear<axis={axis}>(w, ws)\n c = MatMul(a, b)\n"
    body += "m = DequantizeLinear<axis=0>(n, ns)\n d = Add(m, c)\n" + (
        "e = Relu(d)\n" if relu else "e = Identity(d)\n"
    )
    model = graph(body + pair("e", "f", "y") + "y = Identity(f)", f"float[{batch},{rows},{depth}] x",
                  f"float[{batch},{rows},{columns}] y", arrays)  # fmt: skip
    x = rng.standard_normal((batch, rows, depth), dtype=np.float32) * 5
    assert_as_reference(model, {"x": x}, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("bias", ["int32", "float"])
@pytest.mark.parametrize("shape", ["2,5,20", "5,20"])
def test_only_an_int32_bias_is_added_to_the_sums(bias, shape):
    rng = np.random.default_rng(0)
    arrays = {**quantizer(rng, "x"), **quantizer(rng, "y"), "ws": np.float32(0.01),
              "w": rng.integers(-127, 128, (20, 33)).astype(np.int8)}  # fmt: skip
    arrays["n"] = np.arange(33).astype(bias + "32" * (bias == "float"))
    body = pair("x", "a", "x") + "b = DequantizeLinear(w, ws)\n c = MatMul(a, b)\n"
    body += "m = DequantizeLinear(n, ws)\n" if bias == "int32" else "m = Identity(n)\n"
    body += "d = Add(c, m)\n" + pair("d", "e", "y") + "y = Identity(e)"
    model = graph(body, f"float[{shape}] x", f"float[{shape[:-2]}33] y", arrays)
    found = [layer for layer in read(model).layers if isinstance(layer, IntLayer | IntProduct)]
    whole = [not isinstance(layer, IntProduct) or layer.whole is not None for layer in found]
    assert whole.count(True) == (bias == "int32")


@settings(deadline=None, max_examples=6)
@given(sizes, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_activations_by_activations_are_bit_exact(tmp_path_factory, shape, turned, middle, seed):
    batch, rows, depth, columns = shape
    rng = np.random.default_rng(seed)
    arrays = {**quantizer(rng, "l"), **quantizer(rng, "r"), **quantizer(rng, "y")}
    arrays["ys"] = np.float32(arrays["ls"] * arrays["rs"] * 37)
    if middle:  # a zero point of 128 needs no sums of rows
        arrays["rz"] = np.uint8(128)
    right = f"{batch},{columns},{depth}" if turned else f"{batch},{depth},{columns}"
    body = pair("l", "a", "l") + pair("r", "b", "r")
    body += "t = Transpose<perm=[0,2,1]>(b)\n" + pair("t", "u", "r") if turned else ""
    body += f"c = MatMul(a, {'u' if turned else 'b'})\n" + pair("c", "d", "y") + "y = Identity(d)"
    model = graph(
        body,
        f"float[{batch},{rows},{depth}] l, float[{right}] r",
        f"float[{batch},{rows},{columns}] y",
        arrays,
    )
    assert families(model).count("matmul_int8") == 1
    inputs = {"l": rng.standard_normal((batch, rows, depth), dtype=np.float32) * 5,
              "r": rng.standard_normal(list(map(int, right.split(","))), dtype=np.float32) * 5}  # fmt: skip
    assert_as_reference(model, inputs, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("end", ["y = Gelu(e)", "y = Add(e, z)", "f = Gelu(e)\n"])
def test_what_follows_a_real_product_is_computed_in_its_step(end, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        **quantizer(rng, "x"), "w": rng.integers(-127, 128, (20, 33)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, 33).astype(np.float32),
        "n": rng.standard_normal(33).astype(np.float32),
    }  # fmt: skip
    body = pair("x", "a", "x") + "b = DequantizeLinear<axis=1>(w, ws)\n c = MatMul(a, b)\n e = Add(c, n)\n"
    if end.endswith("\n"):
        arrays |= {"ys": np.float32(0.03), "yz": np.uint8(20)}
        end += pair("f", "g", "y") + "y = Identity(g)"
    second = ", float[2,5,33] z" if "Add(e, z)" in end else ""
    model = graph(body + end, f"float[2,5,20] x{second}", "float[2,5,33] y", arrays)
    assert [f for f in families(model) if f not in ("chain_f32", "join_f32")] == ["matmul_int8"]
    feeds = {"x": rng.standard_normal((2, 5, 20), dtype=np.float32) * 4}
    if second:
        feeds["z"] = rng.standard_normal((2, 5, 33), dtype=np.float32)
    assert_as_reference(model, feeds, tmp_path)
