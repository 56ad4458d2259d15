"""Blocks, N:M groups and single weights are chosen by score, exactly as many as asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pared.passes.prune.masks import block_scores, lowest, select
from pared.passes.prune.pattern import parse_pattern

VALUES = st.floats(0, 8, width=16)


@settings(max_examples=50, deadline=None)
@given(scores=arrays(np.float64, st.integers(1, 60), elements=VALUES), share=st.floats(0, 1))
def test_the_lowest_go_and_ties_by_position(scores: np.ndarray, share: float) -> None:
    count = int(share * scores.size)
    gone = lowest(scores, count)
    assert np.array_equal(np.flatnonzero(gone), np.sort(np.argsort(scores, kind="stable")[:count]))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_block_scores_are_means_and_masks_are_whole_blocks(
    shape: tuple[int, int, int], block: tuple[int, int], seed: int
) -> None:
    scores = np.random.default_rng(seed).random(shape)
    pattern = parse_pattern(f"{block[0]}x{block[1]}")
    means = block_scores(scores, pattern)
    gone = select([scores], pattern, 0.5, "layer")[0]
    for t in range(means.shape[1]):
        for s in range(means.shape[2]):
            part = np.s_[:, t * block[0] : (t + 1) * block[0], s * block[1] : (s + 1) * block[1]]
            np.testing.assert_allclose(means[:, t, s], scores[part].mean(axis=(1, 2)))
            inside = gone[part].reshape(shape[0], -1)
            assert np.all(inside == inside[:, :1])


def test_a_global_choice_compares_weights_of_all_layers() -> None:
    low, high = np.full((1, 2, 3), 1.0), np.full((1, 3, 2), 5.0)
    gone = select([high, low], parse_pattern("unstructured"), 0.5, "global")
    assert not gone[0].any()
    assert gone[1].all()
