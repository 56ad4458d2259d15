"""fold-batchnorm: into the layer before it, into the layer after it, and where it may not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from canon import assert_close, graph, ops, positive, rand, reasons, run

from pared.passes.canonicalize.fold_batchnorm import FoldBatchnorm

# |scale| <= 1.5 and var >= 0.5, so |a| <= 1.5 / sqrt(0.5) < 2.2; |mean|, |bias| <= 1.
GAIN, OFFSET = 2.2, 4.0
BN = "BatchNormalization({}, s, b, m, v)"


def norm(channels: int) -> dict[str, npt.NDArray[np.float32]]:
    return {
        "s": positive(channels, seed=3), "b": rand(channels, seed=4),
        "m": rand(channels, seed=5), "v": positive(channels, seed=6),
    }  # fmt: skip


def folded(before: ir.Model, layer: str, terms: int) -> ir.Model:
    after, stats = run(before, FoldBatchnorm())
    assert (ops(after), stats.changed, stats.refused) == ([layer], 1, [])
    assert_close(before, after, terms, GAIN * (terms + 1) + OFFSET * (terms + 1))
    return after


@pytest.mark.parametrize("bias", [True, False])
def test_after_conv(bias: bool) -> None:
    extra = {"c": rand(4, seed=7)} if bias else {}
    before = graph(
        f"""g (float[1,3,6,6] x) => (float[1,4,6,6] y)
        {{ h = Conv<pads = [1,1,1,1]>(x, w{", c" if bias else ""})  y = {BN.format("h")} }}""",
        w=rand(4, 3, 3, 3), **norm(4), **extra,
    )  # fmt: skip
    folded(before, "Conv", 27)


def test_after_grouped_conv() -> None:
    before = graph(
        f"g (float[1,4,6,6] x) => (float[1,8,4,4] y) {{ h = Conv<group = 2>(x, w)  y = {BN.format('h')} }}",
        w=rand(8, 2, 3, 3), **norm(8),
    )  # fmt: skip
    folded(before, "Conv", 18)


def test_after_grouped_transposed_conv() -> None:
    before = graph(
        f"""g (float[1,4,5,5] x) => (float[1,6,11,11] y)
        {{ h = ConvTranspose<group = 2, strides = [2,2]>(x, w)  y = {BN.format("h")} }}""",
        w=rand(4, 3, 3, 3), **norm(6),
    )  # fmt: skip
    folded(before, "ConvTranspose", 18)


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0>"])
def test_after_gemm(attributes: str) -> None:
    weight = rand(5, 3) if "transB" in attributes else rand(3, 5)
    before = graph(
        f"g (float[2,3] x) => (float[2,5] y) {{ h = Gemm{attributes}(x, w, c)  y = {BN.format('h')} }}",
        w=weight, c=rand(5, seed=8), **norm(5),
    )  # fmt: skip
    folded(before, "Gemm", 3)


def test_matmul_that_gets_a_bias_becomes_gemm() -> None:
    before = graph(
        f"g (float[2,3] x) => (float[2,5] y) {{ h = MatMul(x, w)  y = {BN.format('h')} }}",
        w=rand(3, 5), **norm(5),
    )  # fmt: skip
    folded(before, "Gemm", 3)


def test_the_layer_takes_the_name_of_the_normalised_value_and_keeps_its_own() -> None:
    before = graph(
        f"g (float[1,3,6,6] x) => (float[1,4,4,4] y)"
        f" {{ [c1] h = Conv(x, w)  [n1] k = {BN.format('h')}  y = Relu(k) }}",
        w=rand(4, 3, 3, 3), **norm(4),
    )  # fmt: skip
    after, _ = run(before, FoldBatchnorm())
    conv = after.graph[0]
    assert (conv.name, conv.outputs[0].name, conv.metadata_props["pared.origin"]) == ("c1", "k", "n1")


def test_before_an_unpadded_grouped_conv() -> None:
    before = graph(
        f"g (float[1,4,6,6] x) => (float[1,6,4,4] y) {{ h = {BN.format('x')}  y = Conv<group = 2>(h, w) }}",
        w=rand(6, 2, 3, 3), **norm(4),
    )  # fmt: skip
    folded(before, "Conv", 18)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_before_a_dense_layer(op: str) -> None:
    before = graph(
        f"g (float[2,4] x) => (float[2,5] y) {{ h = {BN.format('x')}  y = {op}(h, w) }}",
        w=rand(4, 5), **norm(4),
    )  # fmt: skip
    folded(before, "Gemm", 4)


def test_a_pure_scale_goes_into_a_padded_conv() -> None:
    parameters = norm(3) | {"b": np.zeros(3, np.float32), "m": np.zeros(3, np.float32)}
    before = graph(
        f"""g (float[1,3,6,6] x) => (float[1,4,6,6] y)
        {{ h = {BN.format("x")}  y = Conv<pads = [1,1,1,1]>(h, w) }}""",
        w=rand(4, 3, 3, 3), **parameters,
    )  # fmt: skip
    folded(before, "Conv", 27)


def refused(before: ir.Model, words: str) -> None:
    after, stats = run(before, FoldBatchnorm())
    assert stats.changed == 0
    assert "BatchNormalization" in ops(after)
    assert words in reasons(stats)[0]


@pytest.mark.parametrize("padding", ["pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"'])
def test_a_shift_does_not_go_into_a_padded_conv(padding: str) -> None:
    before = graph(
        f"""g (float[1,3,6,6] x) => (float[1,4,6,6] y)
        {{ h = {BN.format("x")}  y = Conv<{padding}>(h, w) }}""",
        w=rand(4, 3, 3, 3), **norm(3),
    )  # fmt: skip
    refused(before, "padded convolution")


def test_a_layer_with_a_second_reader_is_left() -> None:
    before = graph(
        f"""g (float[1,3,6,6] x) => (float[1,4,4,4] y)
        {{ h = Conv(x, w)  k = {BN.format("h")}  y = Add(h, k) }}""",
        w=rand(4, 3, 3, 3), **norm(4),
    )  # fmt: skip
    refused(before, "'h' has 2 readers")


def test_a_layer_whose_value_is_an_output_is_left() -> None:
    before = graph(
        f"g (float[1,3,6,6] x) => (float[1,4,4,4] y, float[1,4,4,4] h)"
        f" {{ h = Conv(x, w)  y = {BN.format('h')} }}",
        w=rand(4, 3, 3, 3), **norm(4),
    )  # fmt: skip
    refused(before, "'h' is also a graph output")


def test_a_shared_weight_is_left() -> None:
    before = graph(
        f"""g (float[1,4,6,6] x) => (float[1,4,6,6] y)
        {{ h = Conv(x, w)  k = {BN.format("h")}  y = Conv(k, w) }}""",
        w=rand(4, 4, 1, 1), **norm(4),
    )  # fmt: skip
    refused(before, "weight 'w' is shared by 2 uses")


def test_a_weight_that_is_an_output_is_left() -> None:
    before = graph(
        f"g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[4,4,1,1] w)"
        f" {{ h = Conv(x, w)  y = {BN.format('h')} }}",
        w=rand(4, 4, 1, 1), **norm(4),
    )  # fmt: skip
    refused(before, "weight 'w' is also a graph output")


def test_a_weight_that_is_an_input_is_left() -> None:
    before = graph(
        f"g (float[1,4,6,6] x, float[4,4,1,1] w) => (float[1,4,6,6] y)"
        f" {{ h = Conv(x, w)  y = {BN.format('h')} }}",
        **norm(4),
    )
    refused(before, "the weight is not constant")


def test_matmul_of_three_axes_is_left_for_other_channels_are_normalised() -> None:
    before = graph(
        f"g (float[2,5,3] x) => (float[2,5,5] y) {{ h = MatMul(x, w)  y = {BN.format('h')} }}",
        w=rand(3, 5), **norm(5),
    )  # fmt: skip
    refused(before, "does not normalise the channels")


def test_training_mode_is_left() -> None:
    before = graph(
        """g (float[1,3,6,6] x) => (float[1,4,4,4] y)
        { h = Conv(x, w)  y, rm, rv = BatchNormalization<training_mode = 1>(h, s, b, m, v) }""",
        w=rand(4, 3, 3, 3), **norm(4),
    )  # fmt: skip
    refused(before, "training mode")


def test_a_negative_variance_is_left() -> None:
    parameters = norm(4) | {"v": np.full(4, -1, np.float32)}
    before = graph(
        f"g (float[1,3,6,6] x) => (float[1,4,4,4] y) {{ h = Conv(x, w)  y = {BN.format('h')} }}",
        w=rand(4, 3, 3, 3), **parameters,
    )  # fmt: skip
    refused(before, "not finite")


def test_bodies_are_folded_too() -> None:
    before = graph(
        f"""g (bool c, float[1,3,6,6] x) => (float[1,4,4,4] y) {{
            y = If(c) <then_branch = t () => (float[1,4,4,4] u) {{ h = Conv(x, w)  u = {BN.format("h")} }},
                       else_branch = e () => (float[1,4,4,4] k) {{ k = Conv(x, w2) }}>
        }}""",
        w=rand(4, 3, 3, 3), w2=rand(4, 3, 3, 3, seed=9), **norm(4),
    )  # fmt: skip
    after, stats = run(before, FoldBatchnorm())
    assert stats.changed == 1
    assert [node.op_type for node in after.graph.all_nodes()] == ["If", "Conv", "Conv"]
    assert_close(before, after, 27, (GAIN + OFFSET) * 28)
