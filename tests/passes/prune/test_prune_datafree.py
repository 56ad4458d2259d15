"""Channels go without data; what they did is taken over by the others, in closed form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import convnet, graph, mlp, normal, ran, run, weight

from pared.compiler.errors import PipelineError
from pared.compiler.ir.text import fingerprint
from pared.compiler.ort import make_session, run_session
from pared.passes.prune.datafree import PruneDatafree
from pared.passes.prune.gaussian import rectified


def net(seed: int = 0, norm: bool = True) -> ir.Model:
    """Two convolutions, the first with BatchNorm; its channels are normal behind it for normal inputs."""
    w = normal(seed, 16, 4, 3, 3)
    w[8:] = w[:8] + 0.4 * w[8:]  # channels that resemble each other, as trained ones do
    weights = {
        "w": w, "scale": np.abs(normal(seed + 1, 16)) + 0.2, "bias": normal(seed + 2, 16),
        "mean": np.zeros(16, np.float32), "var": np.square(w).sum(axis=(1, 2, 3)),
        "v": normal(seed + 3, 5, 16, 3, 3),
    }  # fmt: skip
    body = "a = Conv(x, w)\n n = BatchNormalization(a, scale, bias, mean, var)\n r = Relu(n)\n y = Conv(r, v)"
    return graph(body, {"x": (1, 4, 12, 12)}, {"y": (1, 5, 8, 8)}, weights)


def error(model: ir.Model, found: ir.Model) -> float:
    """Squared error on normal inputs, relative to the variance of the output."""
    x = {"x": np.random.default_rng(7).normal(size=(1, 4, 12, 12)).astype(np.float32)}
    want, got = (run_session(make_session(m), x)["y"] for m in (model, found))
    return float(np.mean((want - got) ** 2) / np.var(want))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tail", ["", ",quantize{bits=6 act=none}"])
def test_repair_halves_the_error_of_pruning_with_and_without_quantization(seed: int, tail: str) -> None:
    model = net(seed)
    bits = " bits=6" if tail else ""
    plain = run(model, "canonicalize,prune-datafree{repair=false}" + tail)
    found = run(model, f"estimate-channels,canonicalize,prune-datafree{{sparsity=0.3{bits}}}{tail}")
    assert error(model, found) < 0.5 * error(model, plain)


def test_statistics_of_batchnorm_make_the_repair_better() -> None:
    errors = np.zeros(2)
    for seed in range(6):
        model = net(seed)
        for index, head in enumerate(("", "estimate-channels,")):
            errors[index] += error(model, run(model, head + "canonicalize,prune-datafree"))
    assert errors[1] < errors[0]


def test_a_channel_that_is_twice_another_costs_nothing_without_statistics() -> None:
    """relu(2 z) = 2 relu(z): the linear assumption holds, whichever of the two goes."""
    w = normal(0, 3, 6)
    w[1] = 2 * w[0]
    b = np.array([0.5, 1.0, -0.3], np.float32)
    body = "h = Gemm<transB=1>(x, w, b)\n r = Relu(h)\n y = MatMul(r, v)"
    w[2] *= 100  # so that one of the other two goes
    model = graph(body, {"x": (4, 6)}, {"y": (4, 2)}, {"w": w, "b": b, "v": normal(1, 3, 2)})
    found = run(model, "prune-datafree{sparsity=0.34 damping=1e-9}")
    assert (weight(found, "w") == 0).all(axis=1).sum() == 1
    x = {"x": normal(5, 4, 6)}
    want, got = (run_session(make_session(m), x)["y"] for m in (model, found))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1), repair=st.booleans())
def test_the_share_of_channels_goes_with_weights_bias_and_readers(share: float, repair: bool) -> None:
    model = run(net(), "canonicalize")
    found = run(model, f"prune-datafree{{sparsity={share} repair={str(repair).lower()}}}")
    folded = next(node for node in found.graph if node.op_type == "Conv").inputs[1]
    dead = (weight(found, str(folded.name if folded else "")) == 0).all(axis=(1, 2, 3))
    assert dead.sum() == int(np.floor(share * 16 + 0.5))
    assert np.all(weight(found, "v")[:, dead] == 0)
    biases = [v.const_value.numpy() for v in found.graph.initializers.values() if v.shape == ir.Shape([16])]
    assert all(np.all(bias[dead] == 0) for bias in biases)


def test_flattened_positions_of_a_channel_stay_apart() -> None:
    weights = {"w": normal(0, 4, 1, 1, 1), "v": normal(1, 16, 3), "shape": np.array([1, 16])}
    weights["w"][:, 0, 0, 0] = [1.0, 2.0, 4.0, 8.0]
    body = "a = Conv(x, w)\n r = Relu(a)\n f = Reshape(r, shape)\n y = MatMul(f, v)"
    model = graph(body, {"x": (1, 1, 2, 2)}, {"y": (1, 3)}, weights)
    found = run(model, "prune-datafree{sparsity=0.25 damping=1e-9}")
    x = {"x": normal(3, 1, 1, 2, 2)}
    want, got = (run_session(make_session(m), x)["y"] for m in (model, found))
    np.testing.assert_allclose(got, want, atol=1e-4)  # all channels are multiples of one input


@pytest.mark.parametrize("head", ["", "estimate-channels,"])
def test_pruning_again_changes_nothing(head: str) -> None:
    model = net()
    text = head + "canonicalize,prune-datafree"
    once = run(model, text)
    twice, stats = ran(once, "prune-datafree")
    assert stats.changed == 0
    assert fingerprint(twice) == fingerprint(once)


def test_level_zero_leaves_the_graph_untouched() -> None:
    model = net()
    found, stats = ran(model, "prune-datafree{sparsity=0}")
    assert stats.changed == 0
    assert fingerprint(found) == fingerprint(model)


def test_noting_channel_statistics_changes_nothing() -> None:
    model = net()
    found, stats = ran(model, "estimate-channels")
    assert stats.details["values"] == 1
    assert fingerprint(found) == fingerprint(model)


def test_groups_and_outputs_are_refused_with_the_reason() -> None:
    _, stats = ran(convnet(), "prune-datafree")
    reasons = " ".join(r.reason for r in stats.refused)
    assert "has groups" in reasons
    _, stats = ran(mlp(sizes=(4, 3)), "prune-datafree")
    assert "graph output" in stats.refused[0].reason


@pytest.mark.parametrize("options", [{"sparsity": 1.1}, {"bits": 1}, {"damping": 0.0}, {"bias_weight": -1.0}])
def test_options_out_of_range_are_errors(options: dict[str, float]) -> None:
    with pytest.raises(PipelineError, match="prune-datafree: "):
        PruneDatafree(**options)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(
    m=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    s=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    r=st.floats(-0.95, 0.95),
)
def test_moments_of_rectified_normals_are_those_of_samples(
    m: tuple[float, float], s: tuple[float, float], r: float
) -> None:
    found = rectified(np.array(m), np.array(s))
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 50_000))
    z = np.array([m[0] + s[0] * first, m[1] + s[1] * (r * first + np.sqrt(1 - r * r) * other)])
    y = np.maximum(z, 0)
    # Five standard errors of 50 000 samples, and what four terms of the series leave (below 2 % of s s).
    np.testing.assert_allclose(found.mean, y.mean(axis=1), atol=5 * max(s) / 223)
    slack = 5 * 3 * max(s) ** 2 / 223 + 0.02 * s[0] * s[1]
    assert abs(found.covariance(found, np.array([[1, r], [r, 1]]))[0, 1] - np.cov(y)[0, 1]) < slack
    assert abs(found.covariance(found, np.eye(2))[0, 0] - y[0].var()) < slack
