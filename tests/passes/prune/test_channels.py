"""`prune-channels` cuts what it says, keeps its budgets, and refuses the rest with the reason."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import convnet, given_data, graph, lstm, mlp, normal, ran, run, samples, weight
from test_channels_graphs import both, solved

from pared.backends.reference import evaluate
from pared.compiler.errors import DataError, PipelineError
from pared.compiler.ir.stats import count
from pared.compiler.ir.text import fingerprint
from pared.compiler.ort import make_session, run_session
from pared.passes.prune.channels import PruneChannels
from pared.passes.prune.channels_refit import eliminate

CRITERIA = ["magnitude", "activation", "refit", "taylor", "datafree", "fpgm"]


def output_error(model: ir.Model, other: ir.Model, data: object) -> float:
    a, b = make_session(model), make_session(other)
    name = str(model.graph.outputs[0].name)
    pairs = [(run_session(a, x)[name], run_session(b, x)[name]) for x in data.batches(1)]  # type: ignore[attr-defined]
    return float(sum(np.square(x - y).sum() for x, y in pairs) / sum(np.square(x).sum() for x, _ in pairs))


def wide(seed: int = 0) -> ir.Model:
    """Gemm, Relu, Gemm with 32 hidden neurons, of which the last 16 repeat the first."""
    half = normal(seed, 24, 16)
    weights = {"w0": np.concatenate([half, half], axis=1), "w1": normal(seed + 1, 32, 10)}
    body = "h = Gemm(x, w0)\n r = Relu(h)\n y = Gemm(r, w1)"
    return graph(body, {"x": ("n", 24)}, {"y": ("n", 10)}, weights)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("fit", ["true", "false"])
def test_half_of_the_neurons_go(criterion: str, fit: str) -> None:
    model = mlp()
    found, stats = ran(model, f"prune-channels{{criterion={criterion} fit={fit}}}", samples(model))
    assert weight(found, "w0").shape == (24, 16)
    assert weight(found, "w1").shape == (16, 10)
    assert stats.details["channels_cut"] == 16
    assert json.loads(stats.attachments["channels.json"]) == [
        {"layer": "gemm0", "channels": 32, "channels_left": 16}
    ]


@pytest.mark.parametrize("options", ["sparsity=0", "macs=1", "params=1", "macs=1 params=1"])
def test_level_zero_leaves_the_graph_untouched(options: str) -> None:
    model = convnet()
    found, stats = ran(model, f"prune-channels{{{options}}}")
    assert stats.changed == 0
    assert fingerprint(found) == fingerprint(model)


def test_magnitude_keeps_the_largest_neurons() -> None:
    model = mlp()
    energy = np.square(weight(model, "w0")).sum(axis=0), np.square(weight(model, "w1")).sum(axis=1)
    worth = energy[0] / energy[0].mean() + energy[1] / energy[1].mean()
    kept = np.sort(np.argsort(worth)[16:])
    found = run(model, "prune-channels{criterion=magnitude}")
    assert np.array_equal(weight(found, "w0"), weight(model, "w0")[:, kept])
    assert np.array_equal(weight(found, "w1"), weight(model, "w1")[kept])


def test_activation_keeps_neurons_that_carry_much() -> None:
    model = graph(
        "h = MatMul(x, w0)\n y = MatMul(h, w1)",
        {"x": (1, 4)},
        {"y": (1, 3)},
        {"w0": np.eye(4, dtype=np.float32), "w1": np.ones((4, 3), np.float32)},
    )
    data = samples(model, scale=np.array([1.0, 100.0, 1.0, 50.0]))
    found = run(model, "prune-channels{criterion=activation round_to=1 fit=false}", data)
    assert np.array_equal(weight(found, "w0"), np.eye(4, dtype=np.float32)[:, [1, 3]])


@pytest.mark.parametrize("criterion", ["refit", "datafree"])
def test_of_two_neurons_that_say_the_same_one_goes(criterion: str) -> None:
    model = wide()
    data = samples(model, 200)
    found = run(model, f"prune-channels{{criterion={criterion}}}", data)
    assert weight(found, "w0").shape == (24, 16)
    if criterion == "refit":
        assert output_error(model, found, data) < 1e-3


def test_fitting_makes_up_for_much_of_what_went() -> None:
    model = mlp(sizes=(24, 32, 32, 10))
    data = samples(model, 200)
    fitted, plain = (
        run(model, f"prune-channels{{criterion=magnitude fit={f}}}", data) for f in ("true", "false")
    )
    assert output_error(model, fitted, data) < 0.6 * output_error(model, plain, data)


def test_elimination_gives_the_least_squares_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12))
    w = rng.normal(size=(5, 12))
    unit_of = np.repeat(np.arange(4), 3)
    losses = eliminate(w, x.T @ x / len(x), unit_of)
    first = min(losses, key=losses.__getitem__)
    left = x[:, unit_of != first]
    y = x @ w.T
    error = y - left @ np.linalg.lstsq(left, y, rcond=None)[0]
    # The damping, 1 % of the mean power, is what they differ by.
    assert losses[first] == pytest.approx(np.square(error).sum() / np.square(y).sum(), rel=0.3)


def test_depthwise_and_grouped_convolutions_follow() -> None:
    model = convnet()
    found, stats = ran(model, "prune-channels{round_to=1 sparsity=0.5}")
    shapes = {name: weight(found, name).shape for name in ("w0", "w1", "w2", "w3")}
    assert shapes == {"w0": (4, 3, 3, 3), "w1": (4, 1, 3, 3), "w2": (4, 2, 1, 1), "w3": (4, 5)}
    groups = [n.attributes["group"].as_int() for n in found.graph if "group" in n.attributes]
    assert groups == [4, 2]
    assert [r.node for r in stats.refused] == ["node 'matmul5' (MatMul)"]


@pytest.mark.parametrize(("goal", "share"), [("macs", 0.5), ("macs", 0.3), ("params", 0.4)])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_budgets_hold(goal: str, share: float, scope: str) -> None:
    model = mlp(sizes=(24, 64, 48, 32, 10))
    found = run(model, f"prune-channels{{{goal}={share} scope={scope} round_to=4}}")
    before, after = count(model), count(found)
    left = after.macs / before.macs if goal == "macs" else after.parameters / before.parameters
    assert 0.5 * share < left <= share


def test_both_budgets_hold_together() -> None:
    model = mlp(sizes=(24, 64, 48, 32, 10))
    found = run(model, "prune-channels{macs=0.6 params=0.4 round_to=1}")
    before, after = count(model), count(found)
    assert after.macs <= 0.6 * before.macs
    assert after.parameters <= 0.4 * before.parameters


def test_channels_that_stay_are_multiples_of_round_to() -> None:
    model = mlp(sizes=(24, 100, 10))
    assert weight(run(model, "prune-channels{sparsity=0.3}"), "w0").shape[1] == 64
    assert weight(run(model, "prune-channels{sparsity=0.3 round_to=1}"), "w0").shape[1] == 70


def attention(heads: int = 4, size: int = 3, *, fused: bool = False) -> ir.Model:
    """Self-attention over 5 tokens, with a residual connection around it."""
    wide = heads * size
    weights = {name: normal(i, 6, wide) for i, name in enumerate("qkv")}
    weights |= {
        "o": normal(4, wide, 6),
        "parts": np.array([1, 5, heads, size]),
        "three": np.array([1, 5, 3, heads, size]),
        "whole": np.array([1, 5, wide]),
        "scale": np.float32(0.5),
        "qkv": normal(9, 6, 3 * wide),
        "i0": np.array(0), "i1": np.array(1), "i2": np.array(2),
        "bias": normal(10, wide),
    }  # fmt: skip
    lines = []
    if fused:
        lines += ["f0 = MatMul(x, qkv)", "f1 = Reshape(f0, three)", "f2 = Transpose<perm=[2,0,3,1,4]>(f1)"]
        lines += [f"{n}2 = Gather<axis=0>(f2, i{i})" for i, n in enumerate("qkv")]
    else:
        for name in "qkv":
            lines += [f"{name}0 = MatMul(x, {name})", f"{name}b = Add({name}0, bias)"]
            lines += [f"{name}1 = Reshape({name}b, parts)", f"{name}2 = Transpose<perm=[0,2,1,3]>({name}1)"]
    lines += [
        "kt = Transpose<perm=[0,1,3,2]>(k2)", "s = MatMul(q2, kt)", "t = Mul(s, scale)",
        "p = Softmax<axis=-1>(t)", "c = MatMul(p, v2)", "c1 = Transpose<perm=[0,2,1,3]>(c)",
        "c2 = Reshape(c1, whole)", "d = MatMul(c2, o)", "y = Add(x, d)",
    ]  # fmt: skip
    used = [name for name in weights if any(f" {name})" in line or f"({name}" in line for line in lines)]
    return graph("\n".join(lines), {"x": (1, 5, 6)}, {"y": (1, 5, 6)}, {n: weights[n] for n in used})


@pytest.mark.parametrize("fused", [False, True])
def test_attention_heads_go_as_a_whole(fused: bool) -> None:
    model = attention(fused=fused)
    found, stats = ran(model, "prune-channels{sparsity=0.5 round_to=1}")
    assert weight(found, "o").shape == (6, 6)
    assert weight(found, "qkv" if fused else "q").shape == (6, 18 if fused else 6)
    assert [r.node.split("'")[1] for r in stats.refused] == [n.name for n in model.graph if n.name][-2:-1]


@pytest.mark.parametrize("fused", [False, True])
def test_attention_without_heads_is_that_with_zeros_behind_them(fused: bool) -> None:
    zeroed, narrow, gone = both(attention(fused=fused), 3)
    assert gone > 0
    x = {"x": normal(5, 1, 5, 6)}
    # The same float64 sums without zeros, rounded once per operator.
    np.testing.assert_allclose(evaluate(narrow, x)["y"], evaluate(zeroed, x)["y"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("op", "directions"), [("LSTM", 1), ("LSTM", 2), ("GRU", 1), ("RNN", 2)])
def test_hidden_units_go_from_all_gates(op: str, directions: int) -> None:
    inner = lstm(op=op, directions=directions)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    weights = {
        "w": normal(0, directions, gates * 6, 5), "r": normal(1, directions, gates * 6, 6),
        "b": normal(2, directions, 2 * gates * 6), "o": normal(3, 6 * directions, 4),
        "shape": np.array([1, 6 * directions]), "start": normal(4, directions, 1, 6),
    }  # fmt: skip
    how = "bidirectional" if directions == 2 else "forward"
    body = f"""
        _, h = {op}<hidden_size=6, direction="{how}">(x, w, r, b, , start)
        t = Transpose<perm=[1,0,2]>(h)
        f = Reshape(t, shape)
        y = MatMul(f, o)
    """
    model = graph(body, {"x": (7, 1, 5)}, {"y": (1, 4)}, weights)
    zeroed, narrow, gone = both(model, 1)
    assert gone > 0
    x = {"x": normal(5, 7, 1, 5)}
    np.testing.assert_allclose(evaluate(narrow, x)["y"], evaluate(zeroed, x)["y"], rtol=1e-5, atol=1e-6)
    found = run(model, "prune-channels{sparsity=0.5 round_to=1}")
    assert weight(found, "r").shape == (directions, gates * 3, 3)
    assert fingerprint(run(inner, "prune-channels")) == fingerprint(inner), "its states are outputs"


def test_layers_that_share_a_weight_agree() -> None:
    weights = {"w": normal(0, 8, 8), "v": normal(1, 8, 3)}
    body = "a = MatMul(x, w)\n b = Relu(a)\n c = MatMul(b, w)\n y = MatMul(c, v)"
    model = graph(body, {"x": (1, 8)}, {"y": (1, 3)}, weights)
    # The columns of w meet the input once, and its own rows the other time.
    _, stats = ran(model, "prune-channels{round_to=1}")
    assert stats.changed == 0
    twice = "a = MatMul(x, w)\n b = MatMul(z, w)\n c = Add(a, b)\n y = MatMul(c, v)"
    model = graph(twice, {"x": (1, 8), "z": (1, 8)}, {"y": (1, 3)}, weights)
    found, stats = ran(model, "prune-channels{round_to=1}")
    assert weight(found, "w").shape == (8, 4)
    assert stats.details["channels_cut"] == 4


def test_equal_biases_of_layers_that_are_cut_differently_come_apart() -> None:
    weights = {"w0": normal(0, 8, 8), "w1": normal(1, 8, 8), "w2": normal(2, 8, 2), "b": normal(3, 8)}
    body = "a = Gemm(x, w0, b)\n r = Relu(a)\n c = Gemm(r, w1, b)\n s = Relu(c)\n y = MatMul(s, w2)"
    model = graph(body, {"x": (1, 8)}, {"y": (1, 2)}, weights)
    found = run(model, "prune-channels{round_to=1}")
    biases = [n.inputs[2].const_value.numpy() for n in found.graph if n.op_type == "Gemm"]  # type: ignore[union-attr]
    assert [len(b) for b in biases] == [4, 4]
    assert not np.array_equal(*biases)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = MatMul(x, w)", {"w": normal(0, 8, 8)}, "output of the graph"),
        ("a = MatMul(x, w)\n b = Add(a, x)\n y = MatMul(b, w)", {"w": normal(0, 8, 8)}, "channels that stay"),
        ("a = MatMul(x, w)\n b = CumSum(a, i)\n y = MatMul(b, v)",
         {"w": normal(0, 8, 8), "v": normal(1, 8, 8), "i": np.array(1)},
         "CumSum 'cumsum1' is not understood"),
        ("a = MatMul(x, w)\n b = Softmax(a)\n y = MatMul(b, v)",
         {"w": normal(0, 8, 8), "v": normal(1, 8, 8)}, "sums over or mixes"),
        ("a = MatMul(x, w)\n b = Add(a, w)\n y = MatMul(b, v)",
         {"w": normal(0, 8, 8), "v": normal(1, 8, 8)}, "also read by Add"),
        ("d = DequantizeLinear(w, s)\n a = MatMul(x, d)\n y = MatMul(a, v)",
         {"w": np.ones((8, 8), np.int8), "s": np.float32(0.5), "v": normal(1, 8, 8)}, "quantized already"),
        ("a = MatMul(x, w)\n s = Shape(a)\n r = Reshape(a, s)\n b = Relu(r)\n y = MatMul(b, v)",
         {"w": normal(0, 8, 8), "v": normal(1, 8, 8)}, "Shape 'shape1'"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_the_reason(
    body: str, weights: dict[str, np.ndarray], reason: str
) -> None:
    model = graph(body, {"x": (8, 8)}, {"y": (8, 8)}, weights)
    found, stats = ran(model, "prune-channels{round_to=1}")
    assert stats.changed == 0
    assert any(reason in r.reason for r in stats.refused), stats.refused
    assert fingerprint(found) == fingerprint(model)


def test_excluded_layers_stay_and_hold_what_they_are_tied_to() -> None:
    model = mlp(sizes=(24, 32, 32, 10))
    found, stats = ran(model, "prune-channels", exclude=("gemm2",))
    assert weight(found, "w1").shape == (32, 32)
    assert stats.changed == 0


def test_values_that_lost_channels_get_names_of_their_own() -> None:
    found = run(mlp(), "prune-channels")
    names = [str(node.outputs[0].name) for node in found.graph]
    assert names == ["h0_cut", "r0_cut", "y"]


@pytest.mark.parametrize(
    "behind", ["bias-correct", "prune{sparsity=0.5},reconstruct", "renormalize", "reconstruct", "quantize"]
)
def test_what_follows_gets_along_with_fewer_channels(behind: str) -> None:
    model = mlp(sizes=(24, 32, 32, 10))
    found, stats = ran(model, f"prune-channels,{behind}", samples(model))
    assert count(found).macs == 24 * 16 + 16 * 16 + 16 * 10
    if behind == "bias-correct":
        assert any("32 channels, not 16" in r.reason for r in stats.refused)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparsity": 1.5}, "channels-goal"),
        ({"sparsity": -0.1}, "channels-goal"),
        ({"macs": 2.0}, "channels-goal"),
        ({"params": float("nan")}, "channels-goal"),
        ({"sparsity": 0.5, "macs": 0.5}, "channels-goal"),
        ({"round_to": 0}, "channels-option"),
    ],
)
def test_impossible_options_are_errors(options: dict[str, object], reason: str) -> None:
    with pytest.raises(PipelineError, match="prune-channels") as info:
        PruneChannels(**options)  # type: ignore[arg-type]
    assert info.value.reason == reason


def test_a_budget_out_of_reach_is_an_error_that_says_what_is_left() -> None:
    with pytest.raises(PipelineError, match=r"macs=0\.001 cannot be reached: .* are left") as info:
        run(mlp(), "prune-channels{macs=0.001 round_to=1}")
    assert info.value.reason == "channels-budget"


@pytest.mark.parametrize("criterion", ["activation", "refit", "taylor"])
def test_criteria_that_look_at_data_need_some(criterion: str) -> None:
    with pytest.raises(DataError) as info:
        run(mlp(), f"prune-channels{{criterion={criterion}}}")
    assert info.value.reason == "calibration-missing"


def test_units_of_separate_layers_are_separate() -> None:
    found, units = solved(mlp(sizes=(4, 5, 6, 3)))
    assert int(units.free.sum()) == 11
    assert len(found.layers) == 3


def test_taylor_measures_what_the_outputs_lose() -> None:
    model = graph(
        "h = MatMul(x, w0)\n z = MatMul(h, w1)\n y = Softmax(z)",
        {"x": (1, 3)},
        {"y": (1, 2)},
        {"w0": np.eye(3, dtype=np.float32), "w1": np.array([[9, 0], [1, 0], [0, 5]], np.float32)},
    )
    data = given_data(model, x=np.ones((4, 3), np.float32))
    found = run(model, "prune-channels{sparsity=0.34 criterion=taylor round_to=1 fit=false}", data)
    assert np.array_equal(weight(found, "w1"), np.array([[9, 0], [0, 5]], np.float32))
