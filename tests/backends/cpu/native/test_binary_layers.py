import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from popcount_oracle import compile_kernel, convolve, isa, run_kernel

from pared.backends.cpu.native.kernels import binarize, conv_binary, dense_binary
from pared.backends.cpu.native.kernels.bits import Code, pack
from pared.backends.cpu.native.kernels.conv_binary import ConvBinarySpec, supports
from pared.backends.cpu.native.kernels.dense_binary import DenseBinarySpec
from pared.backends.cpu.native.kernels.real_end import RealEnd, RealOp

PAIRS = (
    (Code.BINARY, Code.BINARY),
    (Code.TERNARY, Code.TERNARY),
    (Code.BINARY, Code.TERNARY),
    (Code.TERNARY, Code.BINARY),
    (Code.INT2, Code.INT2),
    (Code.UINT2, Code.INT2),
)
SLOW = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def quantize(dot, thresholds, code):
    """What the kernel must do with sums [..., OC] and thresholds [OC, levels - 1]."""
    return np.array(code.values)[(dot[..., None] >= thresholds).sum(-1)]


def random_layer(spec, seed):
    """Return data NHWC, weights OIHW and the sums they make."""
    rng = np.random.default_rng(seed)
    data = rng.choice(spec.data.values, (spec.batch, spec.height, spec.width, spec.channels))
    weight = rng.choice(spec.weight.values, (spec.out_channels, spec.channels, *spec.kernel))
    return data, weight, convolve(data, weight, spec.strides, spec.pads, spec.dilations)


def run_codes(spec, seed):
    """Return the words that the kernel gives and those that it should give."""
    data, weight, dot = random_layer(spec, seed)
    shape = (spec.out_channels, spec.output.thresholds)
    # Even and odd thresholds, so that many sums are equal to one of them.
    thresholds = np.sort(np.random.default_rng(seed + 1).integers(-4, 5, shape), axis=1)
    constants = conv_binary.pack(spec, weight, thresholds=thresholds)
    words = pack(data, spec.data).reshape(*data.shape[:3], -1)
    got = run_kernel(
        conv_binary.build(spec, isa()), [words, *constants], spec.out_shape, "uint32", spec.tasks()
    )
    want = pack(quantize(dot, thresholds, spec.output), spec.output)
    return got, want.reshape(got.shape)


@st.composite
def convolutions(draw):
    small = st.integers(1, 3)
    kernel, strides, dilations = (draw(st.tuples(small, small)) for _ in range(3))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    pads = tuple(draw(st.integers(0, reach[i % 2])) for i in range(4))
    data, weight = draw(st.sampled_from(PAIRS))
    spec = ConvBinarySpec(
        draw(small), draw(st.integers(1, 9)), draw(st.integers(1, 31)), draw(st.integers(1, 70)),
        draw(st.integers(1, 70)), kernel, strides, pads, dilations, data, weight,
    )  # fmt: skip
    assume(min(spec.out_height, spec.out_width) >= 1)
    return spec


def with_output(spec, output):
    return ConvBinarySpec(**{**vars(spec), "output": output})


@SLOW
@given(convolutions(), st.sampled_from(Code), st.integers(0, 2**16))
def test_codes_out_are_those_of_exact_sums(spec, output, seed):
    got, want = run_codes(with_output(spec, output), seed)
    np.testing.assert_array_equal(got, want)


def test_a_window_whose_taps_all_miss_the_image_sums_to_zero():
    spec = ConvBinarySpec(1, 1, 1, 1, 1, (1, 2), pads=(0, 1, 0, 1), dilations=(1, 2))
    assert (spec.out_height, spec.out_width) == (1, 1)
    for output in Code:
        got, want = run_codes(with_output(spec, output), 0)
        np.testing.assert_array_equal(got, want)


