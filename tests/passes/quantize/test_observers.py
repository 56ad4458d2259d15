import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pared.compiler.ir.quant import QuantSpec, Scheme
from pared.passes.quantize.observers import (
    Extremes,
    Histogram,
    entropy_range,
    mse_range,
    percentile_range,
)
from pared.passes.quantize.scales import Range, affine

UINT8 = QuantSpec(8, signed=False, scheme=Scheme.ASYMMETRIC)
INT4 = QuantSpec(4, signed=True, scheme=Scheme.ASYMMETRIC)
chunks = st.lists(arrays(np.float32, 7, elements=st.floats(-1e5, 1e5, width=32)), min_size=1, max_size=6)


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(np.asarray(part, np.float32))
    return histogram


@given(chunks)
def test_a_streamed_histogram_counts_like_one_with_its_final_width(parts):
    histogram = filled(*parts)
    index = np.floor(np.concatenate(parts) * np.float32(1 / histogram.width)).astype(np.int64)
    want = np.bincount(index - histogram.first, minlength=histogram.counts.size)
    np.testing.assert_array_equal(histogram.counts, want)


@given(chunks)
def test_a_histogram_stays_bounded_whatever_comes(parts):
    assert filled(*parts).counts.size <= 4096 + 1


@settings(max_examples=30)
@given(chunks, st.floats(60, 100))
def test_percentile_is_within_a_bin_of_the_sorted_values(parts, percentile):
    values = np.sort(np.concatenate(parts))
    histogram = filled(*parts)
    found = percentile_range(histogram, percentile)
    outside = (1 - percentile / 100) * values.size
    at_ends = outside if values[0] >= 0 or values[-1] <= 0 else outside / 2
    # So many values may lie beyond each end, one more or less where the fraction is not whole.
    beyond_high = np.count_nonzero(values > found.high + histogram.width)
    beyond_low = np.count_nonzero(values < found.low - histogram.width)
    assert max(beyond_high, beyond_low) <= np.ceil(at_ends)
    assert values[0] <= found.low <= found.high <= values[-1]


def test_percentile_matches_numpy_on_many_values():
    x = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    histogram = filled(*np.split(x, 20))
    found = percentile_range(histogram, 99.0)
    want = np.quantile(x, [0.005, 0.995])
    np.testing.assert_allclose([found.low, found.high], want, rtol=0, atol=histogram.width)


def test_one_sided_values_lose_only_their_far_tail():
    x = np.random.default_rng(0).exponential(size=100_000).astype(np.float32)
    histogram = filled(x)
    found = percentile_range(histogram, 99.0)
    assert found.low == x.min()
    assert abs(found.high - np.quantile(x, 0.99)) <= histogram.width


def test_moving_average_is_the_mean_of_the_samples_extremes():
    parts = [np.array([-1.0, 2.0]), np.array([-3.0, 0.0]), np.array([1.0, 7.0])]
    extremes = Extremes()
    for part in parts:
        extremes.update(part.min(), part.max())
    assert extremes.mean_range() == Range(-1.0, 3.0)
    assert extremes.range() == Range(-3.0, 7.0)


def quantization_error(x: np.ndarray, found: Range, spec: QuantSpec) -> float:
    scale, zero = affine(found, spec)
    q = np.clip(np.rint(x / scale) + zero, spec.qmin, spec.qmax)
    return float(np.square((q - zero) * scale - x).sum())


@pytest.mark.parametrize("spec", [UINT8, INT4])
def test_mse_is_as_good_as_a_direct_search_over_the_values(spec):
    x = np.random.default_rng(1).standard_t(3, size=20_000)
    found = mse_range(filled(x), spec)
    direct = min(
        quantization_error(x, Range(f * x.min(), g * x.max()), spec)
        for f in np.linspace(0.05, 1, 20)
        for g in np.linspace(0.05, 1, 20)
    )
    # Bins smear values by width^2 / 12 and candidates lie 1 % apart: a flat optimum is missed by little.
    assert quantization_error(x, found, spec) <= 1.05 * direct


def test_mse_clips_a_heavy_tail_when_integers_are_few():
    x = np.random.default_rng(1).standard_t(3, size=20_000)
    clipped = quantization_error(x, mse_range(filled(x), INT4), INT4)
    assert clipped < 0.8 * quantization_error(x, Range(x.min(), x.max()), INT4)


def test_entropy_cuts_a_lonely_outlier():
    x = np.append(np.random.default_rng(2).normal(size=100_000), 200.0)
    found = entropy_range(filled(x), UINT8)
    assert 3.0 < found.high < 100.0


def test_entropy_keeps_a_uniform_range():
    x = np.random.default_rng(3).uniform(0, 1, 100_000)
    assert entropy_range(filled(x), UINT8).high > 0.95


def test_constant_zero_values_give_the_range_zero():
    histogram = filled(np.zeros(10), np.zeros(10))
    for found in (
        percentile_range(histogram, 99.9),
        mse_range(histogram, UINT8),
        entropy_range(histogram, UINT8),
    ):
        assert found == Range(0.0, 0.0)


def test_zeros_before_values_do_not_spoil_the_histogram():
    histogram = filled(np.zeros(10), np.full(10, 1000.0))
    assert int(histogram.counts.sum()) == 20
    assert percentile_range(histogram, 100.0) == Range(0.0, 1000.0)


def test_an_empty_tensor_counts_nothing():
    histogram = filled(np.zeros(0))
    assert histogram.counts.size == 0


def test_entropy_is_not_fooled_by_the_peak_that_a_relu_puts_at_zero():
    x = np.maximum(np.random.default_rng(4).normal(size=100_000), 0.0)
    assert entropy_range(filled(x), UINT8).high > 3.0


def test_entropy_keeps_everything_when_values_are_few():
    x = np.random.default_rng(5).normal(size=1000)
    assert entropy_range(filled(x), UINT8) == Range(np.float32(x).min(), np.float32(x).max())


def test_values_too_small_for_a_bin_index_are_counted() -> None:
    histogram = Histogram()
    histogram.update(np.array([-2049.0, -1e-45, -1e-45], np.float32))
    assert int(histogram.counts.sum()) == 3
