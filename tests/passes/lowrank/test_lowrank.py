"""lowrank: chains of smaller layers, their cost, their error, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowrank_models import Floats, applied, model_of, outputs, random

from pared.compiler.errors import PipelineError
from pared.compiler.ir.stats import count
from pared.compiler.pass_api import Context
from pared.passes.lowrank.lowrank import REPORT, LowRank
from pared.passes.lowrank.methods import Weights, Window, dense, factor, methods_for


def conv_text(m: int, c: int, k: tuple[int, int], size: tuple[int, int], attributes: str = "") -> str:
    kernel = f"kernel_shape = [{k[0]}, {k[1]}]{attributes}"
    return (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[1,{c},{size[0]},{size[1]}] x)'
        f" => (float[1,{m},p,q] y) {{ y = Conv<{kernel}>(x, w, b) }}"
    )


def mlp(rows: int = 64, inner: int = 48, rank: int | None = None) -> ir.Model:
    w = random(rows, inner)
    if rank is not None:
        w = (random(rows, rank) @ random(rank, inner, seed=1)).astype(np.float32)
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[n,{inner}] x) => (float[n,{rows}] y)'
        " { y = Gemm<transB = 1>(x, w, b) }"
    )
    return model_of(text, w=w, b=random(rows, seed=2))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(3, 3), (1, 1), (3, 1), (1, 3), (5, 3)]),
    st.integers(2, 9),
    st.integers(2, 9),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 2**32 - 1),
)
def test_at_full_rank_every_method_gives_the_layer_back(
    kernel: tuple[int, int],
    m: int,
    c: int,
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    seed: int,
) -> None:
    weight = np.random.default_rng(seed).standard_normal((m, c, *kernel))
    layer = Weights(weight, None, Window(strides, pads, dilations))
    for method in methods_for(weight.shape):
        factored = factor(layer, method)
        stages = factored.stages(len(factored.tail) - 1)
        np.testing.assert_allclose(dense(stages), weight, atol=1e-12)
        assert tuple((s.weight.shape, s.window) for s in stages) == factored.shapes(len(factored.tail) - 1)


@pytest.mark.parametrize("method", ["channel", "spatial", "tucker2"])
@pytest.mark.parametrize(
    "attributes",
    ["", ", pads = [1, 1, 1, 1]", ", strides = [2, 1], pads = [0, 2, 1, 0]", ", dilations = [2, 2]"],
)
def test_a_chain_of_convolutions_computes_its_dense_form(method: str, attributes: str) -> None:
    w = random(24, 20, 3, 3)
    model = model_of(conv_text(24, 20, (3, 3), (9, 11), attributes), w=w, b=random(24))
    after, stats = applied(model, LowRank(method=method, rank=7, round_to=1))  # type: ignore[arg-type]
    assert stats.changed == 1
    stages = factor(Weights(w.astype(np.float64)), method).stages(7)
    same = model_of(conv_text(24, 20, (3, 3), (9, 11), attributes), w=dense(stages), b=random(24))
    x = random(1, 20, 9, 11, seed=5)
    # Sums of at most 20 * 9 products, twice, of rounded weights.
    bound = 8 * 180 * 2**-24 * np.abs(dense(stages)).sum(axis=(1, 2, 3)).max() * np.abs(x).max()
    np.testing.assert_allclose(outputs(after, x), outputs(same, x), rtol=0, atol=bound)


def test_weights_of_low_rank_lose_nothing() -> None:
    model = mlp(rank=5)
    after, stats = applied(model, LowRank(energy=0.999999, round_to=1))
    assert stats.changed == 1
    x = random(7, 48, seed=3)
    np.testing.assert_allclose(outputs(after, x), outputs(model, x), atol=1e-4)
    assert json.loads(stats.attachments[REPORT])[0]["rank"] == 5


def test_the_layer_keeps_its_names_and_bias() -> None:
    after, _ = applied(mlp(rank=5), LowRank(rank=5, round_to=1))
    assert [node.op_type for node in after.graph] == ["MatMul", "Gemm"]
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert set(after.graph.initializers) == {"w_lowrank_0", "w_lowrank", "b"}


def test_whitening_serves_the_directions_that_the_data_takes() -> None:
    model = mlp()
    x = random(64, 8, seed=4) @ random(8, 48, seed=5)  # 8 of 48 directions
    blind, _ = applied(model, LowRank(rank=8, round_to=1, whiten=False), {"x": x})
    seeing, _ = applied(model, LowRank(rank=8, round_to=1), {"x": x})
    want = outputs(model, x)
    assert np.square(outputs(blind, x) - want).sum() > 0.1 * np.square(want).sum()
    assert np.square(outputs(seeing, x) - want).sum() < 1e-6 * np.square(want).sum()


def test_the_loss_told_is_the_loss_seen() -> None:
    model = mlp()
    x = random(200, 48, seed=6) * np.linspace(0.1, 3, 48)
    after, stats = applied(model, LowRank(rank=12, round_to=1), {"x": x})
    told = json.loads(stats.attachments[REPORT])[0]["lost"]
    bias = random(64, seed=2)
    want, got = outputs(model, x) - bias, outputs(after, x) - bias
    seen = np.square(got - want).sum() / np.square(want).sum()
    assert told == pytest.approx(seen, rel=1e-3)


def test_a_budget_is_held() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,16,12,12] x) => (float[1,32,12,12] y)'
        "{ a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w0) r = Relu(a)"
        "  y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w1) }"
    )
    model = model_of(text, w0=random(64, 16, 3, 3), w1=random(32, 64, 3, 3, seed=1))
    for goal in (LowRank(macs=0.4, round_to=2), LowRank(params=0.5, round_to=2)):
        after, _ = applied(model, goal)
        assert count(after).macs <= (goal.macs or 1) * count(model).macs
        assert count(after).parameters <= (goal.params or 1) * count(model).parameters


def test_two_budgets_hold_together() -> None:
    model = mlp(256, 256)
    after, _ = applied(model, LowRank(macs=0.5, params=0.3, round_to=4))
    assert count(after).parameters <= 0.3 * count(model).parameters


def test_a_budget_out_of_reach_names_what_binds() -> None:
    with pytest.raises(PipelineError, match=r"params=0\.001 cannot be reached"):
        applied(mlp(256, 256), LowRank(macs=0.9, params=0.001))


@pytest.mark.parametrize(
    "fields", [{"rank": 4, "macs": 0.5}, {"energy": 1.5}, {"macs": -0.1}, {"round_to": 0}, {"rank": -1}]
)
def test_goals_that_make_no_sense_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PipelineError, match=r"lowrank|must be positive"):
        LowRank(**fields)  # type: ignore[arg-type]


def test_all_macs_leave_the_graph_alone() -> None:
    _, stats = applied(mlp(), LowRank(macs=1.0))
    assert stats.changed == 0


def test_a_layer_too_small_to_gain_is_refused() -> None:
    _, stats = applied(mlp(16, 16), LowRank(energy=0.5))
    assert stats.changed == 0
    assert "no multiple of 16" in stats.refused[0].reason


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        (
            "g (float[1,4,5,5] x) => (float[1,8,3,3] y) { y = Conv<group = 2>(x, w) }",
            {"w": random(8, 2, 3, 3)},
            "2 groups",
        ),
        ("g (float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul(x, w) }", {}, "not a float constant"),
        (
            "g (float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) y = MatMul(a, w) }",
            {"w": random(8, 8)},
            "shared",
        ),
    ],
)
def test_what_has_no_such_form_is_refused(text: str, weights: dict[str, Floats], reason: str) -> None:
    model = model_of(f'<ir_version: 10, opset_import: ["" : 21]> {text}', **weights)
    _, stats = applied(model, LowRank(rank=2, round_to=1))
    assert stats.changed == 0
    assert reason in stats.refused[0].reason


def test_an_excluded_layer_stays() -> None:
    model = mlp(rank=5)
    node = model.graph[0]
    node.name = "head"
    after = model.clone()
    stats = LowRank(rank=5, round_to=1).apply(after, Context(exclude=("head",)))
    assert stats.changed == 0
    assert "excluded by" in stats.refused[0].reason


@pytest.mark.parametrize(("cell", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_a_cell_reads_a_projected_sequence(cell: str, gates: int) -> None:
    hidden, size = 12, 40
    w = (random(gates * hidden, 6) @ random(6, size, seed=1))[None]
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[5,1,{size}] x) => (float[5,1,1,{hidden}] y)'
        f" {{ y = {cell}<hidden_size = {hidden}>(x, w, r) }}"
    )
    model = model_of(text, w=w, r=random(1, gates * hidden, hidden, seed=2))
    after, stats = applied(model, LowRank(rank=6, round_to=1), {"x": random(3, 5, 1, size, seed=3)})
    assert stats.changed == 1
    assert [node.op_type for node in after.graph] == ["MatMul", cell]
    x = random(5, 1, size, seed=4)
    np.testing.assert_allclose(outputs(after, x), outputs(model, x), atol=1e-4)


def test_a_budget_counts_every_turn_of_a_loop() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[6,1,40] x) => (float[6,1,32] y) {'
        " y = Scan<num_scan_inputs = 1, body = b (float[1,40] s) => (float[1,32] t)"
        " { t = MatMul(s, w) }>(x) }"
    )
    model = model_of(text, w=random(40, 32))
    after, _ = applied(model, LowRank(macs=0.5, round_to=1))
    assert count(model).macs == 6 * 40 * 32
    assert 0 < count(after).macs <= 3 * 40 * 32


def test_a_layer_in_a_loop_is_factored_by_what_flows_there() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[6,40] x) => (float[6,32] y) {'
        " y = Scan<num_scan_inputs = 1, body = b (float[40] s) => (float[32] t) {"
        " u = Unsqueeze(s, zero) v = MatMul(u, w) t = Squeeze(v, zero) }>(x) }"
    )
    model = model_of(text, w=random(40, 32), zero=np.zeros(1, np.int64))
    x = random(50, 6, 3, seed=5) @ random(3, 40, seed=6)
    after, stats = applied(model, LowRank(rank=3, round_to=1), {"x": x})
    assert stats.changed == 1
    np.testing.assert_allclose(outputs(after, x[0]), outputs(model, x[0]), atol=1e-3)


def test_without_data_it_is_the_truncated_svd_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    w = random(64, 48)
    after, _ = applied(mlp(), LowRank(rank=12, round_to=1, whiten=False))
    names = ("w_lowrank_0", "w_lowrank")
    right, left = (after.graph.initializers[name].const_value for name in names)
    assert right is not None
    assert left is not None
    peer = decomposition.TruncatedSVD(12, algorithm="arpack").fit(w)
    want = peer.transform(w) @ peer.components_
    np.testing.assert_allclose(left.numpy() @ right.numpy().T, want, atol=1e-5)
