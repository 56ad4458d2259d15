"""The pass `binarize`: what it writes, what it leaves alone and why, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import convnet, given_data, graph, lstm, mlp, normal, ran, run, samples, scan

from pared.backends.reference.evaluator import evaluate
from pared.compiler.errors import DataError, PipelineError
from pared.compiler.ir import walk
from pared.compiler.ort import make_session, run_session
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES

DEEP = (24, 40, 40, 10)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in walk.all_nodes(model)]


def values(model: ir.Model, name: str) -> np.ndarray:
    """What a value is worth on one input."""
    port = model.graph.inputs[0]
    assert port.shape is not None
    x = np.zeros([dim if isinstance(dim, int) else 1 for dim in port.shape], np.float32)
    return evaluate(model, {str(port.name): x}, [name])[name]


def test_the_middle_layer_becomes_one_basis_with_the_mean_magnitude() -> None:
    model = mlp(0, DEEP)
    done = run(model, "binarize{fit=residual ends=keep}")
    w = model.graph.initializers["w1"].const_value
    assert w is not None
    scale = np.abs(w.numpy().astype(np.float64)).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(values(done, "w1"), np.where(w.numpy() >= 0, scale, -scale))


def test_the_ends_get_eight_bits() -> None:
    done, stats = ran(mlp(0, DEEP), "binarize")
    assert ops(done).count("DequantizeLinear") == 2
    assert ops(done).count("BipolarQuant") == 1
    assert {r.node for r in stats.refused} == {"gemm0", "gemm4"}
    assert stats.changed == 3


def test_the_ends_are_kept_or_taken_on_request() -> None:
    assert ops(run(mlp(0, DEEP), "binarize{ends=keep}")).count("DequantizeLinear") == 0
    assert ops(run(mlp(0, DEEP), "binarize{ends=binary}")).count("BipolarQuant") == 3


@pytest.mark.parametrize(
    ("text", "op", "count"), [("bases=3", "BipolarQuant", 3), ("ternary=true", "Quant", 1)]
)
def test_bases_are_summed_quantizers(text: str, op: str, count: int) -> None:
    done = run(mlp(0, DEEP), f"binarize{{{text} ends=keep}}")
    assert ops(done).count(op) == count
    assert ops(done).count("Add") == count - 1


def test_four_bases_are_close_and_one_is_far() -> None:
    model = mlp(0, DEEP)
    w = values(model, "w1")
    errors = [
        float(np.square(values(run(model, f"binarize{{bases={k} fit=als ends=keep}}"), "w1") - w).mean())
        for k in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 20


def test_data_make_outputs_better_than_weights_alone() -> None:
    model = mlp(0, DEEP)
    data = samples(model)
    x = {"x": next(iter(data.batches(64)))["x"]}
    want = evaluate(model, x)["y"]
    als, fitted = (
        float(np.square(evaluate(run(model, f"binarize{{bases=2 fit={fit}}}", data), x)["y"] - want).mean())
        for fit in ("als", "data")
    )
    assert fitted < als / 2


def test_convolutions_become_bases_and_depthwise_ones_are_refused_by_size() -> None:
    weights = {"w0": normal(0, 8, 3, 3, 3), "w1": normal(1, 8, 8, 3, 3), "w2": normal(2, 8, 1, 3, 3)}
    weights["w3"] = normal(3, 4, 8, 1, 1)
    body = """
        a = Conv<pads=[1,1,1,1]>(x, w0)
        b = Conv<pads=[1,1,1,1]>(a, w1)
        c = Conv<pads=[1,1,1,1], group=8>(b, w2)
        y = Conv(c, w3)
    """
    model = graph(body, {"x": (1, 3, 8, 8)}, {"y": (1, 4, 8, 8)}, weights)
    done, stats = ran(model, "binarize{bases=3}", samples(model))
    assert ops(done).count("BipolarQuant") == 3
    (reason,) = (r.reason for r in stats.refused if r.node == "conv2")
    assert reason == "9 weights per output: 128 bytes with 3 bases and scales, 104 in int8"


def test_grouped_convolutions_are_fitted_group_by_group() -> None:
    weights = {f"w{i}": normal(i, 8, 8 // g, 3, 3) for i, g in enumerate((1, 2, 1))}
    body = """
        a = Conv<pads=[1,1,1,1]>(x, w0)
        b = Conv<pads=[1,1,1,1], group=2>(a, w1)
        y = Conv<pads=[1,1,1,1]>(b, w2)
    """
    model = graph(body, {"x": (1, 8, 6, 6)}, {"y": (1, 8, 6, 6)}, weights)
    data = samples(model)
    x = next(iter(data.batches(1)))
    want = evaluate(model, x)["y"]
    als, fitted = (run(model, f"binarize{{bases=2 fit={fit}}}", data) for fit in ("als", "data"))
    assert ops(fitted).count("BipolarQuant") == 2
    errors = [float(np.square(evaluate(done, x)["y"] - want).mean()) for done in (als, fitted)]
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize("text", ["bases=1", "bases=4 format=int8", "ternary=true", "bases=2 ternary=true"])
def test_onnxruntime_computes_what_the_reference_does(text: str) -> None:
    model = run(mlp(0, DEEP), f"binarize{{{text}}}", samples(mlp(0, DEEP)))
    x = {"x": normal(5, 1, 24)}
    got = run_session(make_session(model), x)["y"]
    np.testing.assert_allclose(got, evaluate(model, x)["y"], rtol=1e-4, atol=1e-4)


def test_the_sum_in_eight_bits_is_close_to_the_bases() -> None:
    model = mlp(0, DEEP)
    as_sum, as_bytes = (
        values(run(model, f"binarize{{bases=3 fit=als ends=keep format={f}}}"), "w1")
        for f in ("bases", "int8")
    )
    assert np.abs(as_sum - as_bytes).max() < 0.03 * np.abs(as_sum).max()
    assert len(np.unique(as_bytes[:, 0])) <= 8


def test_recurrent_weights_and_bodies_are_refused() -> None:
    for model in (lstm(), scan()):
        _, stats = ran(model, "binarize{ends=binary}")
        assert stats.changed == 0
        assert stats.refused


def test_excluded_layers_stay() -> None:
    done, stats = ran(mlp(0, DEEP), "binarize{ends=keep}", exclude=("gemm2",))
    assert stats.changed == 0
    assert "BipolarQuant" not in ops(done)


def test_a_shared_weight_is_fitted_by_itself_with_a_note() -> None:
    body = "a = Gemm(x, v)\nb = Gemm(a, w)\nc = Gemm(b, w)\ny = Gemm(c, u)"
    weights = {name: normal(i, 12, 12) for i, name in enumerate("vwu")}
    model = graph(body, {"x": ("n", 12)}, {"y": ("n", 12)}, weights)
    done, stats = ran(model, "binarize", samples(model))
    assert ops(done).count("BipolarQuant") == 1
    assert any("fitted by its weights alone" in note for note in stats.notes)


def test_few_samples_are_noted() -> None:
    model = mlp(0, DEEP)
    _, stats = ran(model, "binarize", samples(model, 8))
    assert any("8 calibration samples are few, about 40" in note for note in stats.notes)


def test_the_report_has_sizes() -> None:
    _, stats = ran(mlp(0, DEEP), "binarize{bases=2}")
    assert stats.details["stored_bytes"] == 40 * (10 + 8)
    assert "binarize.json" in stats.attachments


def test_a_convnet_with_shared_structure_runs() -> None:
    model = convnet()
    x = {"x": normal(3, 1, 3, 8, 8)}
    assert evaluate(run(model, "binarize{ends=binary}", samples(model)), x)["y"].shape == (1, 5)


@pytest.mark.parametrize(
    "text",
    [
        "bases=0",
        "bases=5",
        "bases=3 ternary=true",
        "damping=0",
        "samples=0",
        "fit=best",
        "ends=float",
        "x=1",
        "activations=binary fit=als",
        "activations=2bit format=int8",
        "activations=4bit",
    ],
)
def test_wrong_options_are_refused(text: str) -> None:
    with pytest.raises(PipelineError):
        parse_pipeline(f"binarize{{{text}}}", PASSES, MACROS)


@pytest.mark.parametrize("text", ["fit=data", "activations=binary"])
def test_fitting_to_data_without_data_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="no calibration data") as error:
        run(mlp(0, DEEP), f"binarize{{{text}}}")
    assert error.value.reason == "calibration-missing"


# --- inputs of few bits ---


def test_binary_inputs_are_signs_around_their_means() -> None:
    model = mlp(0, DEEP)
    data = samples(model, 256)
    done = run(model, "binarize{activations=binary act_sqnr=0 ends=keep}", data)
    x = {"x": np.concatenate([batch["x"] for batch in data.batches(64)])}
    node = next(node for node in done.graph if node.name == "gemm2")
    assert node.inputs[0] is not None
    name = str(node.inputs[0].name)
    seen, bits = evaluate(done, x, ["r0", name]).values()
    np.testing.assert_array_equal(bits, np.where(seen - seen.mean(axis=0) >= 0, 1, -1))


def test_two_bits_are_unsigned_behind_relu_and_ternary_elsewhere() -> None:
    relu = mlp(0, DEEP)
    done = run(relu, "binarize{activations=2bit act_sqnr=0 ends=keep}", samples(relu))
    assert [n.attributes["signed"].as_int() for n in done.graph if n.op_type == "Quant"] == [0]
    plain = graph(
        "a = Gemm(x, u)\nb = Gemm(a, v)\ny = Gemm(b, w)",
        {"x": ("n", 32)},
        {"y": ("n", 32)},
        {name: normal(i, 32, 32) for i, name in enumerate("uvw")},
    )
    done = run(plain, "binarize{activations=2bit act_sqnr=0 ends=keep}", samples(plain))
    (quantizer,) = (n for n in done.graph if n.op_type == "Quant")
    assert (quantizer.attributes["signed"].as_int(), quantizer.attributes["narrow"].as_int()) == (1, 1)


def test_inputs_that_would_spoil_a_layer_stay_float_with_the_reason() -> None:
    model = mlp(0, DEEP)
    done, stats = ran(model, "binarize{activations=binary act_sqnr=60 ends=keep}", samples(model, 256))
    assert ops(done).count("BipolarQuant") == 1
    assert "Sub" not in ops(done)
    assert any("inputs stay float: binary ones leave" in r.reason for r in stats.refused)


def test_more_bits_of_inputs_come_closer() -> None:
    model = mlp(0, DEEP)
    data = samples(model, 256)
    x = {"x": np.concatenate([batch["x"] for batch in data.batches(64)])}
    want = evaluate(model, x)["y"]
    errors = [
        float(
            np.square(
                evaluate(run(model, f"binarize{{bases=2 {how} act_sqnr=0}}", data), x)["y"] - want
            ).mean()
        )
        for how in ("activations=binary", "activations=2bit", "")
    ]
    assert errors == sorted(errors, reverse=True)


def test_thresholds_of_a_convolution_are_the_means_of_its_input_channels() -> None:
    weights = {"u": np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1), "v": normal(1, 8, 16, 3, 3)}
    weights |= {"b": np.linspace(-9, 9, 16, dtype=np.float32), "w": normal(2, 4, 8, 1, 1)}
    body = "a = Conv(x, u, b)\nc = Conv(a, v)\ny = Conv(c, w)"
    model = graph(body, {"x": (1, 16, 6, 6)}, {"y": (1, 4, 4, 4)}, weights)
    data = given_data(model, x=normal(3, 40, 16, 6, 6))
    done = run(model, "binarize{activations=binary act_sqnr=0 ends=keep}", data)
    (centred,) = (node for node in done.graph if node.op_type == "Sub")
    threshold = walk.constant(centred.inputs[1])
    assert threshold is not None
    np.testing.assert_allclose(threshold.reshape(-1), weights["b"], atol=0.2)
