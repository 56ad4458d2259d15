"""Counters of thresholds, traced and executed, against counting itself."""

from __future__ import annotations

import numpy as np
import pytest

from pared.backends.fpga.graph import Requant, Wire
from pared.compiler.errors import UnsupportedOp

da4ml = pytest.importorskip("da4ml")


def requant(thresholds: np.ndarray, sign: int = 1) -> Requant:
    wire = Wire("q", (1,), np.asarray(0), np.asarray(thresholds.size), np.ones(()), np.zeros(()))
    return Requant("quantizer", ("acc",), wire, thresholds[None], np.asarray([sign]), None, 0)


def wrong(thresholds: np.ndarray, low: int, high: int, sign: int = 1) -> int:
    """Return for how many accumulators the hardware counts otherwise than `thresholds` say."""
    from da4ml.trace import FixedVariable, HWConfig, comb_trace

    from pared.backends.fpga.counters import counter

    a = FixedVariable(float(low), float(high), 1.0, hwconf=HWConfig(1, -1, -1))
    count = counter(requant(thresholds, sign), 0, (1, 0), (low, high))(a)
    logic = comb_trace([a], [count], keep_dead_inputs=True)
    rng = np.random.default_rng(0)
    near = np.clip(np.concatenate([thresholds, thresholds - 1]) * sign, low, high)
    x = np.unique(np.concatenate([near, rng.integers(low, high + 1, 2000), [low, high]]))
    got = logic.predict(x[:, None].astype(np.float64), 1)[:, 0]
    return int((got != np.searchsorted(thresholds, sign * x, side="right")).sum())


def rounded(scale: float, levels: int, first: int = 0, offset: float = 0.0) -> np.ndarray:
    """Return where rint(scale * a + offset) reaches first + 1, first + 2, ..."""
    a = np.arange(-(2**19), 2**19)
    codes = np.rint(scale * a + offset)
    return a[np.searchsorted(codes, first + np.arange(1, levels + 1))]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("levels", [7, 100, 127, 255])
def test_lines_of_any_slope_are_counted_beyond_their_last_level(levels: int, sign: int) -> None:
    assert wrong(rounded(0.00091187, levels, offset=3.01), -200_940, 378_420, sign) == 0


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("shift", [1, 4])
@pytest.mark.parametrize("levels", [6, 7, 15])
def test_powers_of_two_round_half_to_even(levels: int, shift: int, first: int) -> None:
    assert wrong(rounded(2.0**-shift, levels, first), -90, 900) == 0


@pytest.mark.parametrize("levels", [20, 63, 255, 300])
def test_curves_are_searched(levels: int) -> None:
    a = np.unique(np.rint(9000 * np.tanh(np.linspace(-2, 2, levels))).astype(np.int64))
    assert wrong(a, -10_000, 10_000) == 0


def test_curves_of_too_many_levels_are_refused() -> None:
    from pared.backends.fpga.counters import counter

    a = np.rint(1e6 * np.tanh(np.linspace(-2, 2, 5000))).astype(np.int64)
    with pytest.raises(UnsupportedOp, match="5000 thresholds") as caught:
        counter(requant(a), 0, (1, 0), (-(2**20), 2**20))
    assert caught.value.reason == "fpga-thresholds"
