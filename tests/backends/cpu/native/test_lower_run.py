"""Whole models through lowering, planning, code generation and the engine, against the reference."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from test_lower_read import canonical, parse, quantized_conv, samples, with_constants

from pared.backends.cpu.native import codegen, engine
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.lower import lower, supported
from pared.backends.cpu.native.planner import plan
from pared.backends.reference import derive_bound, evaluate
from pared.compiler.errors import UnsupportedOp

ISA = host_isa()
pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def executable(model, folder: Path):
    program = lower(model, ISA)
    for name, content in codegen.build(program, plan(program), ISA).items():
        (folder / name).write_bytes(content)
    return engine.load(folder, {"isa": " ".join([ISA.arch, *ISA.features])}, 1)


def assert_as_reference(model, inputs, folder):
    """Compare every output: integers to the bit, floats within the derived bound."""
    got = executable(model, folder).run(inputs)
    bounds = derive_bound(model, [inputs], seed=0)
    for name, want in evaluate(model, inputs).items():
        if want.dtype.kind in "iu":
            np.testing.assert_array_equal(got[name], want)
        else:
            limit = bounds[name].atol + bounds[name].rtol_of_max * np.abs(want).max()
            assert np.abs(got[name] - want).max() <= limit


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_resnet"])
@pytest.mark.parametrize("precision", [None, "int8"])
def test_examples_run_as_the_reference(name, precision, tmp_path):
    model = canonical(name, precision, samples(name, 8) if precision else None)
    assert supported(model, ISA) == []
    assert_as_reference(model, samples(name, 1), tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_quantized_layers_are_bit_exact(seed, tmp_path):
    rng = np.random.default_rng(seed)
    channels, outs, group = [(4, 8, 1), (6, 4, 2), (5, 5, 5), (3, 1, 1), (40, 33, 1), (16, 16, 16)][seed % 6]
    signed = bool(seed % 2)
    model = quantized_conv(
        rng, channels=channels, outs=outs, group=group, kernel=1 + seed % 3, stride=1 + seed % 2,
        tail="t = Relu(c)" if seed % 4 == 0 else "", signed=signed,
    )  # fmt: skip
    x = rng.integers(-128 if signed else 0, 128 if signed else 256, (1, channels, 7, 5))
    assert_as_reference(model, {"q": x.astype(np.int8 if signed else np.uint8)}, tmp_path)


def test_the_plan_of_an_example_reaches_the_bound():
    made = plan(lower(canonical("digits_mlp", None, None), ISA))
    assert made.arena_bytes == made.bound_bytes


def test_an_unsupported_model_is_refused_with_the_reason():
    model = parse("y = Celu(x)", outputs="float[1,4,6,6] y")
    assert [reason for _, reason in supported(model, ISA)] == ["no rule for Celu"]
    with pytest.raises(UnsupportedOp, match="Celu"):
        lower(model, ISA)


FLOAT_GRAPHS = {
    "shuffle": """
        r = Reshape(x, five)
        t = Transpose<perm=[0,2,1,3,4]>(r)
        y = Reshape(t, four)""",
    "concat and clip": """
        a = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)
        b = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)
        c = Concat<axis=1>(a, b)
        y = Relu(c)""",
    "normalization of a sum": """
        s = Add(x, x)
        n = Mul(s, scale)
        y = Add(n, shift)""",
    "flattened product": """
        f = Flatten(x)
        g = MatMul(f, matrix)
        y = Softmax(g)""",
    "grouped convolution": "y = Conv<group=2, pads=[1,1,1,1], kernel_shape=[3,3]>(x, narrow)",
    "winograd": "y = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(x, wide)",
    "local response normalization": "y = LRN<size=5, alpha=0.9, beta=0.75, bias=1.5>(x)",
    "local response of an even size": "y = LRN<size=4, alpha=0.9, beta=0.75, bias=1.5>(x)",
    "transposed ports": """
        p = Transpose<perm=[0,2,3,1]>(x)
        q = Transpose<perm=[0,3,1,2]>(p)
        y = Relu(q)""",
}


@pytest.mark.parametrize("name", sorted(FLOAT_GRAPHS))
def test_float_graphs_run_as_the_reference(name, tmp_path):
    rng = np.random.default_rng(0)
    constants = {
        "five": np.array([1, 2, 9, 10, 6]), "four": np.array([1, 18, 10, 6]),
        "scale": rng.random((18, 1, 1)), "shift": rng.random((1, 18, 1, 1)),
        "matrix": rng.standard_normal((1080, 5)), "narrow": rng.standard_normal((4, 9, 3, 3)),
        "wide": rng.standard_normal((20, 18, 3, 3)),
    }  # fmt: skip
    body = FLOAT_GRAPHS[name]
    used = {
        key: array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        for key, array in constants.items()
        if key in body
    }
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,18,10,6] x) => (float[] y) {' + body + "}"
    rank = 2 if name == "flattened product" else 4
    model = with_constants(text.replace("float[] y", f"float[{','.join('abcd'[:rank])}] y"), used)
    inputs = {"x": rng.standard_normal((1, 18, 10, 6)).astype(np.float32)}
    assert_as_reference(model, inputs, tmp_path)


INTEGER_GRAPHS = {
    "add": ("t = Add(a, b)", "q, sy, zy"),
    "add and relu": ("s = Add(a, b)\n t = Relu(s)", "q, sy, zy"),
    "average": ("t = AveragePool<kernel_shape=[3,2], pads=[1,0,1,1]>(a)", "q, sy, zy"),
    "global average": ("t = GlobalAveragePool(b)", "q, sy, zy"),
    "maximum": ("t = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)", "q, sa, za"),
    "concat": ("t = Concat<axis=1>(a, b)", "q, sy, zy"),
}


@pytest.mark.parametrize("name", sorted(INTEGER_GRAPHS))
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantized_graphs_are_bit_exact(name, kind, tmp_path):
    rng = np.random.default_rng(0)
    low = np.iinfo(kind).min
    constants = {
        "sa": np.float32(0.1), "sb": np.float32(0.037), "sy": np.float32(0.2),
        "za": kind(low + 120), "zb": kind(low + 3), "zy": kind(low + 77),
    }  # fmt: skip
    body, ends = INTEGER_GRAPHS[name]
    port = f"{kind.__name__}[1,18,9,7]"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g ({port} qa, {port} qb) => ({kind.__name__}[a,b,c,d] y) {{
      a = DequantizeLinear(qa, sa, za)
      b = DequantizeLinear(qb, sb, zb)
      {body}
      y = QuantizeLinear({ends.replace("q", "t")})
    }}"""
    read_ones = {key: array for key, array in constants.items() if key in text}
    model = with_constants(text, read_ones)
    shape = (1, 18, 9, 7)
    inputs = {key: rng.integers(low, low + 256, shape).astype(kind) for key in ("qa", "qb")}
    assert_as_reference(model, inputs, tmp_path)
