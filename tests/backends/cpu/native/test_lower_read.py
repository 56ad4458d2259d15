"""Reading graphs into layers: interpreted layers equal the reference, what no rule takes has a reason."""

from pathlib import Path

import interpret
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native import layers as L
from pared.backends.cpu.native.fuse import fuse
from pared.backends.cpu.native.read import read
from pared.backends.cpu.native.reader import bind_batch
from pared.backends.reference import evaluate
from pared.compiler.errors import UnsupportedOp
from pared.compiler.ir.importer import import_model

EXAMPLES = Path(__file__).parents[4] / "examples" / "models"


def fused(model):
    reading = read(model)
    assert reading.refused == ()
    return reading, fuse(reading.layers, reading.outputs)


def results(model, inputs):
    """Return the model's outputs by the interpreted layers."""
    reading, layers = fused(model)
    entered = {t.name: interpret.enter(t, inputs[t.name]) for t in reading.inputs}
    known = interpret.run(layers, entered)
    return {t.name: interpret.leave(t, known[t.name]) for t in reading.outputs}


def kinds(model):
    return [type(layer).__name__ for layer in fused(model)[1]]


def parse(body, inputs="float[1,4,6,6] x", outputs="float[1,8,6,6] y", constants=""):
    opening = f'<ir_version: 10, opset_import: ["" : 21]>\ng ({inputs}) => ({outputs})'
    text = opening + (f" <{constants}>" if constants else "") + " {" + body + "}"
    return bind_batch(import_model(ir.to_proto(ir.from_onnx_text(text))).model)


def quantized_conv(
    rng, *, channels=4, outs=8, kernel=3, stride=1, group=1, tail="", signed=False, per_channel=True
):
    """Return a model Q -> DQ -> Conv -> [tail] -> Q with random weights, and its uint8 or int8 input."""
    low = -128 if signed else 0
    kind = np.int8 if signed else np.uint8
    arrays = {
        "w": rng.integers(-127, 128, (outs, channels // group, kernel, kernel)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, outs if per_channel else ()).astype(np.float32),
        "b": rng.integers(-3000, 3000, outs).astype(np.int32),
        "xs": np.float32(rng.uniform(0.01, 0.1)),
        "xz": kind(rng.integers(low, low + 256)),
        "ys": np.float32(rng.uniform(0.05, 0.5)),
        "yz": kind(rng.integers(low, low + 256)),
    }
    arrays["bs"] = np.asarray(arrays["xs"] * arrays["ws"], np.float32)
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g ({kind.__name__}[1,{channels},7,5] q) => ({kind.__name__}[1,{outs},H,W] y) {{
      xr = DequantizeLinear(q, xs, xz)
      wr = DequantizeLinear<axis=0>(w, ws)
      br = DequantizeLinear<axis=0>(b, bs)
      c = Conv<group={group}, pads=[1,0,1,1], strides=[{stride},{stride}]>(xr, wr, br)
      {tail}
      y = QuantizeLinear({"t" if tail else "c"}, ys, yz)
    }}"""
    return with_constants(text, arrays)


def with_constants(text, arrays):
    model = ir.from_onnx_text(text.replace("[1,8,H,W]", "[a,b,c,d]").replace("H,W", "c,d"))
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        value = known[name]
        value.const_value = ir.tensor(np.asarray(array), name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(np.shape(array))
        model.graph.register_initializer(value)
    return bind_batch(import_model(ir.to_proto(model)).model)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(4, 8, 1), (6, 4, 2), (5, 5, 5), (3, 1, 1)]),
    st.integers(1, 3), st.integers(1, 2), st.sampled_from(["t = Relu(c)", ""]),
    st.booleans(), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_quantized_convolutions_equal_the_reference_bit_for_bit(
    seed, sizes, kernel, stride, tail, signed, per
):
    rng = np.random.default_rng(seed)
    channels, outs, group = sizes
    model = quantized_conv(
        rng, channels=channels, outs=outs, group=group, kernel=kernel, stride=stride, tail=tail,
        signed=signed, per_channel=per,
    )  # fmt: skip
    assert kinds(model) == ["IntLayer"]
    x = rng.integers(-128 if signed else 0, 128 if signed else 256, (1, channels, 7, 5))
    inputs = {"q": x.astype(np.int8 if signed else np.uint8)}
    np.testing.assert_array_equal(results(model, inputs)["y"], evaluate(model, inputs)["y"])


def example(name):
    return bind_batch(import_model(EXAMPLES / f"{name}.onnx").model)


def canonical(name, precision, data):
    """Return an example model as the driver's passes leave it."""
    from pared.compiler.driver.job import Inputs, prepare
    from pared.compiler.driver.variants import build_variants
    from pared.compiler.manager import Manager
    from pared.compiler.recipe import Recipe

    recipe = Recipe(model=str(EXAMPLES / f"{name}.onnx"), precision=precision)
    variants = build_variants(prepare(recipe, Inputs(calibration=data)), Manager())
    return bind_batch(variants.models[variants.asked])


def samples(name, count):
    value = example(name).graph.inputs[0]
    rng = np.random.default_rng(0)
    return {value.name: rng.random((count, *list(value.shape)[1:]), dtype=np.float32)}


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_resnet"])
@pytest.mark.parametrize("precision", [None, "int8"])
def test_examples_equal_the_reference(name, precision):
    model = canonical(name, precision, samples(name, 8) if precision else None)
    inputs = samples(name, 1)
    want = evaluate(model, inputs)["logits"]
    # the same operations in float64 with one rounding each: a difference is a wrong layer, not a rounding
    np.testing.assert_allclose(
        results(model, inputs)["logits"], want, rtol=1e-6, atol=1e-6 * np.abs(want).max()
    )


def test_the_residual_add_goes_into_the_convolution():
    model = canonical("digits_resnet", "int8", samples("digits_resnet", 8))
    layers = fused(model)[1]
    assert not any(isinstance(layer, L.Add) for layer in layers)
    assert sum(isinstance(layer, L.IntLayer) and layer.residual is not None for layer in layers) == 1


def test_every_node_that_computes_is_covered_once():
    model = canonical("digits_resnet", None, None)
    covered = [name for layer in fused(model)[1] for name in layer.covers]
    assert sorted(covered) == sorted(node.name for node in model.graph)


def test_an_unknown_operator_is_refused_by_name():
    model = parse("y = Celu(x)", outputs="float[1,4,6,6] y")
    assert [(node.op_type, reason) for node, reason in read(model).refused] == [("Celu", "no rule for Celu")]


def test_a_symbolic_height_needs_a_size():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,4,h,6] x) => (float[1,4,h,6] y) { y = Relu(x) }'
    )
    with pytest.raises(UnsupportedOp, match="no fixed shape"):
        bind_batch(model)


