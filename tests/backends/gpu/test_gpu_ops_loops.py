"""Recurrent cells, Scan and Loop: few kernels per step, results within the derived bound."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import compiled, emulated, model_of

from pared.backends.reference import derive_bound, evaluate
from pared.compiler.errors import UnsupportedOp

STEPS, UNITS = 12, 38
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _cell(op: str, steps: int = STEPS, attributes: str = "") -> ir.Model:
    rng, gates = np.random.default_rng(len(op)), _GATES[op]
    return model_of(
        f"y, h = {op}<hidden_size = {UNITS}{attributes}>(x, w, r, b)",
        f"float[{steps},2,5] x",
        f"float[{steps},1,2,{UNITS}] y, float[1,2,{UNITS}] h",
        w=rng.normal(size=(1, gates * UNITS, 5)).astype(np.float32),
        r=(rng.normal(size=(1, gates * UNITS, UNITS)) / 6).astype(np.float32),
        b=rng.normal(size=(1, 2 * gates * UNITS)).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("op", "attributes", "kernels"),
    [("LSTM", "", 1), ("RNN", "", 1), ("GRU", ", linear_before_reset = 1", 1), ("GRU", "", 2)],
)
def test_a_cell_takes_one_kernel_per_step(op: str, attributes: str, kernels: int) -> None:
    """The GRU whose reset gate comes first needs a second: its candidate sums all units' resets."""
    short, long = (len(compiled(_cell(op, n, attributes))[0].launches) for n in (3, 4))
    assert long - short == kernels


def test_steps_share_their_kernels() -> None:
    program = compiled(_cell("LSTM"))[0]
    assert len({launch.kernel for launch in program.launches}) < 10 < STEPS < len(program.launches)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_many_steps_stay_in_the_bound(op: str) -> None:
    model = _cell(op)
    x = {"x": np.random.default_rng(0).normal(size=(STEPS, 2, 5)).astype(np.float32)}
    want, bounds, got = evaluate(model, x), derive_bound(model, [x], seed=0), emulated(model).run(x)
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= bounds[name].limit(array)


def _scan(directions: str) -> ir.Model:
    return model_of(
        f"""z, y = Scan<num_scan_inputs = 1, scan_input_directions = [{directions}],
                body = step (float[3] s, float[3] v) => (float[3] t, float[3] o) {{
                    h = MatMul(s, m) t = Add(h, v) o = Tanh(t) }}>(s0, x)""",
        "float[5,3] x", "float[3] z, float[5,3] y",
        s0=np.zeros(3, np.float32), m=np.float32([[0.5, 0.1, 0], [0, 0.3, 0.2], [0.7, 0, 0.1]]),
    )  # fmt: skip


@pytest.mark.parametrize("directions", ["0", "1"])
def test_a_scan_runs_step_by_step(directions: str) -> None:
    model, x = _scan(directions), {"x": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)}
    want, got = evaluate(model, x), emulated(model).run(x)
    for name, array in want.items():
        assert np.allclose(got[name], array, atol=1e-6)


def _loop(trips: str, **constants: np.ndarray) -> ir.Model:
    return model_of(
        f"""z, y = Loop<body = step (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {{
                d = Identity(c) n = Cast<to = 1>(i) t = Mul(s, k) o = Add(t, n) }}>({trips}, , x)""",
        "float[2] x, int64 m" if trips == "m" else "float[2] x", "float[2] z, float[4,2] y",
        k=np.float32([2, 3]), **constants,
    )  # fmt: skip


def test_a_loop_with_a_known_number_of_steps_is_unrolled() -> None:
    model, x = _loop("four", four=np.array(4)), {"x": np.float32([1, -1])}
    want, got = evaluate(model, x), emulated(model).run(x)
    assert all(np.array_equal(got[name], array) for name, array in want.items())


def test_a_loop_of_unknown_length_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="steps"):
        emulated(_loop("m"))
