"""Calibration data at the edges, refusals, and near misses of the pass `quantize`."""

import numpy as np
import onnx_ir as ir
import pytest
from quantized_nets import conv_net, data, mlp, normal, ops, quantized
from small_models import graph, run, samples

from pared.compiler.errors import DataError, PipelineError
from pared.compiler.pass_api import Context, PassStats
from pared.passes.quantize.quantize import Quantize

# --- calibration data at the edges ---


def test_an_input_of_only_zeros_calibrates():
    model, _ = quantized(mlp(), x=np.zeros((4, 16), np.float32))
    zero = np.zeros((1, 16), np.float32)
    want = run(mlp(), {"x": zero})["y"].shape
    assert run(model, {"x": zero})["y"].shape == want


def test_one_sample_is_enough():
    draft, stats = quantized(conv_net(), x=data(conv_net(), 1), range="auto")
    assert stats.changed > 0
    assert np.isfinite(run(draft, {"x": data(conv_net(), 1)})["y"]).all()


def test_one_sided_inputs_get_zero_point_zero():
    model, _ = quantized(mlp(), x=np.abs(data(mlp())))
    first = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert first.inputs[2].const_value.numpy() == 0


def test_infinite_activations_are_refused_by_name():
    model = mlp()
    with pytest.raises(DataError, match="reaches") as caught:
        quantized(model, x=np.full((2, 16), 3e38, np.float32))
    assert caught.value.reason == "calibration-not-finite"


def test_static_without_data_is_refused():
    with pytest.raises(DataError) as caught:
        Quantize().apply(mlp(), Context())
    assert caught.value.reason == "calibration-missing"


def test_weights_only_and_dynamic_need_no_data():
    for act in ("none", "dynamic"):
        assert Quantize(act=act).apply(mlp(), Context()).changed > 0


# --- refusals and near misses ---


def reasons(stats: PassStats) -> dict[str, str]:
    return {refusal.node: refusal.reason for refusal in stats.refused}


@pytest.mark.parametrize("pattern", ["one", "on.", "o(ne|ther)"])
def test_excluded_nodes_stay_float_and_say_why(pattern):
    model, stats = quantized(mlp(), exclude=(pattern,))
    assert reasons(stats) == {"one": f"excluded by {pattern!r}"}
    kept = next(node for node in model.graph if node.name == "one")
    assert [value.producer() for value in kept.inputs] == [None, None, None]


def test_a_pattern_must_match_the_whole_name():
    assert reasons(quantized(mlp(), exclude=("on", "ne"))[1]) == {}


def test_a_computed_weight_is_refused():
    model = graph(
        """g (float[1,4,4,4] x, float[2,4,1,1] w) => (float[1,2,4,4] y)
        { [twice] w2 = Add (w, w)
          [conv] y = Conv (x, w2) }"""
    )
    ctx = Context(calibration=samples(model, x=normal(2, 4, 4, 4), w=normal(2, 2, 4, 1, 1)))
    stats = Quantize().apply(model, ctx)
    assert (stats.changed, reasons(stats)) == (0, {"conv": "weight 'w2' is not constant"})


def test_a_weight_that_is_an_output_is_refused():
    model = mlp()
    model.graph.outputs.append(model.graph.initializers["w"])
    stats = Quantize().apply(model, Context(calibration=samples(model, x=data(model))))
    assert reasons(stats) == {"one": "weight 'w' is also a graph output"}


def test_a_quantized_model_is_left_alone():
    model, _ = quantized(conv_net())
    stats = Quantize().apply(model, Context(calibration=samples(model, x=data(model))))
    assert stats.changed == 0
    assert "already quantized" in reasons(stats)["one"]


def test_a_shared_weight_is_stored_once_and_read_twice():
    model = graph(
        """g (float[1,8] x, float[8,8] w) => (float[1,8] y)
        { [one] h = MatMul (x, w)
          [two] y = MatMul (h, w) }""",
        w=normal(8, 8, scale=0.4),
    )  # fmt: skip
    draft, _ = quantized(model)
    integers = [
        v for v in draft.graph.initializers.values() if v.dtype == ir.DataType.INT8 and v.shape.rank() == 2
    ]
    assert len(integers) == 1
    assert "w" not in draft.graph.initializers


def test_an_unknown_operator_is_refused_loudly():
    model = graph("g (float[1,4] x) => (float[1,4] y) { [hard] y = Hardmax (x) }")
    stats = Quantize().apply(model, Context(calibration=samples(model, x=normal(2, 4))))
    assert reasons(stats) == {"hard": "no quantization rule for Hardmax; it stays float"}


def test_a_sum_in_the_middle_of_float_stays_float():
    model = graph(
        """g (float[1,8] x, float[8,8] w) => (float[1,8] y)
        { [norm] n = Softmax (x)
          [sum] s = Add (n, x)
          [fc] h = MatMul (s, w)
          [out] y = Add (h, x) }""",
        w=normal(8, 8),
    )  # fmt: skip
    draft, _ = quantized(model)
    assert {node.name for node in draft.graph if node.op_type == "Add"} == {"sum", "out"}
    assert ops(draft)["QuantizeLinear"] == 1


def test_a_dynamic_batch_is_calibrated_in_batches():
    model = graph(
        """g (float[n,16] x, float[16,4] w) => (float[n,4] y) { [fc] y = MatMul (x, w) }""",
        w=normal(16, 4),
    )  # fmt: skip
    draft, stats = quantized(model, x=normal(20, 16))
    assert stats.changed > 0
    assert run(draft, {"x": normal(3, 16)})["y"].shape == (3, 4)


def test_a_node_without_a_name_gets_one():
    model = mlp()
    for node in model.graph:
        node.name = None
    draft, stats = quantized(model)
    assert stats.details["nodes_quantized"] == 2
    assert len({node.name for node in draft.graph}) == len(list(draft.graph))


def test_the_plan_is_attached():
    assert '"node": "one"' in quantized(mlp())[1].attachments["quant_plan.json"]


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 17}, {"act_bits": 1}, {"percentile": 40.0},
                                     {"weights": "block", "bits": 5}, {"act": "dynamic", "bits": 4},
                                     {"scale": "pow2", "weight_symmetric": False}])  # fmt: skip
def test_options_that_cannot_be_had_are_refused(options):
    with pytest.raises(PipelineError):
        Quantize(**options)
