"""mpo: matrix products as matrix product operators."""

from __future__ import annotations

import numpy as np
import pytest
from lowrank_models import applied, model_of, outputs, random

from pared.compiler.errors import PipelineError
from pared.compiler.ir.stats import count
from pared.passes.lowrank.mpo import Mpo, balanced

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


def kronecker(terms: int) -> np.ndarray:
    """Weights [48, 40] of bond dimension `terms` for the split (6, 8) x (5, 8)."""
    return sum(np.kron(random(5, 6, seed=i), random(8, 8, seed=10 + i)) for i in range(terms))


@pytest.mark.parametrize(
    ("text", "transposed", "extra"),
    [
        ("y = MatMul(x, w)", False, {}),
        ("y = Gemm(x, w, b)", False, {"b": random(48, seed=3)}),
        ("y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)", True, {"b": random(48, seed=3)}),
    ],
)
def test_weights_of_low_bond_dimension_lose_nothing(
    text: str, transposed: bool, extra: dict[str, np.ndarray]
) -> None:
    w = kronecker(3)
    model = model_of(
        f"{HEAD} g (float[n,40] x) => (float[n,48] y) {{ {text} }}", w=w.T if transposed else w, **extra
    )
    after, stats = applied(model, Mpo(energy=0.999999))
    assert stats.changed == 1
    x = random(5, 40, seed=7)
    # Two rounded products of 40 terms each; the weights are of size 3.
    np.testing.assert_allclose(outputs(after, x), outputs(model, x), atol=1e-3)
    assert count(after).parameters < count(model).parameters
    assert [v.name for v in after.graph.outputs] == ["y"]


def test_the_error_is_that_of_the_truncated_weights() -> None:
    w = random(40, 48)
    model = model_of(f"{HEAD} g (float[n,40] x) => (float[n,48] y) {{ y = MatMul(x, w) }}", w=w)
    after, _ = applied(model, Mpo(rank=10))
    x = np.eye(40, dtype=np.float32)
    lost = np.square(outputs(after, x) - w).sum() / np.square(w).sum()
    regrouped = w.reshape(5, 8, 6, 8).transpose(0, 2, 1, 3).reshape(30, 64)
    s = np.linalg.svd(regrouped, compute_uv=False)
    assert lost == pytest.approx(np.square(s[10:]).sum() / np.square(s).sum(), rel=1e-4)


def test_random_weights_kept_whole_are_refused() -> None:
    model = model_of(f"{HEAD} g (float[n,40] x) => (float[n,48] y) {{ y = MatMul(x, w) }}", w=random(40, 48))
    _, stats = applied(model, Mpo(energy=1.0))
    assert stats.changed == 0
    assert "no smaller" in stats.refused[0].reason


def test_three_axes_are_refused() -> None:
    text = f"{HEAD} g (float[2,n,40] x) => (float[2,n,48] y) {{ y = MatMul(x, w) }}"
    _, stats = applied(model_of(text, w=kronecker(1)), Mpo())
    assert "two axes" in stats.refused[0].reason


@pytest.mark.parametrize("fields", [{"energy": 0.0}, {"energy": 2.0}, {"rank": -1}])
def test_options_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PipelineError, match="must be in"):
        Mpo(**fields)  # type: ignore[arg-type]


def test_sizes_split_near_their_root() -> None:
    assert [balanced(n) for n in (1, 7, 48, 64)] == [(1, 1), (1, 7), (6, 8), (8, 8)]
