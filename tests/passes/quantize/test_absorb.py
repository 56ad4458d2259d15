"""Absorbing high biases keeps the function on the data seen and shrinks ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, run, samples

from pared.compiler.data import Samples
from pared.compiler.errors import DataError
from pared.compiler.pass_api import Context
from pared.passes.quantize.absorb import AbsorbBias

TEXT = """g (float[1,3,6,6] x, float[4,3,3,3] a, float[4] ab, float[{shape}] c) => (float[1,m,h,w] y) {{
    p = Conv(x, a, ab) q = Relu(p) y = Conv{attributes}(q, c) }}"""


def network(
    attributes: str = "", shape: tuple[int, ...] = (5, 4, 1, 1)
) -> tuple[ir.Model, Samples, np.ndarray]:
    rng = np.random.default_rng(0)
    model = graph(
        TEXT.format(attributes=attributes, shape=",".join(map(str, shape))),
        a=rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        ab=np.array([100, 0, 40, -50], np.float32),
        c=rng.normal(size=shape).astype(np.float32),
    )
    x = rng.normal(size=(16, 3, 6, 6)).astype(np.float32)
    return model, samples(model, x=x), x


@pytest.mark.parametrize(("attributes", "shape"), [("", (5, 4, 1, 1)), ("<group: int = 4>", (4, 1, 2, 2))])
def test_outputs_on_the_calibration_data_stay(attributes: str, shape: tuple[int, ...]) -> None:
    model, data, x = network(attributes, shape)
    before = run(model, {"x": x[:1]})["y"]
    stats = AbsorbBias().apply(model, Context(calibration=data))
    assert stats.changed == 1
    # Values near 100 times weights below 4, four terms, a few roundings: 8 half ulps of 1600.
    np.testing.assert_allclose(run(model, {"x": x[:1]})["y"], before, rtol=0, atol=8 * 1600 * 6e-8)


def test_the_range_between_the_layers_shrinks() -> None:
    model, data, x = network()
    before = run(model, {"x": x[:1]}, ["q"])["q"].max()
    AbsorbBias().apply(model, Context(calibration=data))
    assert run(model, {"x": x[:1]}, ["q_absorbed"])["q_absorbed"].max() < 0.5 * before


def test_channels_that_reach_zero_keep_their_bias() -> None:
    model, data, _ = network()
    AbsorbBias().apply(model, Context(calibration=data))
    bias = model.graph.initializers["ab"].const_value
    assert bias is not None
    np.testing.assert_array_equal(bias.numpy()[[1, 3]], [0, -50])
    assert bias.numpy()[0] < 50


REFUSED = {
    "<pads: ints = [1,1,1,1]>": "padding of 'n2' is zero, not the absorbed constant",
    '<auto_pad: string = "SAME_UPPER">': "padding of 'n2' is zero, not the absorbed constant",
}


@pytest.mark.parametrize("attributes", REFUSED)
def test_padded_convolutions_are_refused(attributes: str) -> None:
    model, data, _ = network(attributes, (5, 4, 3, 3))
    stats = AbsorbBias().apply(model, Context(calibration=data))
    assert stats.changed == 0
    assert REFUSED[attributes] in [r.reason for r in stats.refused if r.node == "n0"]


def test_a_leaky_relu_is_refused() -> None:
    model, data, _ = network()
    model.graph[1].op_type = "LeakyRelu"
    stats = AbsorbBias().apply(model, Context(calibration=data))
    assert "needs one Relu before 'n2', found ['LeakyRelu']" in [r.reason for r in stats.refused]


def test_without_calibration_data_it_asks_for_them() -> None:
    with pytest.raises(DataError, match="absorb-bias needs representative inputs"):
        AbsorbBias().apply(network()[0], Context())
