"""`prune` zeroes exactly what it says, in every kind of layer, and refuses the rest with the reason."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import convnet, given_data, graph, lstm, mlp, normal, ran, run, samples, scan, weight

from pared.compiler.data import Samples
from pared.compiler.errors import DataError, PipelineError
from pared.compiler.ir.text import fingerprint
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context
from pared.passes.prune import sparsegpt
from pared.passes.prune.prune import Prune
from pared.passes.prune.statistics import collect
from pared.passes.prune.weights import find_weights

CRITERIA = ["magnitude", "wanda", "sparsegpt"]


@pytest.mark.parametrize("options", ["sparsity=0", "sparsity=0 criterion=wanda", "pattern=4:4"])
def test_level_zero_leaves_the_graph_untouched_and_needs_no_data(options: str) -> None:
    model = mlp()
    found, stats = ran(model, f"prune{{{options}}}")
    assert stats.changed == 0
    assert fingerprint(found) == fingerprint(model)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_pruning_again_to_the_same_level_changes_nothing(criterion: str, pattern: str) -> None:
    model = mlp()
    text = f'prune{{criterion={criterion} pattern="{pattern}"}}'
    once = run(model, text, samples(model))
    twice, stats = ran(once, text, samples(model))
    assert stats.changed == 0
    assert fingerprint(twice) == fingerprint(once)


@settings(max_examples=20, deadline=None)
@given(
    sparsity=st.floats(0.01, 1.0),
    scope=st.sampled_from(["global", "layer", "row"]),
    criterion=st.sampled_from(CRITERIA),
)
def test_the_level_is_reached_to_one_element_in_every_pool(
    sparsity: float, scope: str, criterion: str
) -> None:
    if (criterion, scope) == ("sparsegpt", "global"):
        return
    model = mlp()
    found = run(model, f"prune{{criterion={criterion} sparsity={sparsity} scope={scope}}}", samples(model, 8))
    zeros = [weight(found, name) == 0 for name in ("w0", "w1")]
    if scope == "global":
        pools = [np.concatenate([z.ravel() for z in zeros])]
    elif scope == "layer":
        pools = [z.ravel() for z in zeros]
    else:
        pools = [row for z in zeros for row in z.T]  # Gemm stores [inputs, outputs]
    for pool in pools:
        assert abs(pool.sum() - sparsity * pool.size) <= 1.0


@settings(max_examples=20, deadline=None)
@given(
    ratio=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (0, 3)]),
    inputs=st.integers(3, 21),
    criterion=st.sampled_from(CRITERIA),
    refine=st.booleans(),
)
def test_at_most_n_of_m_inputs_stay(
    ratio: tuple[int, int], inputs: int, criterion: str, refine: bool
) -> None:
    keep, of = ratio
    model = mlp(sizes=(inputs, 6, 3))
    extra = " refine=dsnot" if refine and criterion != "sparsegpt" else ""
    found = run(model, f"prune{{criterion={criterion} pattern={keep}:{of}{extra}}}", samples(model, 16))
    rows = weight(found, "w0").T
    for start in range(0, inputs, of):
        group = rows[:, start : start + of]
        assert np.all((group != 0).sum(axis=1) == min(keep, group.shape[1]))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("refine", ["none", "dsnot"])
def test_every_output_keeps_as_many_inputs_as_it_may(criterion: str, refine: str) -> None:
    if (criterion, refine) == ("sparsegpt", "dsnot"):
        return
    model = mlp(sizes=(21, 6, 3))
    text = f"prune{{criterion={criterion} pattern=fan-in-4 refine={refine}}}"
    found = run(model, text, samples(model, 16))
    for name in ("w0", "w1"):
        assert np.all((weight(found, name) != 0).sum(axis=0) == 4)  # Gemm stores [inputs, outputs]


def test_a_fan_in_of_all_inputs_changes_nothing() -> None:
    model = mlp(sizes=(5, 6, 3))
    found = run(model, "prune{pattern=fan-in-9}", samples(model, 16))
    assert all(np.array_equal(weight(found, name), weight(model, name)) for name in ("w0", "w1"))


def test_blocks_go_as_a_whole() -> None:
    model = mlp(sizes=(24, 32, 10))
    blocks = weight(run(model, "prune{pattern=16x1 sparsity=0.75}"), "w0").T.reshape(2, 16, 24)
    alive = (blocks != 0).any(axis=1)
    assert np.array_equal((blocks != 0).all(axis=1), alive)
    assert alive.sum() == 12  # a quarter of 48


def test_a_pattern_is_shared_by_32_outputs_and_another_by_the_next_32() -> None:
    model = mlp(sizes=(16, 64, 5))
    kept = weight(run(model, "prune{pattern=shared32}"), "w0").T.reshape(2, 32, 16) != 0
    assert np.all(kept == kept[:, :1])
    assert np.all(kept.reshape(2, 32, 4, 4).sum(axis=3) == 2)
    assert not np.array_equal(kept[0], kept[1])


def test_magnitude_keeps_the_largest() -> None:
    model = mlp()
    before, after = weight(model, "w0"), weight(run(model, "prune{sparsity=0.7}"), "w0")
    assert np.abs(before[after == 0]).max() <= np.abs(after[after != 0]).min()
    assert np.array_equal(after[after != 0], before[after != 0])


def test_wanda_keeps_a_small_weight_whose_input_is_large() -> None:
    model = mlp(sizes=(4, 3, 2))
    scale = np.array([100.0, 1.0, 1.0, 1.0])
    kept = weight(run(model, "prune{criterion=wanda sparsity=0.75}", samples(model, scale=scale)), "w0") != 0
    assert kept[0].all()
    assert not kept[1:].any()


def test_wanda_on_inputs_of_equal_power_is_magnitude_per_row() -> None:
    model = mlp(sizes=(8, 6, 2))
    data = given_data(model, x=np.eye(8, dtype=np.float32))
    wanda = weight(run(model, "prune{criterion=wanda}", data), "w0")
    assert np.array_equal(wanda, weight(run(model, "prune{scope=row}"), "w0"))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), scope=st.sampled_from(["layer", "row"]), size=st.integers(2, 40))
def test_sparsegpt_on_orthonormal_inputs_is_magnitude(seed: int, scope: str, size: int) -> None:
    model = mlp(seed, (size, 7, 2))

    data = given_data(model, x=np.eye(size, dtype=np.float32))
    exact = weight(run(model, f"prune{{criterion=sparsegpt damping=0 scope={scope}}}", data), "w0")
    assert np.array_equal(exact, weight(run(model, f"prune{{scope={scope}}}"), "w0"))


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_sparsegpt_reaches_the_level_over_several_blocks_of_columns(scope: str) -> None:
    model = mlp(sizes=(300, 7))
    text = f"prune{{criterion=sparsegpt sparsity=0.37 scope={scope}}}"
    zeros = weight(run(model, text, samples(model)), "w0") == 0
    if scope == "row":
        assert np.all(zeros.sum(axis=0) == 111)
    assert zeros.sum() == 777


def test_compensation_does_not_depend_on_how_columns_are_blocked() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 40)) @ rng.normal(size=(40, 40))
    upper = sparsegpt.factor(x.T @ x / 400, 0.01).upper
    weight, gone = rng.normal(size=(9, 40)), rng.random((9, 40)) < 0.5
    whole, parts = weight.copy(), weight.copy()
    sparsegpt.remove(whole, upper, 0, 40, gone)
    for start, end in ((0, 12), (12, 13), (13, 40)):
        sparsegpt.remove(parts, upper, start, end, gone[:, start:end])
    np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-9)


def test_compensation_is_the_best_that_the_columns_to_the_right_can_do() -> None:
    """With the last columns kept, their change minimises the output error: its gradient there is zero."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12))
    gram = x.T @ x / 400
    old = rng.normal(size=(5, 12))
    gone = np.zeros((5, 12), bool)
    gone[:, :5] = True
    new = old.copy()
    sparsegpt.remove(new, sparsegpt.factor(gram, 0.0).upper, 0, 12, gone)
    np.testing.assert_allclose(((new - old) @ gram)[:, 5:], 0.0, atol=1e-8)


