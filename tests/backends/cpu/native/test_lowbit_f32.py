"""The product of float rows with weights of few bits, against float64 products of the dequantized weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from pared.backends.cpu.native.isa import host_isa
from pared.backends.cpu.native.kernels.after_f32 import After
from pared.backends.cpu.native.kernels.common import aligned_array, load_kernel
from pared.backends.cpu.native.kernels.lowbit_f32 import LowbitF32Spec, build, pack, supports, uses_table

FOUR = LowbitF32Spec(1, 64, 20, 4, 32, 8)
SPECS = {
    "4 bits": FOUR,
    "4 bits, a zero per block, many rows": replace(FOUR, rows=11, zero=None),
    "4 bits, last block in part": replace(FOUR, depth=77, rows=2),
    "4 bits, bias and limits": replace(FOUR, after=After(bias=True, low=0.0)),
    "4 bits, residual": replace(FOUR, after=After(residual=True), rows=3),
    "2 bits, long blocks": replace(FOUR, bits=2, block=256, depth=300, zero=2),
    "1 bit": replace(FOUR, bits=1, zero=0, bipolar=True, block=64),
    "8 bits, one block": replace(FOUR, bits=8, zero=128, block=64),
    "8 bits, a zero per block": replace(FOUR, bits=8, zero=None, depth=70),
}


@pytest.mark.parametrize("name", SPECS)
def test_kernel_computes_the_product(name: str) -> None:
    _check(SPECS[name])


def _check(spec: LowbitF32Spec) -> None:
    isa = host_isa()
    assert supports(spec, isa).ok
    rng = np.random.default_rng(spec.depth + spec.bits)
    codes = rng.integers(0, 1 << spec.bits, (spec.outputs, spec.depth)).astype(np.uint8)
    scale = (0.01 + rng.random((spec.outputs, spec.blocks))).astype(np.float32)
    zero = None if spec.zero is not None else rng.integers(0, 1 << spec.bits, scale.shape).astype(np.uint8)
    bias = rng.standard_normal(spec.outputs).astype(np.float32) if spec.after.bias else None
    x = aligned_array((spec.rows, -(-spec.depth // 16) * 16), "float32")
    x[:] = 1e30  # lanes beyond the depth hold anything
    x[:, : spec.depth] = rng.standard_normal((spec.rows, spec.depth))
    y = aligned_array((spec.rows, spec.tasks() * 16), "float32")
    residual = rng.standard_normal(y.shape).astype(np.float32)
    given = [
        x,
        *([residual] if spec.after.residual else []),
        *pack(spec, codes, scale, zero, bias, table=uses_table(spec, isa)),
    ]
    load_kernel(build(spec, isa), isa)(*given, y, 0, spec.tasks())
    zeros = np.full(scale.shape, spec.zero) if zero is None else zero
    whole = (
        codes.astype(np.float64) - np.repeat(zeros.astype(np.float64), spec.block, axis=1)[:, : spec.depth]
    )
    if spec.bipolar:
        whole = 2.0 * codes - 1
    weight = whole * np.repeat(scale.astype(np.float64), spec.block, axis=1)[:, : spec.depth]
    rows = x[:, : spec.depth].astype(np.float64)
    want = rows @ weight.T + (0 if bias is None else bias)
    if spec.after.residual:
        want = want + residual[:, : spec.outputs]
    want = np.maximum(want, 0) if spec.after.low is not None else want
    # Every term is rounded at most `depth` times on its way into the sum.
    bound = (spec.depth + 4) * 2.0**-24 * (np.abs(rows) @ np.abs(weight).T + 3)
    assert (np.abs(y[:, : spec.outputs] - want) <= bound).all()


def test_blocks_that_split_a_word_are_refused() -> None:
    assert "multiple of 8" in supports(replace(FOUR, block=12), host_isa()).reason
