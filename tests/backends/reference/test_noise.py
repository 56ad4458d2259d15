"""Sizes of rounding errors: shortcuts give what the definition gives, and what is exact stays as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pared.backends.reference import derive_bound
from pared.backends.reference.convolution import convolve
from pared.backends.reference.noise import Norms
from pared.backends.reference.windows import box_sums, make_window


@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "pads"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        ((1, 4), (2, 3), (1, 2), (0, 1, 2, 0)),
        ((2, 1), (1, 2), (3, 1), (0,) * 4),
    ],
)
def test_box_sums_are_a_convolution_with_ones(kernel, strides, dilations, pads) -> None:
    x = np.random.default_rng(0).integers(0, 9, (2, 3, 11, 12)).astype(np.float32)
    window = make_window(x.shape[2:], kernel, strides, dilations, pads)
    want = convolve(x, np.ones((3, 1, *kernel), np.float32), window, 3, np.float32)
    assert np.array_equal(box_sums(x, window), want)


def test_norms_of_a_square_constant_and_its_transpose_are_kept_apart() -> None:
    norms = Norms(frozenset({"w"}))
    w = np.arange(9, dtype=np.float32).reshape(3, 3)
    rows, columns = norms("w", w, (-1,)), norms("w", w.T, (-1,))
    assert np.allclose(rows[:, 0] ** 2, [5, 50, 149])
    assert np.allclose(columns[:, 0] ** 2, [45, 66, 93])


def test_norms_of_what_is_no_constant_are_not_kept() -> None:
    norms = Norms()
    assert norms("x", np.full((1, 4), 1.0), (-1,)).item() == 2
    assert norms("x", np.full((1, 4), 2.0), (-1,)).item() == 4


def test_an_infinite_mask_leaves_the_bound_finite() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,4] x, float[1,4] mask) => (float[1,4] y)'
        " { s = Add(x, mask) y = Softmax(s) }"
    )
    inputs = {
        "x": np.array([[1, 2, 3, 4]], np.float32),
        "mask": np.array([[0, 0, -np.inf, -np.inf]], np.float32),
    }
    bound = derive_bound(model, [inputs], 0)["y"]
    assert 0 < bound.atol < 1e-5
