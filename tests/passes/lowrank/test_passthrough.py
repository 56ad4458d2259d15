"""lowrank-passthrough: recurrent matrices as low rank plus diagonal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from lowrank_models import applied, model_of, outputs, random

from pared.compiler.errors import PipelineError
from pared.passes.lowrank.passthrough import LowRankPassthrough, split

SIZE, INPUT = 24, 8


def gated(weight: np.ndarray) -> ir.Model:
    """A recurrence h <- tanh(first half of [x, h] W) over 5 steps."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[5,1,{INPUT}] x) => (float[5,1,{SIZE}] y) {{'
        f" last, y = Scan<num_scan_inputs = 1, body = b (float[1,{SIZE}] h, float[1,{INPUT}] s)"
        f" => (float[1,{SIZE}] next, float[1,{SIZE}] out) {{"
        " c = Concat<axis = 1>(s, h) z = Gemm(c, w, b) u, v = Split<axis = 1, num_outputs = 2>(z)"
        " t = Tanh(u) k = Sigmoid(v) next = Mul(t, k) out = Identity(next) }>(h0, x) }"
    )
    bias = random(2 * SIZE, seed=9)
    return model_of(text, w=weight, b=bias, h0=np.zeros((1, SIZE), np.float32))


def structured(rank: int) -> np.ndarray:
    """[INPUT + SIZE, 2 SIZE]: low rank plus one diagonal per gate."""
    low = random(INPUT + SIZE, rank) @ random(rank, 2 * SIZE, seed=1) / SIZE
    low[INPUT:] += np.concatenate([np.diag(random(SIZE, seed=2)), np.diag(random(SIZE, seed=3))], axis=1)
    return low


def test_low_rank_plus_diagonal_is_found_again() -> None:
    model = gated(structured(3))
    after, stats = applied(model, LowRankPassthrough(rank=3), {"x": random(40, 5, 1, INPUT, seed=4)})
    assert stats.changed == 1
    x = random(5, 1, INPUT, seed=5)
    want, got = outputs(model, x), outputs(after, x)
    assert np.square(got - want).sum() < 1e-3 * np.square(want).sum()


def test_the_diagonal_takes_what_low_rank_cannot() -> None:
    weight = structured(3).T
    columns = np.tile(np.arange(INPUT, INPUT + SIZE), 2)
    found = split(weight.astype(np.float64), None, columns, 3)
    singular = np.linalg.svd(weight, compute_uv=False)
    assert found.lost < 0.05 * np.square(singular[3:]).sum() / np.square(singular).sum()


def test_the_loss_told_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((12, 12)), rng.standard_normal((500, 12)) * np.linspace(0.1, 2, 12)
    found = split(weight, x.T @ x / 500, np.arange(12), 4)
    made = found.left @ found.right + np.diag(found.diagonal)
    seen = np.square(x @ (weight - made).T).sum() / np.square(x @ weight.T).sum()
    assert found.lost == pytest.approx(seen, rel=1e-6)


def test_outputs_that_are_no_blocks_of_the_state_are_refused() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[5,1,8] x) => (float[5,1,7] y) {'
        " y = Scan<num_scan_inputs = 1, body = b (float[1,8] s) => (float[1,7] o) { o = MatMul(s, w) }>(x) }"
    )
    _, stats = applied(model_of(text, w=random(8, 7)), LowRankPassthrough(rank=1))
    assert stats.changed == 0
    assert "no whole blocks" in stats.refused[0].reason


def test_layers_outside_of_loops_are_none_of_its_business() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8] x) => (float[1,8] y) { y = MatMul(x, w) }'
    _, stats = applied(model_of(text, w=random(8, 8)), LowRankPassthrough(rank=1))
    assert (stats.changed, stats.refused) == (0, [])


@pytest.mark.parametrize("fields", [{"rank": 2, "energy": 0.5}, {"energy": 1.0}, {"round_to": 0}])
def test_goals_that_make_no_sense_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PipelineError, match="lowrank-passthrough"):
        LowRankPassthrough(**fields)  # type: ignore[arg-type]
