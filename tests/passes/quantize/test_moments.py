"""Patches and moments describe exactly what a layer computes."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import graph, run, samples

from pared.compiler.pass_api import Context
from pared.passes.quantize import moments as module
from pared.passes.quantize.moments import Layer, Moments, collect_moments, layer_of

CONVS = {
    "plain": ("", (6, 4, 3, 3)),
    "strided": ("strides: ints = [2, 1], pads: ints = [1, 0, 2, 1]", (6, 4, 3, 2)),
    "dilated": ("dilations: ints = [2, 2], pads: ints = [2, 2, 2, 2]", (6, 4, 3, 3)),
    "same upper": ('auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]', (6, 4, 3, 2)),
    "same lower": ('auto_pad: string = "SAME_LOWER", strides: ints = [2, 2]', (6, 4, 2, 3)),
    "depthwise": ("group: int = 4, pads: ints = [1, 1, 1, 1]", (8, 1, 3, 3)),
    "grouped": ("group: int = 2", (6, 2, 3, 3)),
}


def conv(attributes: str, shape: tuple[int, ...]) -> tuple[object, Layer, np.ndarray]:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kind = f"<{attributes}>" if attributes else ""
    sizes = ",".join(map(str, shape))
    model = graph(
        f"g (float[2,4,9,8] x, float[{sizes}] w) => (float[a,b,c,d] y) {{ y = Conv {kind}(x, w) }}", w=weight
    )
    layer = layer_of(model.graph[0], shape)
    assert isinstance(layer, Layer)
    return model, layer, weight


@pytest.mark.parametrize("kind", CONVS)
def test_patches_times_weights_is_the_convolution(kind: str) -> None:
    model, layer, weight = conv(*CONVS[kind])
    x = np.random.default_rng(1).normal(size=(2, 4, 9, 8)).astype(np.float32)
    patches = layer.patches(x)
    rows = layer.to_matrix(weight).reshape(layer.groups, -1, layer.columns)
    got = np.einsum("gnk,grk->ngr", patches.astype(np.float64), rows).reshape(patches.shape[1], -1)
    y = run(model, {"x": x})["y"]
    want = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
    # k products of values below 6 in float32 on onnxruntime's side.
    np.testing.assert_allclose(got, want, rtol=0, atol=layer.columns * 6 * 6 * np.finfo(np.float32).eps)


def test_gram_form_is_the_mean_squared_output() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 300, 7)).astype(np.float32)
    moments = Moments(1, 7)
    for part in np.array_split(x, 5, axis=1):
        moments.add(part)
    row = rng.normal(size=7)
    # Products are rounded to float32 once each, sums are float64.
    np.testing.assert_allclose(row @ moments.gram[0] @ row, np.mean((x[0] @ row) ** 2), rtol=1e-5)


@pytest.mark.parametrize("second", [True, False])
def test_powers_of_few_and_many_inputs_are_the_same(second: bool) -> None:
    x = np.random.default_rng(3).normal(size=(2, 150, 5)).astype(np.float32)
    moments = Moments(2, 5, second)
    for start in range(0, 150, 7):
        moments.add(x[:, start : start + 7])
    # Sums of 150 float32 products.
    np.testing.assert_allclose(moments.power, np.square(x.astype(float)).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(moments.slim().variance, x.var(axis=1, dtype=float), rtol=1e-4)


def test_covariance_is_what_a_bias_cannot_take_back() -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(1, 400, 5)) + 3.0).astype(np.float32)
    moments = Moments(1, 5)
    moments.add(x)
    row = rng.normal(size=5)
    np.testing.assert_allclose(row @ moments.covariance[0] @ row, np.var(x[0] @ row), rtol=1e-4)


def test_moments_of_samples_do_not_depend_on_how_layers_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(
        "g (float[1,6] x, float[6,5] a, float[5,4] b) => (float[1,4] y) "
        "{ h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        a=np.random.default_rng(4).normal(size=(6, 5)).astype(np.float32),
        b=np.random.default_rng(5).normal(size=(5, 4)).astype(np.float32),
    )
    layers = [layer_of(node, shape) for node, shape in ((model.graph[0], (6, 5)), (model.graph[2], (5, 4)))]
    data = samples(model, x=np.random.default_rng(6).normal(size=(20, 6)).astype(np.float32))
    whole = [m.gram for _, m in collect_moments(model, layers, data, Context())]
    monkeypatch.setattr(module, "GRAM_BUDGET_BYTES", 1)
    for one, other in zip(whole, collect_moments(model, layers, data, Context()), strict=True):
        np.testing.assert_array_equal(one, other[1].gram)


def test_layouts_without_a_matrix_are_refused_with_the_reason() -> None:
    model = graph(
        "g (float[2,3,4] x, float[2,4,5] w) => (float[2,3,5] y) { y = MatMul(x, w) }",
        w=np.ones((2, 4, 5), np.float32),
    )
    assert (
        layer_of(model.graph[0], (2, 4, 5)) == "MatMul weight has 3 dimensions, layer reconstruction needs 2"
    )
    model = graph(
        "g (float[1,3,4] x, float[3,2,2] w) => (float[a,b,c] y) { y = ConvTranspose(x, w) }",
        w=np.ones((3, 2, 2), np.float32),
    )
    assert layer_of(model.graph[0], (3, 2, 2)) == "no layer reconstruction for ConvTranspose"
