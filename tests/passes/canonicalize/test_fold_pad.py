"""fold-pad: zeros that the next layer can add itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from canon import assert_close, assert_exact, graph, ints, ops, rand, reasons, run

from pared.passes.canonicalize.fold_pad import FoldPad

IMAGE = "g (float[1,3,6,6] x) => (float[1,c,h,w2] y)"
SPATIAL = ints([0, 0, 1, 0, 0, 0, 2, 1])


def refused(before: ir.Model, words: str) -> None:
    after, stats = run(before, FoldPad())
    assert (stats.changed, ops(after)) == (0, ops(before))
    assert words in reasons(stats)[0]


@pytest.mark.parametrize("attributes", ["", "<pads = [1,1,1,1]>", '<auto_pad = "VALID">'])
def test_into_conv(attributes: str) -> None:
    before = graph(f"{IMAGE} {{ u = Pad(x, p)  y = Conv{attributes}(u, w) }}", p=SPATIAL, w=rand(4, 3, 3, 3))
    after, _ = run(before, FoldPad())
    assert ops(after) == ["Conv"]
    assert_close(before, after, 27, 28)


def test_pads_of_named_axes() -> None:
    before = graph(
        f"{IMAGE} {{ u = Pad(x, p, , a)  y = Conv(u, w) }}", p=ints([1, 2]), a=ints([-1]), w=rand(4, 3, 3, 3)
    )
    after, _ = run(before, FoldPad())
    assert list(after.graph[0].attributes["pads"].as_ints()) == [0, 1, 0, 2]
    assert_close(before, after, 27, 28)


def test_into_average_pool_which_then_counts_its_padding() -> None:
    before = graph(f"{IMAGE} {{ u = Pad(x, p)  y = AveragePool<kernel_shape = [3,3]>(u) }}", p=SPATIAL)
    after, _ = run(before, FoldPad())
    assert ops(after) == ["AveragePool"]
    assert_close(before, after, 9, 1)


def test_into_max_pool_of_what_is_not_negative() -> None:
    before = graph(
        f"{IMAGE} {{ r = Relu(x)  u = Pad(r, p)  y = MaxPool<kernel_shape = [3,3]>(u) }}", p=SPATIAL
    )
    after, _ = run(before, FoldPad())
    assert ops(after) == ["Relu", "MaxPool"]
    assert_exact(before, after)


def test_minus_infinity_into_max_pool() -> None:
    before = graph(
        f"{IMAGE} {{ u = Pad(x, p, k)  y = MaxPool<kernel_shape = [3,3]>(u) }}",
        p=SPATIAL, k=np.array(-np.inf, np.float32),
    )  # fmt: skip
    after, _ = run(before, FoldPad())
    assert ops(after) == ["MaxPool"]
    assert_exact(before, after)


def test_zeros_before_max_pool_of_negative_values_are_left() -> None:
    refused(graph(f"{IMAGE} {{ u = Pad(x, p)  y = MaxPool<kernel_shape = [3,3]>(u) }}", p=SPATIAL), "may win")


def test_a_window_of_nothing_but_padding_is_left() -> None:
    before = graph(
        f"{IMAGE} {{ r = Relu(x)  u = Pad(r, p)  y = MaxPool<kernel_shape = [2,2]>(u) }}", p=SPATIAL
    )
    refused(before, "in the padding altogether")


def test_an_average_that_does_not_count_its_own_padding_is_left() -> None:
    before = graph(
        f"{IMAGE} {{ u = Pad(x, p)  y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(u) }}", p=SPATIAL
    )
    refused(before, "does not count")


def test_an_average_in_ceil_mode_is_left() -> None:
    before = graph(
        f"{IMAGE} {{ u = Pad(x, p)  y = AveragePool<kernel_shape = [3,3], ceil_mode = 1>(u) }}", p=SPATIAL
    )
    refused(before, "ceil_mode")


@pytest.mark.parametrize(
    ("pads", "words"),
    [([0, 1, 0, 0, 0, 0, 0, 0], "batch or channels"), ([0, 0, -1, 0, 0, 0, 0, 0], "crops")],
)
def test_other_than_spatial_padding_is_left(pads: list[int], words: str) -> None:
    channels = 3 + pads[1]
    before = graph(f"{IMAGE} {{ u = Pad(x, p)  y = Conv(u, w) }}", p=ints(pads), w=rand(4, channels, 3, 3))
    refused(before, words)


def test_ones_before_conv_are_left() -> None:
    before = graph(
        f"{IMAGE} {{ u = Pad(x, p, k)  y = Conv(u, w) }}",
        p=SPATIAL, k=np.array(1, np.float32), w=rand(4, 3, 3, 3),
    )  # fmt: skip
    refused(before, "fills with 1.0")


def test_reflection_is_left() -> None:
    before = graph(
        f'{IMAGE} {{ u = Pad<mode = "reflect">(x, p)  y = Conv(u, w) }}', p=SPATIAL, w=rand(4, 3, 3, 3)
    )
    refused(before, "its mode is reflect")


def test_same_padding_after_it_is_left() -> None:
    before = graph(
        f'{IMAGE} {{ u = Pad(x, p)  y = Conv<auto_pad = "SAME_UPPER">(u, w) }}', p=SPATIAL, w=rand(4, 3, 3, 3)
    )
    refused(before, "auto_pad SAME_UPPER")


def test_padding_with_a_second_reader_is_left() -> None:
    before = graph(
        """g (float[1,3,6,6] x) => (float[1,c,h,w2] y, float[1,c2,h2,w3] z)
        { u = Pad(x, p)  y = Conv(u, w)  z = Neg(u) }""",
        p=SPATIAL, w=rand(4, 3, 3, 3),
    )  # fmt: skip
    refused(before, "read elsewhere too")


def test_padding_before_other_operators_is_not_listed() -> None:
    before = graph(f"{IMAGE} {{ u = Pad(x, p)  y = Neg(u) }}", p=SPATIAL)
    assert run(before, FoldPad())[1].refused == []
