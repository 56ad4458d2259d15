import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from popcount_oracle import compile_kernel, isa, run_kernel

from pared.backends.cpu.native.kernels import lowbit_gemv, quantize_blocks
from pared.backends.cpu.native.kernels.lowbit_gemv import LowbitGemvSpec
from pared.backends.cpu.native.kernels.quantize_blocks import QuantizeBlocksSpec

SLOW = settings(deadline=None, max_examples=20)
ZERO = {4: 8, 2: 2, 1: 1}


def fused_multiply_add(a, b, c):
    """float32 a * b + c with one rounding: the float64 sum rounded to odd, then to float32."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
    total = product + c
    shadow = total - product
    error = (product - (total - shadow)) + (c - shadow)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(total, toward), total).astype(np.float32)


def quantize(x, block, zero):
    """What quantize_blocks documents, operator by operator."""
    split = x.reshape(len(x), -1, block)
    largest = np.abs(split).max(-1)
    factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(split * factor[..., None]).astype(np.int32)
    return q.astype(np.int8), largest / np.float32(127), -zero * q.sum(-1, dtype=np.int32)


def random_product(spec, seed):
    rng = np.random.default_rng(seed)
    if spec.bits == 1:
        weight = rng.choice([-1, 1], (spec.outputs, spec.depth))
    else:
        weight = rng.integers(0, 2**spec.bits, (spec.outputs, spec.depth)) - spec.zero
    scale = rng.normal(size=(spec.outputs, spec.blocks)).astype(np.float32)
    x = rng.normal(size=(spec.rows, spec.depth)).astype(np.float32)
    x[:, : spec.block] *= rng.integers(0, 2)  # sometimes a block of zeros
    return weight, scale, x


@st.composite
def products(draw):
    bits, block = draw(st.sampled_from([4, 2, 1])), draw(st.sampled_from([32, 64, 128]))
    zero = 1 if bits == 1 else draw(st.integers(0, 2**bits - 1))
    depth = block * draw(st.integers(1, 5))
    return LowbitGemvSpec(draw(st.integers(1, 19)), depth, draw(st.integers(1, 50)), bits, block, zero)


@SLOW
@given(products(), st.integers(0, 999))
def test_products_equal_the_documented_arithmetic_to_the_last_bit(spec, seed):
    weight, scale, x = random_product(spec, seed)
    q, x_scale, correction = quantize(x, spec.block, spec.zero)
    # The kernel reads quads of int8 as words.
    arrays = [q.reshape(spec.rows, -1).view(np.int32), x_scale, correction]
    arrays += lowbit_gemv.pack(spec, weight, scale)
    module = lowbit_gemv.build(spec, isa())
    got = run_kernel(module, arrays, (spec.rows, spec.stored_outputs), "float32", spec.tasks())
    dot = np.einsum("mgk,ngk->mng", q.astype(np.int64), weight.reshape(spec.outputs, -1, spec.block))
    want = np.zeros(dot.shape[:2], np.float32)
    for g in range(spec.blocks):
        want = fused_multiply_add(dot[..., g], scale[:, g] * x_scale[:, None, g], want)
    np.testing.assert_array_equal(got[:, : spec.outputs], want)


@SLOW
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([16, 32, 48, 128]), st.integers(0, 999))
def test_blocks_are_quantized_as_documented(rows, blocks, block, seed):
    rng = np.random.default_rng(seed)
    spec = QuantizeBlocksSpec(rows, blocks * block, block, 8)
    # Multiples of 1/2 with a largest value of 127 make ties.
    x = (rng.integers(-254, 255, (rows, spec.depth)) / 2).astype(np.float32)
    x[:, 0] = rng.choice([127, 0, -3])
    x[0, -block:] = 0
    want = quantize(x, block, 8)
    for index, dtype in enumerate(["int8", "float32", "int32"]):
        got = run_quantizer(spec, x)[index]
        np.testing.assert_array_equal(got.reshape(want[index].shape), want[index])
        assert got.dtype == dtype


def run_quantizer(spec, x):
    import tvm

    function, _ = compile_kernel(quantize_blocks.build(spec, isa()))
    shapes = [
        ((spec.rows, spec.depth), "int8"),
        *[((spec.rows, spec.blocks), d) for d in ("float32", "int32")],
    ]
    outs = [tvm.runtime.tensor(np.full(shape, 7, dtype)) for shape, dtype in shapes]
    function(tvm.runtime.tensor(x), *outs, 0, spec.rows)
    return [out.numpy() for out in outs]


def test_the_result_is_near_the_product_of_floats():
    spec = LowbitGemvSpec(2, 256, 17, 4, 32, 8)
    weight, scale, x = random_product(spec, 1)
    q, x_scale, correction = quantize(x, 32, 8)
    arrays = [q.reshape(2, -1).view(np.int32), x_scale, correction, *lowbit_gemv.pack(spec, weight, scale)]
    got = run_kernel(lowbit_gemv.build(spec, isa()), arrays, (2, 32), "float32", spec.tasks())[:, :17]
    real = weight.reshape(17, -1, 32) * scale[..., None].astype(np.float64)
    # Every activation is off by at most half a step; float32 rounding is far below that.
    bound = 0.51 * np.einsum("mg,ngk->mn", x_scale, np.abs(real))
    assert (np.abs(got - x @ real.reshape(17, -1).T) <= bound).all()


def test_sums_are_made_by_vnni():
    if not isa().vnni:
        pytest.skip("this CPU has no 64-byte vpdpbusd")
    spec = LowbitGemvSpec(1, 128, 32, 4, 32, 8)
    _, library = compile_kernel(lowbit_gemv.build(spec, isa()))
    assert len(re.findall(r"vpdpbusd\s.*%zmm", library.inspect_source("asm"))) >= 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block": 16}, "blocks of 16"),
        ({"depth": 100}, "no whole number"),
        ({"zero": 16}, "outside 0..15"),
        ({"bits": 1, "zero": 0}, "zero is 1"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_reason(changes, reason):
    fine = {"rows": 1, "depth": 128, "outputs": 16, "bits": 4, "block": 32, "zero": 8}
    assert lowbit_gemv.supports(LowbitGemvSpec(**fine), isa()).ok
    verdict = lowbit_gemv.supports(LowbitGemvSpec(**{**fine, **changes}), isa())
    assert not verdict.ok
    assert reason in verdict.reason


def test_weights_that_do_not_fit_are_refused():
    spec = LowbitGemvSpec(1, 32, 1, 2, 32, 2)
    with pytest.raises(ValueError, match=re.escape("2 bits with zero 2 cannot hold 2..2")):
        lowbit_gemv.pack(spec, np.full((1, 32), 2), np.ones((1, 1), np.float32))
