"""The pass on small graphs: what onnxruntime makes of it, what is written, how exact it is."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from quantized_nets import NETS, conv_net, fused, mlp, normal, quantized, residual, sqnr
from small_models import constant, graph, run, samples

from pared.compiler.ir.quant import QONNX_DOMAIN, view
from pared.compiler.ir.verifier import verify_graph
from pared.compiler.pass_api import Context
from pared.passes.quantize.observers import METHODS
from pared.passes.quantize.quantize import Quantize

# --- what onnxruntime makes of it ---


def test_onnxruntime_fuses_convolutions_pooling_and_relu():
    found = fused(quantized(conv_net())[0])
    assert found["QLinearConv"] == 2
    assert found["QLinearGlobalAveragePool"] + found["GlobalAveragePool"] == 1
    assert found["Conv"] == found["Relu"] == 0


def test_onnxruntime_fuses_a_residual_sum():
    found = fused(quantized(residual())[0])
    assert (found["QLinearConv"], found["QLinearAdd"], found["Add"]) == (3, 1, 0)


def test_onnxruntime_fuses_dense_layers_the_last_with_float_results():
    model, _ = quantized(mlp())
    assert "QuantizeLinear" not in {user.op_type for user in model.graph.outputs[0].consumers()}
    found = fused(model)
    assert (found["QGemm"], found["Gemm"], found["DequantizeLinear"]) == (2, 0, 0)


def test_onnxruntime_fuses_matmul_of_activations():
    model = graph(
        """g (float[2,8,16] x, float[16,16] w, float[16,16] v) => (float[2,8,8] y)
        { [q] a = MatMul (x, w)
          [k] b = MatMul (x, v)
          [t] bt = Transpose <perm = [0, 2, 1]> (b)
          [scores] y = MatMul (a, bt) }""",
        w=normal(16, 16, scale=0.3), v=normal(16, 16, scale=0.3),
    )  # fmt: skip
    found = fused(quantized(model, x=normal(16, 2, 8, 16))[0])
    assert found["MatMul"] == 0
    assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 3


def test_onnxruntime_fuses_dynamic_activations():
    found = fused(quantized(mlp(), act="dynamic")[0])
    assert found["DynamicQuantizeMatMul"] + found["MatMulInteger"] + found["MatMulIntegerToFloat"] == 2
    assert found["Gemm"] == 0


# --- forms ---


def test_a_value_gets_one_quantizer_however_many_read_it():
    model, _ = quantized(residual())
    readers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    sources = [node.inputs[0] for node in readers]
    assert len(sources) == len(set(sources))


def test_the_dequantized_value_takes_the_name_of_the_float_value():
    model, _ = quantized(conv_net())
    names = {value.name: value for node in model.graph for value in node.outputs}
    for name in ("r", "p", "d", "y"):
        maker = names[name].producer()
        assert maker is not None
        assert maker.op_type in ("DequantizeLinear", "GlobalAveragePool")


def test_pooling_by_maximum_keeps_the_scale():
    model, _ = quantized(conv_net())
    values = {value.name: value for node in model.graph for value in node.outputs}
    before, after = view(values["r"]), view(values["p"])
    assert before is not None
    assert after is not None
    assert before.scale == after.scale


def test_weights_of_convolutions_have_no_zero_point():
    model, _ = quantized(conv_net())
    weights = [n for n in model.graph if n.op_type == "DequantizeLinear" and n.outputs[0].name in ("w", "v")]
    assert [len(node.inputs) for node in weights] == [2, 2]


def test_bias_is_the_nearest_integer_of_input_scale_times_weight_scale():
    float_model = conv_net()
    model, _ = quantized(float_model)
    conv = next(node for node in model.graph if node.name == "one")
    bias = conv.inputs[2]
    assert bias is not None
    maker = bias.producer()
    assert maker is not None
    unit = maker.inputs[1].producer()
    assert unit is not None
    assert unit.op_type == "Mul"
    x, w = view(conv.inputs[0]), view(conv.inputs[1])
    assert x is not None
    assert w is not None
    step = (w.scale * x.scale).astype(np.float32)
    want = np.rint(constant(float_model, "b").astype(np.float64) / step.astype(np.float64))
    got = maker.inputs[0].const_value.numpy()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_a_huge_bias_widens_the_weight_scale_instead_of_overflowing():
    model = mlp()
    model.graph.initializers["b"].const_value = ir.tensor(np.full(32, 1e8, np.float32), name="b")
    draft, _ = quantized(model)
    gemm = next(node for node in draft.graph if node.name == "one")
    stored = gemm.inputs[2].producer().inputs[0].const_value.numpy()
    assert np.abs(stored.astype(np.int64)).max() <= 2**30 + 2**20
    assert stored.min() > 2**28


def test_scales_and_zero_points_with_the_same_content_are_stored_once():
    model, _ = quantized(conv_net())
    zeros = [
        v for v in model.graph.initializers.values() if v.dtype == ir.DataType.UINT8 and v.shape.rank() == 0
    ]
    contents = [value.const_value.numpy().tobytes() for value in zeros]
    assert len(contents) == len(set(contents))


def test_a_table_is_stored_as_integers_and_dequantized_behind_the_gather():
    model = graph(
        """g (int64[1,4] x, float[50,8] t) => (float[1,4,8] y) { [emb] y = Gather (t, x) }""",
        t=normal(50, 8),
    )  # fmt: skip
    ctx = Context(calibration=samples(model, x=np.arange(4)[None]))
    draft = model.clone()
    Quantize(weights="channel").apply(draft, ctx)
    verify_graph(draft)
    gather = next(node for node in draft.graph if node.op_type == "Gather")
    assert gather.inputs[0].dtype == ir.DataType.INT8
    ids = np.array([[0, 7, 49, 7]])
    error = np.abs(run(draft, {"x": ids})["y"] - run(model, {"x": ids})["y"])
    step = np.abs(constant(model, "t")).max(axis=0) / 127
    assert np.all(error <= step * 0.501)


@pytest.mark.parametrize(("bits", "act_bits"), [(4, 8), (3, 5), (8, 16), (1, 8), (16, 16)])
def test_other_widths_are_qonnx_quantizers_with_these_bits(bits, act_bits):
    model, _ = quantized(conv_net(), bits=bits, act_bits=act_bits)
    quants = [node for node in model.graph if node.domain == QONNX_DOMAIN]
    widths = {view(node.outputs[0]).spec.bits for node in quants}
    assert widths == {bits, act_bits} - {8}
    assert all((node.op_type == "BipolarQuant") == (view(node.outputs[0]).spec.bits == 1) for node in quants)


def test_powers_of_two_everywhere():
    model, _ = quantized(conv_net(), scale="pow2")
    for node in model.graph:
        params = view(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
        if params is not None:
            np.testing.assert_array_equal(np.frexp(params.scale)[0], 0.5)


def test_block_weights_are_dequantized_in_blocks():
    model, _ = quantized(mlp(), weights="block", block_size=8, act="none")
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert [node.attributes["block_size"].as_int() for node in nodes] == [8, 8]


def test_integer_inputs_quantize_the_graph_input_itself():
    model, _ = quantized(conv_net(), io="int8")
    assert [node.op_type for node in model.graph.inputs[0].consumers()] == ["QuantizeLinear"]


# --- how exact it is ---


# Decibel around 6.02 * bits. A quantizer adds noise of step^2 / 12; peaks are 3 to 4 sigma wide (-5 to -7 dB
# each), noises of layers in a row add up (the residual net has seven quantizers), and an average over 36
# positions takes up to 15 dB of noise away again (the conv net ends with one). Scales that are wrong by a
# factor of two miss the lower bounds of the last two nets; a gain above the upper ones cannot be real.
AROUND = {"conv": (0, 15), "residual": (-17, 0), "mlp": (-11, 3)}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bits", [6, 8, 10])
def test_sqnr_follows_the_bit_width(net, bits):
    model, (low, high) = NETS[net](), AROUND[net]
    options = {"bits": bits, "act_bits": bits, "weights": "channel"}
    found = sqnr(model, quantized(model, **options)[0])
    assert 6.02 * bits + low < found < 6.02 * bits + high


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_every_range_method_gives_a_usable_model(method):
    model = conv_net()
    draft, stats = quantized(model, range=method)
    assert sqnr(model, draft) > 6.02 * 8 - 26
    assert stats.details["ranges"] in (
        {"minmax", "moving", "percentile", "entropy", "mse"} if method == "auto" else {method}
    )


OPTIONS = [
    {"signed": True},
    {"signed": True, "symmetric": True},
    {"symmetric": True},
    {"weight_symmetric": False},
    {"weights": "tensor"},
    {"weight_range": "mse"},
    {"act": "dynamic"},
    {"act": "none"},
    {"scale": "pow2"},
    {"rounding": "gptq"},
    {"rounding": "adaround"},
    {"bias_correct": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("net", NETS)
def test_every_option_keeps_eight_bit_quality(net, options):
    model = NETS[net]()
    slack = 8 if {"scale", "symmetric"} & set(options) else 0
    assert sqnr(model, quantized(model, **options)[0]) > 6.02 * 8 - 20 - slack


def test_more_bits_in_weights_alone_help():
    model = mlp()
    found = [sqnr(model, quantized(model, act="none", bits=bits)[0]) for bits in (2, 4, 8, 12)]
    assert all(after > before + 8 for before, after in itertools.pairwise(found))


# --- weights that have their 8 bits already ---


def with_bytes() -> ir.Model:
    q = np.random.default_rng(3).integers(-127, 128, (16, 32)).astype(np.int8)
    return graph(
        """g (float[1,16] x, int8[16,32] w, float[32] s, int8[32] z, float[32] b, float[32,4] v) =>
             (float[1,4] y)
        { wd = DequantizeLinear <axis = 1> (w, s, z)
          [one] h = Gemm (x, wd, b)
          [relu] r = Relu (h)
          [two] y = MatMul (r, v) }""",
        w=q, s=np.full(32, 0.01, np.float32), z=np.zeros(32, np.int8), b=normal(32), v=normal(32, 4),
    )  # fmt: skip


def test_weights_in_bytes_stay_and_their_layer_runs_on_integers():
    before = with_bytes()
    model, _ = quantized(before)
    assert fused(model)["QGemm"] == 1
    assert fused(model)["Gemm"] == 0
    node = next(node for node in model.graph if node.name == "one")
    made = node.inputs[1].producer()
    assert made is not None
    assert np.array_equal(
        made.inputs[0].const_value.numpy(), before.graph.initializers["w"].const_value.numpy()
    )


@pytest.mark.parametrize("options", [{"act_bits": 4}, {"act": "none"}])
def test_weights_in_bytes_are_left_out_where_activations_have_other_widths(options):
    _, stats = quantized(with_bytes(), **options)
    assert "weight 'wd' is already quantized" in {refusal.reason for refusal in stats.refused}