@SLOW
@given(convolutions(), st.integers(0, 2**16))
def test_sums_out_are_exact(spec, seed):
    spec = with_output(spec, "int32")
    data, weight, dot = random_layer(spec, seed)
    words = pack(data, spec.data).reshape(*data.shape[:3], -1)
    arrays = [words, *conv_binary.pack(spec, weight)]
    got = run_kernel(conv_binary.build(spec, isa()), arrays, spec.out_shape, "int32", spec.tasks())
    np.testing.assert_array_equal(got[..., : spec.out_channels], dot)


FEW = settings(SLOW, max_examples=10)
OPS = st.lists(
    st.sampled_from(["mul", "add", "div", "affine64", "clip", "residual"]), min_size=1, max_size=5
).map(lambda names: tuple(RealOp(name, *((-9.0, 11.5) if name == "clip" else ())) for name in names))


def apply_ops(end, value, constants, residuals):
    """What the operations give, each rounded as NumPy rounds it."""
    constants, residuals = iter(constants), iter(residuals)
    for op in end.ops:
        if op.name == "affine64":
            scale, shift = next(constants), next(constants)
            value = (value.astype(np.float64) * scale + shift).astype(np.float32)
        elif op.name == "clip":
            value = np.clip(value, np.float32(op.low), np.float32(op.high))
        elif op.name == "residual":
            value = value + next(residuals)
        else:
            value = {"mul": np.multiply, "add": np.add, "div": np.divide}[op.name](value, next(constants))
    return value


def real_layer(spec, seed):
    """Return the arrays that a kernel with a real output reads, and its result."""
    rng, end = np.random.default_rng(seed), spec.output
    data, weight, dot = random_layer(spec, seed)
    constants = [rng.uniform(0.1, 3, spec.out_channels).astype(dtype) for dtype in end.constants]
    residuals = [rng.standard_normal(dot.shape).astype(np.float32) * 9 for _ in range(end.residuals)]
    real = apply_ops(end, dot.astype(np.float32), constants, residuals)
    spare = [(0, 0)] * 3 + [(0, spec.stored_channels - spec.out_channels)]
    words = pack(data, spec.data).reshape(*data.shape[:3], -1)
    return [words, *(np.pad(r, spare) for r in residuals)], weight, constants, real


@FEW
@given(convolutions(), OPS, st.integers(0, 2**16))
def test_real_results_round_after_every_operation(spec, ops, seed):
    spec = with_output(spec, RealEnd(ops))
    inputs, weight, constants, want = real_layer(spec, seed)
    arrays = [*inputs, *conv_binary.pack(spec, weight, constants=constants)]
    got = run_kernel(conv_binary.build(spec, isa()), arrays, spec.out_shape, "float32", spec.tasks())
    np.testing.assert_array_equal(got[..., : spec.out_channels], want)


@FEW
@given(convolutions(), OPS, st.sampled_from(Code), st.booleans(), st.integers(0, 2**16))
def test_bits_of_a_real_result_are_those_of_its_comparison(spec, ops, code, signed, seed):
    spec = ConvBinarySpec(**{**vars(spec), "out_channels": 64, "output": RealEnd(ops, code, False, signed)})
    inputs, weight, constants, real = real_layer(spec, seed)
    rng = np.random.default_rng(seed)
    picked = rng.choice(real.reshape(-1, 64), code.thresholds, axis=0)  # many ties
    sign = rng.choice([-1, 1], 64) if signed else np.ones(64, int)
    thresholds = np.sort(picked.T * sign[:, None].astype(np.float32), axis=1)
    packed = conv_binary.pack(spec, weight, constants=constants, thresholds=thresholds, sign=sign)
    arrays, shape = [*inputs, *packed], spec.bits_shape(code)
    got = run_kernel(conv_binary.build(spec, isa()), arrays, shape, "uint32", spec.tasks())
    want = pack(quantize(real * sign.astype(np.float32), thresholds, code), code)
    np.testing.assert_array_equal(got, want.reshape(got.shape))


