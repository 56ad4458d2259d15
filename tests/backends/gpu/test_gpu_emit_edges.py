"""Attributes of operators at their edges, emulated: whole numbers exactly, the rest within its bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import emulated, model_of

from pared.backends.reference import derive_bound, evaluate

_RNG = np.random.default_rng(0)


def _whole(*shape: int) -> npt.NDArray[np.float32]:
    """Return small whole numbers: their sums of products are exact in every order."""
    return _RNG.integers(-4, 5, shape).astype(np.float32)


# Body, shape of x, shape of y, constants.
_EXACT: dict[str, tuple[str, str, str, dict[str, npt.ArrayLike]]] = {
    "pads at the end alone": (
        "y = Conv<pads = [0, 0, 1, 1]>(x, w)", "1,4,5,6", "1,6,4,5", {"w": _whole(6, 4, 3, 3)},
    ),
    "groups of several channels": ("y = Conv<group = 2>(x, w)", "1,4,5,6", "1,6,3,4",
                                    {"w": _whole(6, 2, 3, 3)}),
    "several results per channel": (
        "y = Conv<group = 4>(x, w)", "1,4,5,6", "1,8,3,4", {"w": _whole(8, 1, 3, 3)},
    ),
    "transposed, padded at the end first": (
        'y = ConvTranspose<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)', "1,4,3,5", "1,2,6,10",
        {"w": _whole(4, 2, 3, 3)},
    ),
    "transposed, padded at the beginning first": (
        'y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', "1,4,3,5", "1,2,6,10",
        {"w": _whole(4, 2, 3, 3)},
    ),
    "transposed and cropped": (
        "y = ConvTranspose<pads = [1, 0, 0, 2]>(x, w)", "1,4,5,6", "1,2,6,6", {"w": _whole(4, 2, 3, 3)},
    ),
    "factors of both summands": (
        "y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", "3,8", "3,5", {"w": _whole(8, 5), "b": _whole(5)},
    ),
    "maximum with a last window beyond the end": (
        "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", "1,4,5,7", "1,4,3,4", {},
    ),
    "no window that begins in the padding": (
        "y = MaxPool<kernel_shape = [2], strides = [3], pads = [0, 1], ceil_mode = 1>(x)", "1,4,6",
        "1,4,2", {},
    ),
    "two scales along an axis": (
        "q = Cast<to = 3>(x)\n y = DequantizeLinear<axis = 1>(q, s)", "3,2", "3,2",
        {"s": np.float32([0.5, 2.0])},
    ),
    "limits of a clip between layer and quantizer": (
        """q = Cast<to = 3>(x)
           r = DequantizeLinear(q, s)
           v = DequantizeLinear(w, s)
           c = MatMul(r, v)
           l = Clip(c, low, high)
           z = QuantizeLinear(l, u, o)
           y = Cast<to = 1>(z)""", "5,8", "5,6",
        {
            "s": np.float32(0.25), "w": _whole(8, 6).astype(np.int8), "low": np.float32(-0.4),
            "high": np.float32(0.7), "u": np.float32(0.1), "o": np.int8(3),
        },
    ),
}  # fmt: skip

_ROUNDED: dict[str, tuple[str, str, str, dict[str, npt.ArrayLike]]] = {
    "average with unlike pads that count": (
        "y = AveragePool<kernel_shape = [3, 3], pads = [0, 1, 2, 1], count_include_pad = 1>(x)",
        "1,4,5,6", "1,4,5,6", {},
    ),
    "average with a last window beyond the end": (
        "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", "1,4,5,7",
        "1,4,3,4", {},
    ),
    "response of an even number of channels": ("y = LRN<size = 4, alpha = 0.5>(x)", "1,6,3,4", "1,6,3,4", {}),
    "groups of channels": (
        "y = GroupNormalization<num_groups = 2>(x, g, h)", "1,6,3,4", "1,6,3,4",
        {"g": _RNG.normal(size=6).astype(np.float32), "h": _RNG.normal(size=6).astype(np.float32)},
    ),
    "layer of several axes": (
        "y = LayerNormalization<axis = 1>(x, g)", "2,3,4", "2,3,4",
        {"g": _RNG.normal(size=(3, 4)).astype(np.float32)},
    ),
    "small norms": ("t = Mul(x, k)\n y = LpNormalization(t)", "3,5", "3,5", {"k": np.float32(1e-3)}),
    "a large epsilon": (
        "y = BatchNormalization<epsilon = 0.5>(x, g, h, m, v)", "1,2,3", "1,2,3",
        {n: np.float32([0.25, 0.5]) for n in "ghmv"},
    ),
}  # fmt: skip


def _run(case: tuple[str, str, str, dict[str, npt.ArrayLike]]) -> tuple[npt.NDArray[np.generic], ...]:
    """Return what the device gives, what the reference gives, and how far they may be apart."""
    body, given, made, constants = case
    model = model_of(body, f"float[{given}] x", f"float[{made}] y", **constants)
    x = {
        "x": np.random.default_rng(1).integers(-9, 10, [int(n) for n in given.split(",")]).astype(np.float32)
    }
    want, bound = evaluate(model, x)["y"], derive_bound(model, [x], seed=0)["y"]
    limit = bound.atol + bound.rtol_of_max * float(np.abs(want).max())
    return emulated(model).run(x)["y"], want, np.asarray(limit)


@pytest.mark.parametrize("name", _EXACT)
def test_whole_numbers_are_exact(name: str) -> None:
    got, want, _ = _run(_EXACT[name])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", _ROUNDED)
def test_the_rest_is_in_its_bound(name: str) -> None:
    got, want, limit = _run(_ROUNDED[name])
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= limit
