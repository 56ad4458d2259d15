"""Repair without training brings outputs back to the original's; where nothing is broken nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import convnet, given_data, graph, lstm, mlp, normal, ran, run, samples, scan, weight

from pared.compiler.data import Samples
from pared.compiler.errors import DataError, PipelineError
from pared.compiler.ir.text import fingerprint
from pared.compiler.manager import Manager
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context
from pared.passes.prune.bias import BiasCorrect
from pared.passes.prune.reconstruct import Reconstruct
from pared.passes.prune.renormalize import Renormalize

REPAIRS = ["reconstruct", "bias-correct", "renormalize"]


def outputs(model: ir.Model, data: Samples, *values: str) -> dict[str, np.ndarray]:
    """Values over all samples, samples first."""
    session = make_session(model, extra_outputs=values)
    names = [*values, *(str(v.name) for v in model.graph.outputs if v.name not in values)]
    found = [run_session(session, batch, names) for batch in data.batches(1)]
    return {name: np.concatenate([one[name] for one in found]) for name in names}


def error(model: ir.Model, found: ir.Model, data: Samples) -> float:
    name = str(model.graph.outputs[0].name)
    return float(np.mean((outputs(model, data)[name] - outputs(found, data)[name]) ** 2))


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("make", [mlp, convnet, lstm, scan])
def test_nothing_changes_where_nothing_was_pruned(repair: str, make: Callable[[], ir.Model]) -> None:
    model = make()
    found, stats = ran(model, f"prune{{sparsity=0}},{repair}", samples(model))
    assert stats.changed == 0
    assert fingerprint(found) == fingerprint(model)


@pytest.mark.parametrize("make", [mlp, convnet, scan])
def test_reconstruction_lowers_the_error_and_keeps_every_zero(make: Callable[[], ir.Model]) -> None:
    model = make()
    data = samples(model, 128)
    pruned = run(model, "prune{sparsity=0.6}", data)
    found, stats = ran(model, "prune{sparsity=0.6},reconstruct", data)
    assert error(model, found, data) < 0.8 * error(model, pruned, data)
    assert float(stats.details["error_left"]) < 1
    for name in ("w0", "w1", "w"):
        try:
            zeros = weight(pruned, name) == 0
        except KeyError:
            continue
        assert np.array_equal(weight(found, name) == 0, zeros)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-20, 1e15])
def test_inputs_that_never_vary_tell_nothing_of_weights(value: float) -> None:
    model = mlp()
    data = given_data(model, x=np.full((32, 24), value, np.float32))
    pruned = run(model, "prune{sparsity=0.6}", data)
    found = run(model, "prune{sparsity=0.6},reconstruct", data)
    assert np.array_equal(weight(found, "w0"), weight(pruned, "w0"))
    assert error(model, found, data) <= error(model, pruned, data)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_images_do_not_break_a_reconstruction(value: float) -> None:
    model = convnet()
    shape = next(iter(samples(model, 1).batches(1)))["x"].shape[1:]
    data = given_data(model, x=np.full((8, *shape), value, np.float32))
    pruned = run(model, "prune{sparsity=0.6}", data)
    found = run(model, "prune{sparsity=0.6},reconstruct", data)
    assert error(model, found, data) <= error(model, pruned, data)


def test_reconstruction_of_one_layer_is_least_squares_on_the_support() -> None:
    model = mlp(sizes=(12, 5))
    data = samples(model, 200)
    found = run(model, "prune{sparsity=0.5},reconstruct{damping=1e-12}", data)
    x = np.concatenate([b["x"] for b in data.batches(1)]).astype(np.float64)
    y = outputs(model, data)["y"]
    w, b = weight(found, "w0"), weight(found, "b0")
    for row in range(5):
        kept = np.flatnonzero(w[:, row])
        design = np.column_stack([x[:, kept], np.ones(len(x))])
        want = np.linalg.lstsq(design, y[:, row], rcond=None)[0]
        # Moments are sums of products in float32: relative 1e-6, times the condition of the problem (< 1e3).
        np.testing.assert_allclose(np.append(w[kept, row], b[row]), want, atol=2e-3)


def test_a_pruned_weight_that_inputs_can_replace_is_replaced() -> None:
    """The second input equals the first: after pruning it the first takes over, and nothing is lost."""
    model = graph(
        "y = MatMul(x, w)", {"x": (1, 2)}, {"y": (1, 1)}, {"w": np.array([[2.0], [1.0]], np.float32)}
    )

    x = np.repeat(normal(0, 64, 1), 2, axis=1)
    found = run(model, "prune,reconstruct{damping=1e-6}", given_data(model, x=x))
    np.testing.assert_allclose(weight(found, "w"), [[3.0], [0.0]], atol=1e-3)


def test_layers_before_the_first_difference_stay() -> None:
    model = mlp(sizes=(12, 8, 5))
    data = samples(model)
    passes = "prune{sparsity=0.5},reconstruct"
    found = run(model, passes, data, exclude=("gemm0",))
    assert np.array_equal(weight(found, "w0"), weight(model, "w0"))
    assert not np.array_equal(weight(found, "w1"), weight(run(model, "prune", exclude=("gemm0",)), "w1"))


@pytest.mark.parametrize("make", [mlp, convnet])
def test_bias_correction_restores_the_mean_of_every_layer(make: Callable[[], ir.Model]) -> None:
    model = make()
    data = samples(model)
    found = run(model, "prune{sparsity=0.6},bias-correct", data)
    values = [n.outputs[0].name for n in model.graph if n.op_type in ("Conv", "Gemm")]
    want, got = outputs(model, data, *values), outputs(found, data, *values)
    for value in values:
        axes = tuple(i for i in range(want[value].ndim) if i != 1)
        # Means of 64 float32 values of size about 10.
        np.testing.assert_allclose(got[value].mean(axes), want[value].mean(axes), atol=1e-4)


def test_bias_correction_works_behind_quantize() -> None:
    model = mlp(sizes=(24, 32, 10))
    data = samples(model)
    plain = run(model, "prune{sparsity=0.6},quantize", data)
    found = run(model, "prune{sparsity=0.6},quantize,bias-correct", data)
    want, before, after = (outputs(m, data)["y"].mean(axis=0) for m in (model, plain, found))
    assert np.abs(after - want).max() < 0.2 * np.abs(before - want).max()


@pytest.mark.parametrize("make", [mlp, convnet])
def test_renormalizing_restores_mean_and_deviation_of_every_layer(make: Callable[[], ir.Model]) -> None:
    model = make()
    data = samples(model)
    found = run(model, "prune{sparsity=0.5},renormalize", data)
    values = [n.outputs[0].name for n in model.graph if n.op_type in ("Conv", "Gemm")]
    want, got = outputs(model, data, *values), outputs(found, data, *values)
    for value in values:
        axes = tuple(i for i in range(want[value].ndim) if i != 1)
        np.testing.assert_allclose(got[value].mean(axes), want[value].mean(axes), atol=1e-3)
        np.testing.assert_allclose(got[value].std(axes), want[value].std(axes), rtol=1e-3)


def test_statistics_of_a_batchnorm_node_follow_what_flows_in() -> None:
    weights = {
        "w": normal(0, 6, 3, 3, 3), "scale": normal(1, 6), "bias": normal(2, 6),
        "mean": np.zeros(6, np.float32), "var": np.full(6, 27.0, np.float32),
    }  # fmt: skip
    body = "a = Conv(x, w)\n y = BatchNormalization(a, scale, bias, mean, var)"
    model = graph(body, {"x": ("n", 3, 8, 8)}, {"y": ("n", 6, 6, 6)}, weights)
    data = samples(model)
    found = run(model, "prune{sparsity=0.7},renormalize", data)
    want, got = (outputs(m, data)["y"] for m in (model, found))
    np.testing.assert_allclose(got.mean((0, 2, 3)), want.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(got.std((0, 2, 3)), want.std((0, 2, 3)), rtol=1e-3)
    assert np.array_equal(weight(found, "w") == 0, weight(run(model, "prune{sparsity=0.7}"), "w") == 0)


@pytest.mark.parametrize("repair", [Reconstruct(), BiasCorrect(), Renormalize()])
def test_without_data_or_anything_to_repair_there_is_an_error(repair: Reconstruct) -> None:
    model = mlp()
    with pytest.raises(DataError) as info:
        Manager().run(model, [repair], Context())
    assert info.value.reason == "calibration-missing"
    with pytest.raises(PipelineError) as other:
        repair.apply(model.clone(), Context(calibration=samples(model)))
    assert other.value.reason == "repair-nothing"


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"damping": 11.0}, {"samples": 0}])
def test_options_out_of_range_are_errors(options: dict[str, float]) -> None:
    with pytest.raises(PipelineError, match="reconstruct: "):
        Reconstruct(**options)  # type: ignore[arg-type]


def test_few_samples_are_told() -> None:
    model = mlp()
    assert "about 32 " in ran(model, "prune,reconstruct", samples(model, 8))[1].notes[-1]
