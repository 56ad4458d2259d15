"""Chains of constant multiplications equal thresholds, and hls4ml's types are what the plan says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.fpga.graph import Ints
from pared.backends.fpga.hls4ml.affine import Rows, code_chain, find_chain, rising
from pared.backends.fpga.hls4ml.formats import Affine, Format, apply, holding

WIDE = 100_000


def quantizer(slope: float, shift: int, start: int, levels: int) -> list[int]:
    """Return the thresholds of `clip(rint(slope * (a + shift)), start, start + levels)`."""
    a = np.arange(-WIDE, WIDE)
    codes = np.clip(np.rint((a + shift) * slope) - start, 0, levels)
    return [int(a[np.argmax(codes >= k)]) if codes[-1] >= k else WIDE for k in range(1, levels + 1)]


def run(chain: list[Affine], a: Ints) -> Ints:
    for step in chain:
        a = apply(step, a)
    return a


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, -1]), st.integers(-400, 400)), min_size=1, max_size=4),
    st.one_of(
        st.sampled_from([2.0**-s for s in range(7)]),
        st.integers(2, 1000).map(lambda n: 1 / (n + 0.318309886)),
    ),
    st.sampled_from([0, -8, -128, -7, 3, -100]),
    st.sampled_from([1, 2, 3, 7, 15, 200, 255]),
    st.sampled_from([1, 2]),
    st.tuples(st.integers(-3000, -1), st.integers(0, 3000)),
)
def test_a_chain_gives_the_codes_of_its_thresholds(
    rows: list[tuple[int, int]], slope: float, start: int, levels: int, step: int, ends: tuple[int, int]
) -> None:
    thresholds = np.array([quantizer(slope, shift, start, levels) for _, shift in rows], np.int64)
    sign = np.array([s for s, _ in rows], np.int64)
    low, high = (np.full(len(rows), end) for end in ends)
    chain = find_chain(Rows(thresholds, sign, low, high, start, step))
    assert chain is not None, "a line has a chain"
    a = np.arange(ends[0], ends[1] + 1)
    want = [
        start + step * np.searchsorted(t, s * a, side="right") for t, s in zip(thresholds, sign, strict=True)
    ]
    np.testing.assert_array_equal(run(chain, np.stack([a] * len(rows), 1)), np.stack(want, 1))


def test_rounding_half_to_even_of_a_power_of_two_is_one_assignment() -> None:
    thresholds = np.array([quantizer(0.25, 0, -8, 15)], np.int64)
    chain = find_chain(Rows(thresholds, np.ones(1, np.int64), np.full(1, -99), np.full(1, 99), -8, 1))
    assert chain is not None
    assert [one.result.text for one in chain] == ["fixed<4,4,RND_CONV,SAT>"]


def test_thresholds_on_no_line_have_no_chain() -> None:
    thresholds = np.array([[0, 1, 2, 50, 51, 400]], np.int64)
    rows = Rows(thresholds, np.ones(1, np.int64), np.full(1, -500), np.full(1, 500), 0, 1)
    assert find_chain(rows) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-50, 50), min_size=5, max_size=5), min_size=1, max_size=3),
    st.sampled_from([1, -1]),
    st.integers(-9, 9),
    st.sampled_from([1, 2]),
)
def test_any_thresholds_are_a_table_and_a_step(
    table: list[list[int]], last: int, start: int, step: int
) -> None:
    sign = np.ones(len(table), np.int64)
    sign[-1] = last
    low, high = (np.full(len(table), end) for end in (-99, 99))
    rows = Rows(np.sort(np.array(table, np.int64)), sign, low, high, start, step)
    a = np.arange(-99, 100)
    counts = np.stack([np.searchsorted(row, a, side="right") for row in rising(rows)], 1)
    want = [
        start + step * np.searchsorted(t, s * a, side="right")
        for t, s in zip(rows.thresholds, sign, strict=True)
    ]
    np.testing.assert_array_equal(run(code_chain(rows), counts), np.stack(want, 1))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 1), (-1, 0), (-128, 127), (0, 255), (-129, 3), (0, 256)]
)
def test_a_type_holds_its_range_and_no_bit_more(low: int, high: int) -> None:
    form = holding(low, high)
    assert form.least <= low
    assert high <= form.most
    smaller = Format(form.bits - 1, form.signed)
    assert form.bits == 2 or not (smaller.least <= low and high <= smaller.most)


def test_a_symmetric_type_leaves_the_lowest_number_out() -> None:
    form = Format(3, True, 0, "TRN", "SAT_SYM")
    step = Affine(np.ones(1, np.int64), np.zeros(1, np.int64), 0, form)
    assert apply(step, np.array([-9, -4, -3, 3, 9])).tolist() == [-3, -3, -3, 3, 3]
