"""Weights of few bits in blocks beside activations that become int8 in such blocks at run time."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from quantized_nets import normal, ops, sqnr
from small_models import graph

from pared.compiler.driver.precision import default_pipeline, parse_precision
from pared.compiler.errors import PipelineError
from pared.compiler.ir.verifier import verify_graph
from pared.compiler.pass_api import Context
from pared.passes.quantize.quantize import Quantize


def net(depth=64) -> ir.Model:
    return graph(
        f"""g (float[1,{depth}] x, float[{depth},64] w, float[64] b, float[{depth},64] v, float[64,32] u) =>
             (float[1,32] y)
        {{ [one] h = Gemm (x, w, b)
          [two] i = MatMul (x, v)
          [sum] s = Add (h, i)
          [last] y = MatMul (s, u) }}""",
        w=normal(depth, 64), b=normal(64), v=normal(64, depth).T, u=normal(64, 32),
    )  # fmt: skip


def made(model: ir.Model, bits: int = 4, **options) -> tuple[ir.Model, list[str]]:
    draft = model.clone()
    stats = Quantize(bits=bits, act="dynamic", weights="block", **options).apply(draft, Context())
    verify_graph(draft)
    return draft, [refusal.reason for refusal in stats.refused]


def test_an_activation_is_quantized_once_for_all_its_products():
    draft, refused = made(net())
    assert refused == []
    assert ops(draft)["DynamicBlockQuantize"] == 2
    products = [node for node in draft.graph if node.op_type in ("Gemm", "MatMul")]
    assert {v.producer().op_type for node in products for v in node.inputs[:2]} == {"DequantizeLinear"}


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -7, 7), (2, -1, 1)])
def test_weights_of_few_bits_are_stored_in_four(bits, low, high):
    draft, _ = made(net(), bits)
    maker = draft.graph.node("one").inputs[1].producer()
    stored = maker.inputs[0].const_value.numpy()
    assert stored.dtype == ml_dtypes.int4
    assert (stored.min(), stored.max()) == (low, high)


@pytest.mark.parametrize(("bits", "least"), [(4, 15), (2, 3)])
def test_the_result_resembles_float(bits, least):
    assert sqnr(net(), made(net(), bits)[0]) > least


@pytest.mark.parametrize("depth", [32, 80])
def test_sums_that_are_not_several_blocks_keep_float_activations(depth):
    draft, refused = made(net(depth))
    assert len(refused) == 2
    assert "whole blocks" in refused[0]
    assert ops(draft)["DynamicBlockQuantize"] == 1


def test_convolutions_keep_float_activations():
    model = graph(
        "g (float[1,64,4,4] x, float[8,64,1,1] w) => (float[1,8,4,4] y) { [one] y = Conv (x, w) }",
        w=normal(8, 64, 1, 1),
    )
    draft, refused = made(model)
    assert "constant matrix" in refused[0]
    assert ops(draft)["DynamicBlockQuantize"] == 0


@pytest.mark.parametrize("bits", [4, 2])
def test_the_precision_is_a_pipeline(bits):
    found = parse_precision(f"w{bits}a8-dynamic")
    assert found is not None
    assert not found.needs_calibration
    assert f"quantize{{bits={bits} act=dynamic weights=block}}" in default_pipeline(found, 2)


@pytest.mark.parametrize("text", ["w3a8-dynamic", "w8a8-dynamic", "w4a4-dynamic"])
def test_other_widths_are_refused(text):
    with pytest.raises(PipelineError, match="unknown precision"):
        parse_precision(text)


@pytest.mark.parametrize("options", [{"bits": 8}, {"block_size": 16}, {"act_bits": 4}])
def test_options_that_no_kernel_has_are_refused(options):
    given = {"bits": 4, "act": "dynamic", "weights": "block", **options}
    with pytest.raises(PipelineError):
        Quantize(**given)


def test_two_bits_lose_less_than_with_the_largest_weight_as_scale():
    weight = normal(256, 64)
    text = "g (float[1,256] x, float[256,64] w) => (float[1,64] y) { [one] y = MatMul (x, w) }"
    draft, _ = made(graph(text, w=weight), 2)
    node = draft.graph.node("one").inputs[1].producer()
    scale = np.repeat(node.inputs[1].const_value.numpy(), 32, axis=0)
    real = node.inputs[0].const_value.numpy().astype(np.float32) * scale
    assert np.square(real - weight).mean() < 0.25
