"""Moves between layouts: every layout, border and conversion, to the last bit."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.kernels.common import load_kernel
from pared.backends.cpu.native.kernels.concat import ConcatSpec
from pared.backends.cpu.native.kernels.concat import build as build_concat
from pared.backends.cpu.native.kernels.move import MoveSpec, Side, build

ISA = host_isa()
pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def side(dtype, sizes, order, pitch=None, border=(0, 0, 0, 0)):
    n, h, w, c = sizes
    if order == "NCHW":
        return Side(dtype, n * c * h * w, (c * h * w, w, 1, h * w))
    lanes = pitch or c
    row = (w + border[1] + border[3]) * lanes
    plane = (h + border[0] + border[2]) * row
    return Side(dtype, n * plane, (plane, row, lanes, 1), border[0] * row + border[1] * lanes)


def view(array, where, sizes):
    steps = [step * array.itemsize for step in where.strides]
    return np.lib.stride_tricks.as_strided(array[where.offset :], sizes, steps)


def quantized(x, scale, zero):
    steps = np.nan_to_num(x / np.float32(scale), nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.clip(np.rint(steps).astype(np.float64) + zero, 0, 255).astype(np.uint8)


def expected(how, source, spec):
    if how == "shift":
        return (source.view(np.uint8) ^ 128).view(spec.target.dtype)
    scale, zero = spec.source_quant
    if how in ("dequantize", "requantize"):
        source = (source.astype(np.int32) - zero).astype(np.float32) * np.float32(scale)
    return quantized(source, *spec.target_quant) if how in ("quantize", "requantize") else source


KINDS = {
    "copy": ("float32", "float32"), "quantize": ("float32", "uint8"), "dequantize": ("uint8", "float32"),
    "requantize": ("uint8", "uint8"), "shift": ("int8", "uint8"),
}  # fmt: skip


@given(
    st.sampled_from(sorted(KINDS)), st.sampled_from(["NCHW", "NHWC"]), st.sampled_from(["NCHW", "NHWC"]),
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    st.tuples(*[st.integers(0, 2)] * 4), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_every_element_arrives(how, from_order, to_order, sizes, border, wide, seed):
    rng = np.random.default_rng(seed)
    ours = to_order == "NHWC"
    border, lanes = (
        (border if ours else (0, 0, 0, 0)),
        (-(-sizes[3] // 16) * 16 if wide and ours else sizes[3]),
    )
    kinds = KINDS[how]
    spec = MoveSpec(
        sizes, side(kinds[0], sizes, from_order), side(kinds[1], sizes, to_order, lanes, border), how,
        (0.037, 131), (0.05, 77), border, lanes, 0 if kinds[1] == "float32" else 77,
    )  # fmt: skip
    source = (
        rng.integers(0, 256, spec.source.size)
        .astype(np.uint8)
        .view(np.int8 if kinds[0] == "int8" else np.uint8)
    )
    if kinds[0] == "float32":
        source = (rng.standard_normal(spec.source.size) * 5).astype(np.float32)
        source[0] = [np.nan, np.inf, -np.inf, 0.025][seed % 4]
    target = np.full(spec.target.size, 99, kinds[1])
    load_kernel(build(spec, ISA), ISA)(source, target, 0, spec.tasks())
    want = np.full(spec.target.size, spec.fill, kinds[1])
    view(want, spec.target, sizes)[...] = expected(how, view(source, spec.source, sizes), spec)
    np.testing.assert_array_equal(target, want)


def test_a_range_of_rows_leaves_the_others_alone():
    sizes = (1, 4, 3, 2)
    spec = MoveSpec(sizes, side("float32", sizes, "NCHW"), side("float32", sizes, "NHWC"))
    source, target = np.arange(1, 25, dtype=np.float32), np.zeros(24, np.float32)
    load_kernel(build(spec, ISA), ISA)(source, target, 1, 3)
    assert np.flatnonzero(view(target, spec.target, sizes).sum((0, 2, 3))).tolist() == [1, 2]


def test_parts_are_joined_and_requantized_inside_a_border():
    sizes, border, rng = [(2, 3, 5, 7), (2, 3, 5, 20)], (1, 0, 2, 1), np.random.default_rng(0)
    target = side("uint8", (2, 3, 5, 27), "NHWC", 32, border)
    sources = [
        rng.integers(0, 256, 2 * 3 * 5 * 16).astype(np.uint8),
        rng.integers(0, 256, 960).astype(np.uint8),
    ]
    quants = [((0.02, 100), (0.03, 9)), ((1.0, 0), (1.0, 0))]
    parts = tuple(
        MoveSpec(
            shape, side("uint8", shape, "NHWC", pitch),
            dataclasses.replace(target, offset=target.offset + first), how, *pair, edge, lanes, 9,
        )
        for shape, pitch, first, how, pair, edge, lanes in zip(
            sizes, (16, 32), (0, 7), ("requantize", "copy"), quants, (border, (0, 0, 0, 0)), (0, 25),
            strict=True,
        )
    )  # fmt: skip
    got = np.full(target.size, 99, np.uint8)
    spec = ConcatSpec(parts)
    load_kernel(build_concat(spec, ISA), ISA)(*sources, got, 0, spec.tasks())
    want = np.full(target.size, 9, np.uint8)
    for part, source in zip(parts, sources, strict=True):
        view(want, part.target, part.sizes)[...] = expected(
            part.how, view(source, part.source, part.sizes), part
        )
    np.testing.assert_array_equal(got, want)