def test_zeros_count_before_weights_of_dead_inputs() -> None:
    w = np.array([[2.0, 0.0, 5.0, 3.0]], np.float32).T
    model = graph("y = MatMul(x, w)", {"x": (1, 4)}, {"y": (1, 1)}, {"w": w})
    x = normal(0, 16, 4) * np.array([0, 1, 1, 1], np.float32)
    _, stats = ran(model, "prune{criterion=wanda sparsity=0.25}", given_data(model, x=x))
    assert stats.changed == 0


def _output_error(model: ir.Model, found: ir.Model, data: Samples) -> float:

    a, b = make_session(model), make_session(found)
    return float(np.mean([(run_session(a, x)["y"] - run_session(b, x)["y"]) ** 2 for x in data.batches(1)]))


def test_sparsegpt_has_less_output_error_than_wanda_and_wanda_than_magnitude() -> None:
    model = mlp(sizes=(40, 20))
    scale = np.exp(np.random.default_rng(0).normal(size=40))
    data = samples(model, 200, scale=scale)
    errors = [_output_error(model, run(model, f"prune{{criterion={c}}}", data), data) for c in CRITERIA]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_kind_of_convolution_is_pruned(criterion: str) -> None:
    model = convnet()
    found, stats = ran(model, f"prune{{criterion={criterion} scope=row sparsity=0.5}}", samples(model))
    assert not stats.refused
    for name in ("w0", "w1", "w2"):
        zeros = weight(found, name).reshape(weight(model, name).shape[0], -1) == 0
        assert np.all(np.abs(zeros.sum(axis=1) - zeros.shape[1] / 2) <= 0.5)


