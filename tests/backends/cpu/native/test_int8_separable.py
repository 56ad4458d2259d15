"""A depthwise and a pointwise kernel joined give the bytes of the two one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from int8_kernels import border_of, convolve, host, inside, memory, plain, requantize, run_plain

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.kernels import conv_int8, depthwise_int8, separable_int8
from pared.backends.cpu.native.kernels.add_formula import add_bytes, add_formula
from pared.backends.cpu.native.kernels.conv_int8 import ConvInt8Spec
from pared.backends.cpu.native.kernels.depthwise_int8 import DepthwiseInt8Spec
from pared.backends.cpu.native.kernels.int8_tiles import image
from pared.backends.cpu.native.kernels.separable_int8 import SeparableInt8Spec
from pared.backends.cpu.native.program import Buffer, Program, Step
from pared.backends.cpu.native.separable import join_separable
from pared.compiler.backend import Array

FEW = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
BORDERS = [(0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)]


@st.composite
def pairs(draw: st.DrawFn) -> SeparableInt8Spec:
    """Draw shapes, strides, odd channels, borders, batches and residuals."""
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (5, 5), (1, 3)]))
    strides = draw(st.sampled_from([(1, 1), (2, 2)]))
    channels = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 130])))
    outputs = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 80])))
    out = draw(st.integers(1, 70)), draw(st.integers(1, 11))
    size = [max(1, (o - 1) * s + k - 2) for o, s, k in zip(out, strides, kernel, strict=True)]
    batch = draw(st.integers(1, 2))
    x, between = image(batch, *size, channels, (1, 1, 2, 2)), image(batch, *out, channels)
    y = image(batch, *out, outputs, draw(st.sampled_from(BORDERS)))
    first = DepthwiseInt8Spec(x, between, kernel, strides, pads=(1, 1), zero=draw(st.integers(0, 255)))
    second = ConvInt8Spec(
        between, y, (1, 1), zero=draw(st.integers(0, 255)), high=draw(st.sampled_from([255, 200]))
    )
    if draw(st.booleans()):
        add = add_formula((0.0213, 0.0331, 0.0417), (second.zero, 100, 20))
        second = replace(
            second, residual=image(batch, *out, outputs, draw(st.sampled_from(BORDERS))), add=add
        )
    return SeparableInt8Spec(first, second)


def check(spec: SeparableInt8Spec, isa: Isa, seed: int) -> None:
    """Compare every byte, the border included, with the oracle; run in two ranges of tasks."""
    first, second, rng = spec.first, spec.second, np.random.default_rng(seed)
    c, m, zero = first.x.channels, second.y.channels, int(rng.integers(0, 256))
    pixels = rng.integers(0, 256, (first.x.batch, first.x.height, first.x.width, c)).astype(np.uint8)
    own, after = _constants(rng, (c, 1, *first.kernel)), _constants(rng, (m, c, 1, 1))
    other = [rng.integers(0, 256, second.residual.bytes).astype(np.uint8)] if second.residual else []
    arrays = [memory(first.x, pixels, zero, rng), *other, *depthwise_int8.pack(first, *own, zero)]
    arrays += conv_int8.pack(second, *after, first.zero)
    module = separable_int8.build(spec, isa)
    flat = run_plain(module, isa, [*arrays, np.zeros(second.y.bytes, np.uint8)], spec.tasks(), 2)[-1]
    between = requantize(convolve(pixels, own[0], first, zero) + own[1], own[2], first.zero, 0, 255)
    sums = convolve(between, after[0], second, first.zero) + after[1]
    want, fill = requantize(sums, after[2], second.zero, second.low, second.high), second.zero
    if second.residual and second.add:
        added = inside(second.residual, other[0])[..., :m].astype(np.int32)
        want, fill = add_bytes(second.add, want.astype(np.int32), added), second.add.zeros[2]
    np.testing.assert_array_equal(inside(second.y, flat)[..., :m], want)
    np.testing.assert_array_equal(border_of(second.y, flat), fill)


def _constants(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    weight = rng.integers(-128, 128, shape).astype(np.int8)
    factor = (rng.uniform(0.2, 1.5, shape[0]) / (90 * np.sqrt(weight[0].size))).astype(np.float32)
    return weight, rng.integers(-9000, 9000, shape[0]).astype(np.int32), factor


@FEW
@given(pairs(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact(spec: SeparableInt8Spec, seed: int) -> None:
    assume(separable_int8.supports(spec, host()).ok)
    check(spec, host(), seed)


@settings(FEW, max_examples=3)
@given(pairs(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact_without_vnni(spec: SeparableInt8Spec, seed: int) -> None:
    assume(separable_int8.supports(spec, plain()).ok)
    check(spec, plain(), seed)


def mobile(channels: int, size: int, outputs: int, border: int = 0) -> SeparableInt8Spec:
    between = image(1, size, size, channels)
    first = DepthwiseInt8Spec(image(1, size, size, channels, (1, 1, 1, 1)), between, (3, 3), pads=(1, 1))
    return SeparableInt8Spec(
        first, ConvInt8Spec(between, image(1, size, size, outputs, (border,) * 4), (1, 1))
    )


@pytest.mark.parametrize("border", [0, 1])
def test_several_blocks_of_a_large_image_are_bit_exact(border: int) -> None:
    spec = mobile(32, 112, 16, border)
    assert spec.tasks() > 1
    check(spec, host(), border)


def test_wide_rows_and_large_weights_are_refused() -> None:
    assert "per row" in separable_int8.supports(mobile(960, 28, 16), host()).reason
    assert "weights" in separable_int8.supports(mobile(512, 7, 1024), host()).reason


def program(spec: SeparableInt8Spec, readers: int) -> Program:
    """Return a program of the two steps, and maybe a second reader of the image between."""
    sizes = {"x": spec.first.x, "t": spec.first.y, "y": spec.second.y, "z": spec.second.y}
    buffers = [Buffer(name, "uint8", i.shape) for name, i in sizes.items() if name != "z" or readers > 1]
    steps = [Step("depthwise_int8", spec.first, ("x",), (), ("t",), ("a",))]
    steps += [Step("conv_int8", spec.second, ("t",), (), (name,), ("b",)) for name in "yz"[:readers]]
    return Program(tuple(steps), tuple(buffers), (), ("x",), tuple("yz"[:readers]))


def test_a_depthwise_step_with_one_reader_is_joined() -> None:
    joined = join_separable(program(mobile(64, 6, 64), 1), host())
    assert [step.family for step in joined.steps] == ["separable_int8"]
    assert joined.steps[0].covers == ("a", "b")
    assert {buffer.name for buffer in joined.buffers} == {"x", "y"}


def test_an_image_with_two_readers_is_kept() -> None:
    given = program(mobile(64, 6, 64), 2)
    assert join_separable(given, host()) is given


def test_a_pair_that_would_be_slower_is_kept() -> None:
    given = program(mobile(384, 14, 64), 1)
    assert join_separable(given, host()) is given
