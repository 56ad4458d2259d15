"""Biases that an Add behind a MatMul adds: one layer on integers, no quantizer between the two."""

import numpy as np
import onnx_ir as ir
import pytest
from quantized_nets import fused, normal, ops, quantized, sqnr
from small_models import graph


def linear(left="h, b", relu="Identity", extra="", outputs="(float[1,8,16] y)", shape="24") -> ir.Model:
    """Two linear layers of rank 3, the first with Add (`left`) and an activation."""
    return graph(
        f"""g (float[1,8,16] x, float[16,24] w, float[{shape}] b, float[24,16] v, float[16] c) => {outputs}
        {{ [one] h = MatMul (x, w)
          [bias] i = Add ({left})
          [act] r = {relu} (i)
          [two] j = MatMul (r, v)
          [last] y = Add (j, c) {extra} }}""",
        w=normal(16, 24, scale=0.3), b=normal(*map(int, shape.split(","))),
        v=normal(24, 16, scale=0.3), c=normal(16),
    )  # fmt: skip


def between(model: ir.Model, product: str) -> str:
    """Return what reads a product's result."""
    node = next(node for node in model.graph if node.name == product)
    return ",".join(user.op_type for user in node.outputs[0].consumers())


@pytest.mark.parametrize("relu", ["Identity", "Relu"])
@pytest.mark.parametrize("left", ["h, b", "b, h"])
def test_onnxruntime_runs_linear_layers_with_bias_on_integers(left, relu):
    model, _ = quantized(linear(left, relu))
    assert (between(model, "one"), between(model, "two")) == ("Add", "Add")
    found = fused(model)
    assert (found["QGemm"], found["Gemm"], found["MatMul"], found["Add"]) == (2, 0, 0, 0)
    assert found["DequantizeLinear"] == 0


@pytest.mark.parametrize("shape", ["24", "1,24", "1,1,24"])
def test_the_bias_is_int32_in_steps_of_the_sums(shape):
    model, _ = quantized(linear(shape=shape))
    add = next(node for node in model.graph if node.name == "bias")
    maker = next(v for v in add.inputs if v.name == "b").producer()
    stored = maker.inputs[0].const_value.numpy()
    assert (stored.dtype, stored.shape) == (np.int32, (24,))
    assert maker.inputs[1].producer().op_type == "Mul"


def test_the_result_is_close_to_float():
    model = linear(relu="Relu")
    assert sqnr(model, quantized(model)[0]) > 30


@pytest.mark.parametrize(
    ("model", "exclude"),
    [
        (linear(outputs="(float[1,8,16] y, float[1,8,24] h)"), ()),  # the product itself is wanted
        (linear(shape="8,24"), ()),  # not one number per column
        (linear(extra="[other] k = Neg (h)", outputs="(float[1,8,16] y, float[1,8,24] k)"), ()),
    ],
)
def test_what_is_no_bias_stays_an_operator_of_its_own(model, exclude):
    draft, _ = quantized(model, exclude)
    add = next(node for node in draft.graph if node.name == "bias")
    assert all(v.producer() is None or v.producer().inputs[0].dtype != ir.DataType.INT32 for v in add.inputs)


def test_an_excluded_bias_stays_float_and_gets_no_quantizer_before_it():
    draft, _ = quantized(linear(), ("bias",))
    assert between(draft, "one") == "Add"
    assert ops(draft)["MatMul"] == 2


def test_a_huge_bias_widens_the_weight_scale():
    model = linear()
    model.graph.initializers["b"].const_value = ir.tensor(np.full(24, 1e8, np.float32), name="b")
    draft, _ = quantized(model)
    add = next(node for node in draft.graph if node.name == "bias")
    stored = next(v for v in add.inputs if v.name == "b").producer().inputs[0].const_value.numpy()
    assert 2**28 < stored.min() <= stored.max() <= 2**30 + 2**20


@pytest.mark.parametrize(("bits", "act_bits"), [(4, 8), (8, 4)])
def test_other_widths_have_no_quantizer_in_between_either(bits, act_bits):
    draft, _ = quantized(linear(), bits=bits, act_bits=act_bits)
    assert between(draft, "one") == "Add"
