"""Layer comparison on a small chain with known faults."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from pared.compiler.backend import Port, Signature
from pared.compiler.data import Samples, open_samples
from pared.compiler.verify import layers
from pared.compiler.verify.layers import Noise, compare_layers

RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 4)).astype(np.float32)
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,4] x) => (float[1,4] y)
<float[4,4] w1 = {%s}, float[4,4] w2 = {%s}> {
  [one] h1 = MatMul(x, w1)
  [two] h2 = Relu(h1)
  [three] h3 = MatMul(h2, w2)
  [four] y = Add(h3, x)
}"""
W = [RNG.normal(size=(4, 4)).astype(np.float32) for _ in range(2)]


def chain(w1: np.ndarray, w2: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(TEXT % tuple(", ".join(map(repr, map(float, w.ravel()))) for w in (w1, w2)))
    for node in model.graph:
        for value in node.outputs:
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([1, 4])
    return model


def samples(x: np.ndarray = X) -> Samples:
    return open_samples({"x": x}, Signature((Port("x", "FLOAT", (1, 4)),), ()), purpose="test")


def test_equal_models_have_no_noise() -> None:
    report = compare_layers(chain(*W), chain(*W), samples())
    assert [layer.value for layer in report.layers] == ["h1", "h2", "h3", "y"]
    assert all(layer.sqnr_db == math.inf and layer.added_noise == 0 for layer in report.layers)
    assert (report.first_hurt, report.unmatched, report.samples) == (None, 0, 6)


def test_the_sabotaged_layer_is_the_first_hurt_and_adds_most() -> None:
    broken = W[1].copy()
    broken[0] *= 3
    report = compare_layers(chain(*W), chain(W[0], broken), samples())
    assert report.first_hurt == "h3"
    assert report.most_hurt(1)[0].node == "three"
    assert [layer.sqnr_db for layer in report.layers[:2]] == [math.inf, math.inf]


def test_ratio_and_difference_are_those_of_numpy_over_all_samples() -> None:
    w1 = W[0] + np.float32(0.01)
    report = compare_layers(chain(*W), chain(w1, W[1]), samples())
    want, got = X.astype(np.float64) @ W[0], X.astype(np.float64) @ w1
    noise = np.sum((got - want) ** 2)
    layer = report.layers[0]
    assert layer.sqnr_db == pytest.approx(10 * math.log10(np.sum(want**2) / noise), abs=1e-3)
    assert layer.max_difference == pytest.approx(np.abs(got - want).max(), rel=1e-4)
    assert layer.max_reference == pytest.approx(np.abs(want).max(), rel=1e-6)


def test_names_map_payload_names_to_original_ones() -> None:
    compiled = chain(W[0] * 2, W[1])
    compiled.graph[0].outputs[0].name = "a"
    assert [n.value for n in compare_layers(chain(*W), compiled, samples()).layers] == ["h2", "h3", "y"]
    report = compare_layers(chain(*W), compiled, samples(), names={"a": "h1"})
    assert report.layers[0].value == "h1"
    assert report.layers[0].sqnr_db == pytest.approx(0, abs=1e-6)


def test_values_divided_per_channel_are_multiplied_back() -> None:
    divisor = np.array([0.5, 2.0, 4.0, 8.0], np.float32)
    compiled = chain(W[0] / divisor, W[1] * divisor[:, None])
    names, divisors = {"h1": "h1", "h2": "h2"}, {"h1": divisor, "h2": divisor}
    report = compare_layers(chain(*W), compiled, samples(), names=names, divisors=divisors)
    assert all(layer.sqnr_db > 120 for layer in report.layers)
    assert compare_layers(chain(*W), compiled, samples()).first_hurt == "h1"


def test_values_of_another_shape_are_not_compared() -> None:
    text = (
        TEXT.replace("[two] h2 = Relu(h1)", "[two] r = Relu(h1)\n h2 = Unsqueeze(r, a)")
        .replace("[three] h3 = MatMul(h2, w2)", "s = Squeeze(h2, a)\n [three] h3 = MatMul(s, w2)")
        .replace("{%s}> {", "{%s}, int64[1] a = {0}> {")
    )
    numbers = tuple(", ".join(map(repr, map(float, w.ravel()))) for w in W)
    report = compare_layers(chain(*W), ir.from_onnx_text(text % numbers), samples())
    assert "h2" not in [layer.value for layer in report.layers]
    assert report.unmatched == 1


def test_chunks_give_the_same_report(monkeypatch: pytest.MonkeyPatch) -> None:
    models = chain(*W), chain(W[0] + np.float32(0.1), W[1])
    whole = compare_layers(*models, samples())
    monkeypatch.setattr(layers, "CHUNK_VALUES", 1)
    seen: list[tuple[str, int, int]] = []
    assert compare_layers(*models, samples(), progress=lambda *step: seen.append(step)) == whole
    assert seen[-1] == ("layers", 24, 24)
    assert len(seen) == 24


def test_noise_of_masked_infinities_is_none() -> None:
    noise = Noise()
    noise.add(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0]))
    assert noise.sqnr_db == math.inf


@pytest.mark.parametrize("got", [np.nan, np.inf])
def test_noise_that_is_not_finite_is_as_bad_as_can_be(got: float) -> None:
    noise = Noise()
    noise.add(np.array([1.0, 2.0]), np.array([1.0, got]))
    assert noise.sqnr_db == -math.inf
    assert noise.max_difference == math.inf


def test_noise_without_signal_is_as_bad_as_can_be() -> None:
    noise = Noise()
    noise.add(np.zeros(2), np.ones(2))
    assert noise.sqnr_db == -math.inf


def test_any_source_of_batches_will_do() -> None:
    class Two:
        def __len__(self) -> int:
            return 2

        def batches(self, size: int = 1) -> Iterator[dict[str, np.ndarray]]:
            yield from ({"x": X[:1]}, {"x": X[1:2]})

    assert compare_layers(chain(*W), chain(*W), Two()).samples == 2