@SLOW
@given(
    st.integers(1, 20), st.integers(1, 200), st.integers(1, 70), st.sampled_from(PAIRS), st.integers(0, 99)
)
def test_dense_codes_are_those_of_exact_sums(batch, channels, out_channels, codes, seed):
    spec = DenseBinarySpec(batch, channels, out_channels, *codes, Code.TERNARY)
    rng = np.random.default_rng(seed)
    data = rng.choice(spec.data.values, (batch, channels))
    weight = rng.choice(spec.weight.values, (out_channels, channels))
    thresholds = np.sort(rng.integers(-9, 10, (out_channels, 2)), axis=1)
    words = pack(data, spec.data).reshape(1, 1, batch, -1)
    arrays = [words, *dense_binary.pack(spec, weight, thresholds=thresholds)]
    got = run_kernel(dense_binary.build(spec, isa()), arrays, spec.conv.out_shape, "uint32", spec.tasks())
    want = pack(quantize(data @ weight.T, thresholds, Code.TERNARY), Code.TERNARY)
    np.testing.assert_array_equal(got, want.reshape(got.shape))


@SLOW
@given(
    st.integers(1, 5), st.integers(1, 70), st.integers(0, 5), st.sampled_from(Code),
    st.sampled_from(["float32", "uint8"]), st.integers(0, 99),
)  # fmt: skip
def test_binarized_values_are_compared_exactly(pixels, channels, spare, code, dtype, seed):
    spec = binarize.BinarizeSpec(pixels, channels, channels + spare, dtype, code)
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 7, (pixels, spec.stored)).astype(dtype)  # few values: many ties
    sign = rng.choice([-1, 1], channels)
    thresholds = np.sort(rng.integers(-7, 7, (channels, code.thresholds)), axis=1)
    arrays = [data, *binarize.pack(spec, thresholds, sign)]
    out_shape = (pixels, -(-channels // 32) * code.planes)
    got = run_kernel(binarize.build(spec, isa()), arrays, out_shape, "uint32", spec.tasks())
    want = pack(quantize(data[:, :channels].astype(int) * sign, thresholds, code), code)
    np.testing.assert_array_equal(got, want.reshape(got.shape))


def test_the_inner_loop_counts_bits_in_whole_vectors():
    if not isa().popcount:
        pytest.skip("this CPU has no vpopcntd")
    spec = ConvBinarySpec(1, 14, 14, 256, 256, (3, 3), pads=(1, 1, 1, 1))
    _, library = compile_kernel(conv_binary.build(spec, isa()))
    assembly = library.inspect_source("asm")
    assert len(re.findall(r"vpopcntd\s+%zmm", assembly)) >= 28
    assert not re.findall(r"vpopcntd\s+%[xy]mm", assembly)


def test_kernels_need_no_allocator_of_the_run_time():
    spec = ConvBinarySpec(1, 14, 14, 64, 64, (3, 3), pads=(1, 1, 1, 1))
    _, library = compile_kernel(conv_binary.build(spec, isa()))
    assert "AllocWorkspace" not in library.inspect_source("ll")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"height": 1}, "output is empty"),
        ({"kernel": (3, 17), "width": 40}, "kernel width 17"),
        ({"pads": (3, 0, 0, 0)}, "reach beyond the kernel"),
        ({"weight": Code.INT2}, "encode both in two bits"),
        ({"channels": 2**27}, "sums reach"),
        ({"channels": 2**21, "output": RealEnd((RealOp("mul"),))}, "float32 holds"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_reason(changes, reason):
    fine = {"batch": 1, "height": 8, "width": 8, "channels": 8, "out_channels": 8, "kernel": (3, 3)}
    assert supports(ConvBinarySpec(**fine), isa()).ok
    verdict = supports(ConvBinarySpec(**{**fine, **changes}), isa())
    assert not verdict.ok
    assert reason in verdict.reason
