import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pared.compiler.ir.quant import QuantParams, QuantSpec, Scheme, dequantize_array, quantize_array
from pared.passes.quantize.scales import Range, affine, short, weight_params

SPECS = [
    QuantSpec(bits, signed=signed, scheme=scheme)
    for bits in (2, 4, 8, 16)
    for signed in (False, True)
    for scheme in (Scheme.ASYMMETRIC, Scheme.SYMMETRIC, Scheme.POWER_OF_TWO)
]
finite = st.floats(-1e6, 1e6, width=32)


def params(found: Range, spec: QuantSpec) -> QuantParams:
    scale, zero = affine(found, spec)
    return QuantParams(spec, np.asarray(scale, np.float32), np.asarray(zero, np.int64))


@given(finite, finite, st.sampled_from(SPECS))
def test_zero_is_exact(a, b, spec):
    made = params(Range(min(a, b), max(a, b)), spec)
    assert dequantize_array(quantize_array(np.zeros(1, np.float32), made), made)[0] == 0.0


@given(finite, finite, st.sampled_from(SPECS), st.floats(0, 1))
def test_a_value_in_the_range_comes_back_within_one_step(a, b, spec, where):
    low, high = min(a, b), max(a, b)
    made = params(Range(low, high), spec)
    x = np.array([low + where * (high - low)], np.float32)
    error = abs(float(dequantize_array(quantize_array(x, made), made)[0]) - float(x[0]))
    # Half a step from rounding; the rounded zero point moves the ends by half a step more; float32 on top.
    assert error <= float(made.scale) * 1.001 + 1e-6 * abs(float(x[0]))


@given(finite, finite, st.sampled_from(SPECS))
def test_scales_are_float32_and_zero_points_in_range(a, b, spec):
    scale, zero = affine(Range(min(a, b), max(a, b)), spec)
    assert scale > 0
    assert scale == np.float32(scale)
    assert spec.qmin <= zero <= spec.qmax


def test_power_of_two_scales_have_no_mantissa():
    scale, _ = affine(Range(-3.0, 5.0), QuantSpec(8, scheme=Scheme.POWER_OF_TWO))
    assert np.frexp(scale)[0] == 0.5
    assert scale * 127 >= 5.0 > scale * 127 / 2


def test_a_one_sided_range_uses_every_integer():
    scale, zero = affine(Range(2.0, 10.0), QuantSpec(8, signed=False, scheme=Scheme.ASYMMETRIC))
    assert (zero, np.float32(10.0 / 255)) == (0, np.float32(scale))


def test_an_all_zero_range_has_a_scale():
    assert affine(Range(0.0, 0.0), QuantSpec(8, signed=False, scheme=Scheme.ASYMMETRIC))[0] > 0


matrices = arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32))


@given(
    matrices, st.sampled_from(["minmax", "mse"]), st.sampled_from([3, 4, 8]), st.sampled_from([None, 0, 1])
)
def test_no_weight_is_off_by_more_than_half_a_step_unless_clipped(w, method, bits, axis):
    made = weight_params(w, QuantSpec(bits, narrow=True, axis=axis), method)
    spread = made.scale if axis is None else np.expand_dims(made.scale, 1 - axis)
    clipped = np.abs(w) > spread * made.spec.qmax
    error = np.abs(dequantize_array(quantize_array(w, made), made) - w)
    assert np.all(clipped | (error <= spread * 0.5001))
    assert method == "mse" or not clipped.any()


@pytest.mark.parametrize("bits", [3, 4, 6, 8, 10])
@pytest.mark.parametrize("how", ["tensor", "channel", "block"])
def test_sqnr_grows_by_six_decibel_per_bit(bits, how):
    w = np.random.default_rng(bits).uniform(-1, 1, (64, 256)).astype(np.float32)
    spec = {"tensor": QuantSpec(bits, narrow=True), "channel": QuantSpec(bits, narrow=True, axis=0)}.get(
        how, QuantSpec(bits, narrow=True, axis=1, block_size=32)
    )
    made = weight_params(w, spec)
    noise = np.square(dequantize_array(quantize_array(w, made), made) - w).mean()
    sqnr = 10 * np.log10(np.square(w).mean() / noise)
    # Uniform data over 2^bits - 2 steps: power of the signal (range^2 / 12) over step^2 / 12.
    law = 20 * np.log10(2.0**bits - 2)
    assert abs(sqnr - law) < 0.6


def test_mse_clips_an_outlier_and_lowers_the_error():
    w = np.append(np.random.default_rng(0).normal(size=4095), 8.0).astype(np.float32)[None]
    errors = {}
    for method in ("minmax", "mse"):
        made = weight_params(w, QuantSpec(4, narrow=True), method)
        errors[method] = np.square(dequantize_array(quantize_array(w, made), made) - w).sum()
    assert errors["mse"] < 0.7 * errors["minmax"]


def test_a_channel_of_zeros_takes_the_largest_scale():
    w = np.array([[0, 0], [1, 2], [4, 0]], np.float32)
    scale = weight_params(w, QuantSpec(8, narrow=True, axis=0)).scale
    assert scale[0] == scale.max() == scale[2]


def test_bipolar_weights_have_the_mean_magnitude_as_scale():
    w = np.array([[1.0, -3.0], [2.0, 2.0]], np.float32)
    made = weight_params(w, QuantSpec(1, scheme=Scheme.BIPOLAR, axis=0))
    np.testing.assert_array_equal(made.scale, [2.0, 2.0])


def test_blocks_have_scales_of_their_own_and_a_short_last_one():
    w = np.arange(1, 11, dtype=np.float32)[None]
    made = weight_params(w, QuantSpec(8, narrow=True, axis=1, block_size=4))
    np.testing.assert_array_equal(made.scale, short(np.array([[4.0, 8.0, 10.0]]) / 127))


@given(st.floats(2.0**-60, 2.0**99, width=32))
def test_short_scales_round_up_by_less_than_a_thousandth(scale):
    rounded = float(short(scale))
    assert scale <= rounded <= scale * (1 + 2.0**-10)


@given(st.floats(2.0**-14, 60000.0, width=32))
def test_short_scales_fit_into_float16(scale):
    rounded = short(scale)
    assert np.float32(np.float16(rounded)) == rounded
