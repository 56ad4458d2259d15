"""Lines equal thresholds for every accumulator."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.fpga.folded.lines import Line, find_lines
from pared.backends.fpga.graph import Ints


def counted(line: Line, a: Ints, thresholds: Ints) -> Ints:
    """Return what rtl/requant.v computes."""
    t = line.factor * a + line.bias
    if line.even is not None:
        t = t + (((t >> line.shift) & 1) == line.even)
    count = np.clip(t >> line.shift, 0, thresholds.size)
    reached = a >= np.append(thresholds, np.iinfo(np.int64).max)[count]
    return np.asarray(count + reached if line.refine else count, np.int64)


def equal_everywhere(thresholds: Ints, low: int, high: int, line: Line) -> bool:
    a = np.arange(low, high + 1)
    return np.array_equal(counted(line, a, thresholds), np.searchsorted(thresholds, a, side="right"))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-3000, 0),
    st.integers(1, 3000),
    st.integers(1, 255),
    st.floats(0.01, 1.2),
    st.floats(-0.5, 0.5),
)
def test_the_line_of_a_scale_equals_its_rounding(
    low: int, high: int, levels: int, scale: float, bias: float
) -> None:
    wanted = np.arange(1, levels + 1)
    a = np.arange(low, high + 1)
    codes = np.clip(np.rint(a * np.float32(scale) * 0.1 + bias * levels), 0, levels).astype(np.int64)
    thresholds = low + np.searchsorted(codes, wanted, side="left")
    (line,) = find_lines(thresholds[None], np.array([low]), np.array([high]))
    assert line is not None
    assert equal_everywhere(thresholds, low, high, line)


def test_rounding_half_to_even_needs_no_table() -> None:
    k = np.arange(60)
    thresholds = -800 + 32 * k + k % 2
    (line,) = find_lines(thresholds[None], np.array([-1000]), np.array([1500]))
    assert line is not None
    assert line.even is not None
    assert not line.refine
    assert equal_everywhere(thresholds, -1000, 1500, line)
    assert equal_everywhere(thresholds, -1000, 1500, line.shifted(line.shift + 3))


def test_uneven_thresholds_near_a_line_are_refined() -> None:
    thresholds = np.arange(40) * 25 + np.random.default_rng(0).integers(0, 12, 40)
    (line,) = find_lines(thresholds[None], np.array([-100]), np.array([1100]))
    assert line is not None
    assert line.refine
    assert equal_everywhere(thresholds, -100, 1100, line)


def test_a_curve_has_no_line() -> None:
    thresholds = np.arange(40) ** 3
    assert find_lines(thresholds[None], np.array([-100]), np.array([70_000])) == [None]


def test_a_line_keeps_its_counts_with_a_larger_shift() -> None:
    thresholds = np.array([3, 10, 18, 25])
    (line,) = find_lines(thresholds[None], np.array([-50]), np.array([60]))
    assert line is not None
    assert equal_everywhere(thresholds, -50, 60, line.shifted(line.shift + 5))


def test_a_quantizer_of_one_code_needs_nothing() -> None:
    (line,) = find_lines(np.zeros((1, 0), np.int64), np.array([-5]), np.array([5]))
    assert line is not None
    assert (line.factor, line.bias, line.shift) == (1, 0, 0)


def test_thresholds_that_are_always_or_never_reached_give_small_numbers() -> None:
    for thresholds in (np.array([-90, -80, -60]), np.array([60, 70, 95]), np.array([-70, 80])):
        (line,) = find_lines(thresholds[None], np.array([-50]), np.array([50]))
        assert line is not None
        assert abs(line.bias) < 1 << 20
        assert equal_everywhere(thresholds, -50, 50, line)