def test_a_symbolic_batch_becomes_one():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    )
    assert read(bind_batch(model)).outputs[0].shape == (1, 4)


def test_clipping_goes_into_the_add():
    model = parse("s = Add(x, z)\n y = Relu(s)", "float[1,4] x, float[1,4] z", "float[1,4] y")
    (layer,) = fused(model)[1]
    assert isinstance(layer, L.Add)
    assert (layer.low, layer.high) == (0, np.inf)


def test_a_sum_that_is_an_output_keeps_its_clipping_apart():
    model = parse("s = Add(x, z)\n y = Relu(s)", "float[1,4] x, float[1,4] z", "float[1,4] y, float[1,4] s")
    assert kinds(model) == ["Add", "Clip"]


@pytest.mark.parametrize(
    "pads", ["pads=[0,0,1,1]", 'auto_pad="SAME_UPPER"', 'auto_pad="SAME_LOWER"', "ceil_mode=1"]
)
def test_pooling_windows_equal_the_reference(pads):
    body = f"y = MaxPool<kernel_shape=[3,2], strides=[2,2], {pads}>(x)"
    model = parse(body, "float[1,4,7,5] x", "float[a,b,c,d] y")
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 7, 5)).astype(np.float32)}
    np.testing.assert_array_equal(results(model, inputs)["y"], evaluate(model, inputs)["y"])


@pytest.mark.parametrize("extra", ["", ", count_include_pad=1", ", ceil_mode=1"])
def test_averages_equal_the_reference(extra):
    body = f"y = AveragePool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]{extra}>(x)"
    if "ceil" in extra:
        body = body.replace("pads=[1,0,1,1]", "pads=[0,0,0,0]")
    model = parse(body, "float[1,4,6,5] x", "float[a,b,c,d] y")
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 5)).astype(np.float32)}
    np.testing.assert_allclose(results(model, inputs)["y"], evaluate(model, inputs)["y"], rtol=1e-6, atol=0)
