"""fold-affine: scales and shifts into the layer before or after them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from canon import assert_close, graph, ops, positive, rand, reasons, run, same_graph

from pared.passes.canonicalize.fold_affine import FoldAffine

CONV = "g (float[1,3,6,6] x) => (float[1,4,4,4] y)"


def folded(before: ir.Model, layers: list[str], terms: int) -> ir.Model:
    after, stats = run(before, FoldAffine())
    assert (ops(after), stats.refused) == (layers, [])
    # Operands are within 2 in magnitude, or divided by at least 0.5.
    assert_close(before, after, terms, 2 * (terms + 2))
    return after


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), ()])
@pytest.mark.parametrize("step", ["Mul(h, k)", "Div(h, k)", "Add(k, h)", "Sub(h, k)", "Sub(k, h)"])
def test_one_value_per_channel_after_conv(step: str, shape: tuple[int, ...]) -> None:
    before = graph(
        f"{CONV} {{ h = Conv(x, w, c)  y = {step} }}",
        w=rand(4, 3, 3, 3), c=rand(4, seed=7), k=np.asarray(positive(*shape)),
    )  # fmt: skip
    folded(before, ["Conv"], 27)


def test_a_chain_of_steps() -> None:
    before = graph(
        f"{CONV} {{ h = Conv(x, w)  i = Mul(h, k)  j = Add(i, l)  y = Sub(j, k) }}",
        w=rand(4, 3, 3, 3), k=positive(4, 1, 1), l=rand(4, 1, 1),
    )  # fmt: skip
    folded(before, ["Conv"], 27)


def test_matmul_and_add_are_gemm() -> None:
    text = "g (float[n,3] x) => (float[n,5] y)"
    weights = {"w": rand(3, 5), "b": rand(5, seed=3)}
    before = graph(f"{text} {{ h = MatMul(x, w)  y = Add(h, b) }}", **weights)
    after, _ = run(before, FoldAffine())
    same_graph(after, graph(f"{text} {{ y = Gemm(x, w, b) }}", **weights))
    assert_close(before, after, 3, 8)


def test_adding_a_bias_leaves_the_weights_untouched() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  y = Add(h, b) }", w=rand(3, 5), b=rand(5)
    )
    after, _ = run(before, FoldAffine())
    assert after.graph.initializers["w"].const_value is before.graph.initializers["w"].const_value


def test_a_scale_after_matmul_of_three_axes() -> None:
    before = graph(
        "g (float[2,4,3] x) => (float[2,4,5] y) { h = MatMul(x, w)  y = Mul(h, k) }",
        w=rand(3, 5), k=positive(5),
    )  # fmt: skip
    folded(before, ["MatMul"], 3)


def test_a_scale_before_a_padded_conv() -> None:
    before = graph(
        "g (float[1,3,6,6] x) => (float[1,4,6,6] y) { h = Mul(x, k)  y = Conv<pads = [1,1,1,1]>(h, w) }",
        w=rand(4, 3, 3, 3), k=positive(3, 1, 1),
    )  # fmt: skip
    folded(before, ["Conv"], 27)


def test_mean_and_deviation_before_an_unpadded_conv() -> None:
    before = graph(
        f"{CONV} {{ h = Sub(x, m)  i = Div(h, k)  y = Conv(i, w) }}",
        w=rand(4, 3, 3, 3), m=rand(1, 3, 1, 1), k=positive(1, 3, 1, 1),
    )  # fmt: skip
    after, _ = run(before, FoldAffine(), FoldAffine())
    assert ops(after) == ["Conv"]
    assert_close(before, after, 27, 4 * 29)


@pytest.mark.parametrize("attributes", ["", "<transB = 1>"])
def test_a_step_before_gemm(attributes: str) -> None:
    before = graph(
        f"g (float[2,3] x) => (float[2,5] y) {{ h = Add(x, k)  y = Gemm{attributes}(h, w, c) }}",
        w=rand(5, 3) if attributes else rand(3, 5), k=rand(3, seed=8), c=rand(5, seed=9),
    )  # fmt: skip
    folded(before, ["Gemm"], 3)


def test_a_scale_before_a_grouped_transposed_conv() -> None:
    before = graph(
        "g (float[1,4,5,5] x) => (float[1,6,7,7] y) { h = Mul(x, k)  y = ConvTranspose<group = 2>(h, w) }",
        w=rand(4, 3, 3, 3), k=positive(4, 1, 1),
    )  # fmt: skip
    folded(before, ["ConvTranspose"], 18)


def refused(before: ir.Model, words: str) -> None:
    after, stats = run(before, FoldAffine())
    assert stats.changed == 0
    assert ops(after) == ops(before)
    assert words in reasons(stats)[0]


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 4, 4), (1, 1, 4, 4), (4, 1, 4)])
def test_a_constant_that_varies_along_other_axes_is_left(shape: tuple[int, ...]) -> None:
    before = graph(f"{CONV} {{ h = Conv(x, w)  y = Mul(h, k) }}", w=rand(4, 3, 3, 3), k=rand(*shape))
    refused(before, "not one value per output channel")


def test_a_constant_that_adds_an_axis_is_left() -> None:
    before = graph(
        "g (float[2,3] x) => (float[1,2,5] y) { h = MatMul(x, w)  y = Add(h, k) }",
        w=rand(3, 5), k=rand(1, 1, 5),
    )  # fmt: skip
    refused(before, "not one value per output channel")


def test_a_bias_after_matmul_of_three_axes_is_left() -> None:
    before = graph(
        "g (float[2,4,3] x) => (float[2,4,5] y) { h = MatMul(x, w)  y = Add(h, k) }", w=rand(3, 5), k=rand(5)
    )
    refused(before, "other than two axes")


def test_a_matrix_added_to_a_product_is_no_bias() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  y = Add(h, k) }", w=rand(3, 5), k=rand(2, 5)
    )
    refused(before, "not one value per output channel")


def test_a_shift_before_a_padded_conv_is_left() -> None:
    before = graph(
        "g (float[1,3,6,6] x) => (float[1,4,6,6] y) { h = Add(x, k)  y = Conv<pads = [1,1,1,1]>(h, w) }",
        w=rand(4, 3, 3, 3), k=rand(3, 1, 1),
    )  # fmt: skip
    refused(before, "padded convolution")


def test_a_shift_before_a_transposed_conv_is_left() -> None:
    before = graph(
        "g (float[1,4,5,5] x) => (float[1,3,7,7] y) { h = Add(x, k)  y = ConvTranspose(h, w) }",
        w=rand(4, 3, 3, 3), k=rand(4, 1, 1),
    )  # fmt: skip
    refused(before, "does not reach all outputs alike")


def test_a_shared_weight_is_left() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,3] y) { h = MatMul(x, w)  i = Mul(h, k)  y = MatMul(i, w) }",
        w=rand(3, 3), k=positive(3),
    )  # fmt: skip
    refused(before, "shared by 2 uses")


def test_a_quantized_weight_is_left() -> None:
    before = graph(
        """g (float[2,3] x) => (float[2,5] y) <float s = {0.5}, int8 z = {0}>
        { w = DequantizeLinear(q, s, z)  h = MatMul(x, w)  y = Mul(h, k) }""",
        q=np.arange(15, dtype=np.int8).reshape(3, 5), k=positive(5),
    )  # fmt: skip
    refused(before, "the weight is not constant")


def test_a_second_reader_is_left() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  i = Mul(h, k)  y = Add(h, i) }",
        w=rand(3, 5), k=positive(5),
    )  # fmt: skip
    refused(before, "2 readers")


def test_a_constant_over_the_layer_is_left() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  y = Div(k, h) }", w=rand(3, 5), k=positive(5)
    )
    after, stats = run(before, FoldAffine())
    assert (ops(after), stats.changed, stats.refused) == (["MatMul", "Div"], 0, [])


def test_arithmetic_without_a_layer_beside_it_is_not_listed() -> None:
    before = graph("g (float[2,3] x) => (float[2,3] y) { y = Mul(x, k) }", k=rand(3))
    assert run(before, FoldAffine())[1].refused == []


def test_scales_that_would_overflow_are_left() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  y = Mul(h, k) }",
        w=rand(3, 5) * np.float32(1e20), k=np.full(5, 1e20, np.float32),
    )  # fmt: skip
    refused(before, "not finite")


def test_bipolar_weights_stay_bipolar() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  y = Mul(h, k) }",
        w=np.sign(rand(3, 5)), k=positive(5),
    )  # fmt: skip
    refused(before, "the weights are integers")


def test_a_bias_after_bipolar_weights_is_folded() -> None:
    before = graph(
        "g (float[2,3] x) => (float[2,5] y) { h = MatMul(x, w)  y = Add(h, k) }",
        w=np.sign(rand(3, 5)), k=positive(5),
    )  # fmt: skip
    folded(before, ["Gemm"], 3)