def test_a_depthwise_channel_is_judged_by_its_own_input() -> None:
    """One input channel is constant but for its first column: only kernel entries that meet it matter."""
    w = np.ones((2, 1, 1, 2), np.float32)
    model = graph("y = Conv<group=2>(x, w)", {"x": (1, 2, 1, 2)}, {"y": (1, 2, 1, 1)}, {"w": w})

    x = np.array([[[[5.0, 1.0]], [[1.0, 5.0]]]], np.float32)
    data = given_data(model, x=x)
    kept = weight(run(model, "prune{criterion=wanda}", data), "w")[:, 0, 0] != 0
    assert kept.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("op", "directions"), [("LSTM", 1), ("LSTM", 2), ("GRU", 1), ("RNN", 2)])
def test_both_matrices_of_recurrent_cells_are_pruned(criterion: str, op: str, directions: int) -> None:
    model = lstm(op=op, directions=directions)
    found, stats = ran(model, f"prune{{criterion={criterion} scope=layer}}", samples(model))
    assert not stats.refused
    for name in ("w", "r"):
        array = weight(found, name)
        assert abs((array == 0).sum() - array.size / 2) <= 1


def test_hidden_states_of_a_reverse_direction_are_those_before_it_in_its_own_time() -> None:
    """A state once moved stays: forward it is 0, 1, 1, backward, in the order of time, 1, 1, 0."""
    w, r = (np.full((2, 1, 1), 10.0, np.float32) for _ in range(2))
    body = '_, y = RNN<hidden_size=1, direction="bidirectional">(x, w, r)'
    model = graph(body, {"x": (3, 1, 1)}, {"y": (2, 1, 1)}, {"w": w, "r": r})
    x = np.array([0.0, 1.0, 0.0], np.float32).reshape(1, 3, 1, 1)
    stream = collect(model, find_weights(model, []), given_data(model, x=x), Context(), gram=False)
    seen = {found.uses[0].port: inputs for found, inputs in stream}
    # R sees what was before: 0, 0, 1 in both directions; the last state goes nowhere.
    np.testing.assert_allclose(seen[2].mean.ravel(), [1 / 3, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(seen[1].mean.ravel(), [1 / 3, 1 / 3], atol=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_of_scan_bodies_are_pruned(criterion: str) -> None:
    model = scan()
    found, stats = ran(model, f"prune{{criterion={criterion}}}", samples(model))
    assert not stats.refused
    assert (weight(found, "w") == 0).sum() == 30


def test_a_weight_of_two_equal_layers_is_pruned_once_with_the_inputs_of_both() -> None:
    w = np.ones((2, 1), np.float32)
    body = "a = MatMul(x, w)\n b = MatMul(z, w)\n y = Add(a, b)"
    model = graph(body, {"x": (1, 2), "z": (1, 2)}, {"y": (1, 1)}, {"w": w})

    arrays = {"x": np.array([[3.0, 0.0]], np.float32), "z": np.array([[0.0, 4.0]], np.float32)}
    data = given_data(model, **arrays)
    found, stats = ran(model, "prune{criterion=wanda}", data)
    assert weight(found, "w").ravel().tolist() == [0.0, 1.0]
    assert stats.changed == 1


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = MatMul(w, x)", {"w": normal(0, 4, 4)}, "left operand"),
        ("y = MatMul(x, w)", {"w": normal(0, 4, 4, 4)}, "3 dimensions"),
        ("a = MatMul(x, w)\n y = Add(a, w)", {"w": normal(0, 4, 4)}, "also read by Add"),
        ("a = Gemm(x, w)\n y = Gemm<transB=1>(a, w)", {"w": normal(0, 4, 4)}, "different layouts"),
        (
            "d = DequantizeLinear(w, s)\n y = MatMul(x, d)",
            {"w": np.ones((4, 4), np.int8), "s": np.float32(0.5)},
            "quantized already: put prune before quantize",
        ),
        ("w = Relu(x)\n y = MatMul(x, w)", {}, "not constant"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(
    body: str, weights: dict[str, np.ndarray], reason: str
) -> None:
    rank = (4, 4, 4) if any(np.ndim(w) == 3 for w in weights.values()) else (4, 4)
    model = graph(body, {"x": (4, 4)}, {"y": rank}, weights)
    found, stats = ran(model, "prune")
    assert stats.changed == 0
    assert any(reason in r.reason for r in stats.refused)
    assert fingerprint(found) == fingerprint(model)


def test_excluded_layers_stay() -> None:
    model = mlp()
    found, stats = ran(model, "prune", exclude=("gemm0",))
    assert np.array_equal(weight(found, "w0"), weight(model, "w0"))
    assert stats.changed == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparsity": 1.5}, "prune-sparsity"),
        ({"sparsity": -0.1}, "prune-sparsity"),
        ({"pattern": "5:4"}, "prune-pattern"),
        ({"pattern": "0x4"}, "prune-pattern"),
        ({"pattern": "two"}, "prune-pattern"),
        ({"pattern": "2:4", "sparsity": 0.7}, "prune-sparsity"),
        ({"criterion": "sparsegpt", "scope": "global"}, "prune-option"),
        ({"criterion": "sparsegpt", "refine": "dsnot"}, "prune-option"),
        ({"refine": "dsnot", "pattern": "16x1"}, "prune-option"),
        ({"refine": "swap", "scope": "global"}, "prune-option"),
        ({"damping": -1.0}, "prune-option"),
        ({"pattern": "fan-in-0"}, "prune-pattern"),
        ({"pattern": "fan-in-4", "sparsity": 0.5}, "prune-option"),
        ({"pattern": "fan-in-4", "scope": "layer"}, "prune-option"),
    ],
)
def test_impossible_options_are_errors_that_name_the_place(options: dict[str, object], reason: str) -> None:
    with pytest.raises(PipelineError, match="prune: ") as info:
        Prune(**options)  # type: ignore[arg-type]
    assert info.value.reason == reason


@pytest.mark.parametrize("options", ["criterion=wanda", "criterion=sparsegpt", "refine=dsnot"])
def test_statistics_without_data_are_an_error(options: str) -> None:
    with pytest.raises(DataError) as info:
        run(mlp(), f"prune{{{options}}}")
    assert info.value.reason == "calibration-missing"


def test_few_samples_are_told_with_how_many_are_needed() -> None:
    model = mlp(sizes=(24, 4))
    assert "about 24 " in ran(model, "prune{criterion=sparsegpt}", samples(model, 5))[1].notes[-1]
    assert not ran(model, "prune{criterion=sparsegpt}", samples(model, 24))[1].notes


def test_singular_second_moments_are_damped_and_said_so() -> None:
    model = mlp(sizes=(24, 4))
    found, stats = ran(model, "prune{criterion=sparsegpt damping=0}", samples(model, 5))
    assert any("singular" in note for note in stats.notes)
    assert np.isfinite(weight(found, "w0")).all()


def test_the_report_counts_zeros_and_bytes_per_layer() -> None:
    model = mlp()
    _, stats = ran(model, "prune{sparsity=0.9}")
    rows = json.loads(stats.attachments["sparsity.json"])
    assert [r["node"] for r in rows] == ["gemm0", "gemm2"]
    first = rows[0]
    assert (first["elements"], first["nonzeros"], first["dense_bytes"]) == (768, 77, 3072)
    # 77 floats and a bit for each of the 768.
    assert first["stored_bytes"] == 77 * 4 + 96


def test_zeros_stay_zeros_when_weights_are_quantized() -> None:
    model = mlp()
    text = "prune{sparsity=0.6},quantize"
    found = run(model, text, samples(model))
    zeros = weight(run(model, "prune{sparsity=0.6}"), "w0") == 0
    arrays = [v.const_value.numpy() for v in found.graph.initializers.values() if v.const_value is not None]
    stored = next(a for a in arrays if a.shape == zeros.shape)
    assert stored.dtype == np.int8
    assert np.all(stored[zeros] == 0)
