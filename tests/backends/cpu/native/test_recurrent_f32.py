"""The recurrent kernel against cells written in NumPy, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("tvm")

from pared.backends.cpu.native.isa import host_isa
from pared.backends.cpu.native.kernels.common import aligned_array, load_kernel
from pared.backends.cpu.native.kernels.recurrent_f32 import (
    CellArrays,
    RecurrentF32Spec,
    build,
    pack,
    supports,
)
from pared.backends.cpu.native.kernels.window import padded

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

LSTM = RecurrentF32Spec("lstm", 3, 1, 20, 20)
GRU = RecurrentF32Spec("gru", 3, 1, 20, 20)
SPECS = {
    "lstm": LSTM,
    "lstm of many units, one step": replace(LSTM, steps=1, hidden=112, result=112),
    "lstm, both ways, two samples": replace(LSTM, reverse=(False, True), batch=2),
    "lstm, initial states": replace(LSTM, initial=(True, True), batch=2),
    "lstm with peepholes and a projection": replace(LSTM, peepholes=True, projects=True, result=35),
    "lstm, projected to fewer": replace(LSTM, projects=True, result=7, initial=(True, False)),
    "gru": GRU,
    "gru, reset after": replace(GRU, reset_after=True, hidden=77, result=77),
    "gru, both ways": replace(GRU, reverse=(False, True), initial=(True, False)),
    "gru, backwards": replace(GRU, reverse=(True,), batch=2),
    "rnn": RecurrentF32Spec("rnn", 4, 1, 17, 17),
    "rnn with relu": RecurrentF32Spec("rnn", 4, 1, 17, 17, relu=True),
    "lstm of bytes": replace(LSTM, stored="int8"),
    "gru of bytes": replace(GRU, stored="int8", hidden=77, result=77),
    "gru of bytes, reset after": replace(GRU, stored="int8", reset_after=True, reverse=(False, True)),
}


def _cell(spec: RecurrentF32Spec, rng: np.random.Generator) -> CellArrays:
    def floats(*shape: int) -> Floats:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    recurrent: npt.NDArray[np.generic] = floats(spec.gates, spec.hidden, spec.result)
    scale = None
    if spec.stored == "int8":
        recurrent = rng.integers(-127, 128, recurrent.shape).astype(np.int8)
        scale = (rng.random((spec.gates, spec.hidden)) / 200).astype(np.float32)
    return CellArrays(
        recurrent,
        scale,
        floats(spec.hidden) if spec.reset_after else None,
        floats(3, spec.hidden) if spec.peepholes else None,
        floats(spec.result, spec.hidden) if spec.projects else None,
    )


def _sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def _wanted(
    spec: RecurrentF32Spec, cell: CellArrays, x: Doubles, h: Doubles, c: Doubles, backwards: bool
) -> tuple[Doubles, Doubles]:
    """Return h of every step and the last c; x [T, B, gates, H]."""
    weight = cell.recurrent.astype(np.float64)
    if cell.scale is not None:
        weight = weight * cell.scale[..., None]
    results = np.zeros((spec.steps, spec.batch, spec.result))
    for t in reversed(range(spec.steps)) if backwards else range(spec.steps):
        r = np.einsum("ghk,bk->gbh", weight, h)
        gates = x[t].transpose(1, 0, 2)
        if spec.kind == "lstm":
            i, o, f, g = gates + r
            p = cell.peepholes if cell.peepholes is not None else np.zeros((3, spec.hidden))
            c = _sigmoid(f + p[2] * c) * c + _sigmoid(i + p[0] * c) * np.tanh(g)
            h = _sigmoid(o + p[1] * c) * np.tanh(c)
            h = h @ cell.projection.T.astype(np.float64) if cell.projection is not None else h
        elif spec.kind == "gru":
            z, reset = _sigmoid(gates[0] + r[0]), _sigmoid(gates[1] + r[1])
            inner = reset * (r[2] + cell.bias) if cell.bias is not None else (reset * h) @ weight[2].T
            h = (1 - z) * np.tanh(gates[2] + inner) + z * h
        else:
            total = gates[0] + r[0]
            h = np.maximum(total, 0) if spec.relu else np.tanh(total)
        results[t] = h
    return results, c


@pytest.mark.parametrize("name", SPECS)
def test_kernel_computes_the_cell(name: str) -> None:
    spec = SPECS[name]
    assert supports(spec, host_isa()).ok
    rng = np.random.default_rng(len(name))
    cells = [_cell(spec, rng) for _ in spec.reverse]
    d, b, units = spec.directions, spec.batch, padded(spec.hidden)
    x = aligned_array(spec.x_shape, "float32")
    parts = x.reshape(spec.steps, b, d, spec.gates, units)
    parts[..., : spec.hidden] = rng.standard_normal(parts[..., : spec.hidden].shape)
    h = rng.standard_normal((d * b, padded(spec.result))).astype(np.float32)
    c = rng.standard_normal((d * b, units)).astype(np.float32)
    given = [array for array, wanted in zip((h, c), spec.initial, strict=True) if wanted]
    out = aligned_array(spec.out_shape, "float32")
    out[:] = np.nan
    scratch = [] if spec.scratch_shape is None else [aligned_array(spec.scratch_shape, "float32")]
    load_kernel(build(spec, host_isa()), host_isa())(
        x, *given, *pack(spec, cells), out, *scratch, 0, spec.tasks()
    )
    for index, (cell, backwards) in enumerate(zip(cells, spec.reverse, strict=True)):
        rows = slice(index * b, (index + 1) * b)
        first = (h[rows, : spec.result] if spec.initial[0] else np.zeros((b, spec.result))).astype(np.float64)
        state = (c[rows, : spec.hidden] if spec.initial[1] else np.zeros((b, spec.hidden))).astype(np.float64)
        inputs = parts[:, :, index, :, : spec.hidden].astype(np.float64)
        want, last = _wanted(spec, cell, inputs, first, state, backwards)
        # Sums of at most 112 terms below 1, then contractions: 1e-5 is some 10 times the worst rounding.
        np.testing.assert_allclose(out[: spec.steps, rows, : spec.result], want, atol=1e-5)
        end = want[0 if backwards else -1]
        np.testing.assert_allclose(out[spec.steps, rows, : spec.result], end, atol=1e-5)
        if spec.kind == "lstm":
            np.testing.assert_allclose(out[spec.steps + 1, rows, : spec.hidden], last, atol=1e-5)


def test_what_no_cell_has_is_refused() -> None:
    isa = host_isa()
    assert "peepholes" in supports(replace(GRU, peepholes=True), isa).reason
    assert "projection" in supports(replace(LSTM, result=7), isa).reason
    assert "forward" in supports(replace(GRU, reverse=(True, True)), isa).reason
