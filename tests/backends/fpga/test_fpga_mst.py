"""Binary layers along a spanning tree compute the same, with fewer additions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from fpga_models import binary
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pared.backends.fpga.mst import is_binary, multiply, spanning_tree

if TYPE_CHECKING:
    from da4ml.types import Pipeline

Ints = npt.NDArray[np.int64]
ROWS = st.tuples(st.integers(3, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.sampled_from([-1, 1]))
)


def levels(parents: Ints, order: tuple[int, ...]) -> list[int]:
    found: dict[int, int] = {-1: -1}
    for one in order:
        found[one] = found[int(parents[one])] + 1
    return [found[one] for one in order]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 4))
def test_every_row_is_its_parent_and_its_differences(rows: Ints, depth: int) -> None:
    tree = spanning_tree(rows, depth)
    made = np.zeros_like(rows)
    for one in tree.order:  # parents first
        parent = int(tree.parents[one])
        made[one] = tree.deltas[one] + (tree.signs[one] * made[parent] if parent >= 0 else 0)
    assert np.array_equal(made, rows)
    assert max(levels(tree.parents, tree.order)) <= depth


def test_without_a_bound_the_tree_is_a_minimum_spanning_tree() -> None:
    sparse = pytest.importorskip("scipy.sparse.csgraph")
    rows = np.random.default_rng(3).choice([-1, 1], (20, 31)).astype(np.int64)
    same = (rows @ rows.T + 31) // 2
    least = sparse.minimum_spanning_tree(np.minimum(same, 31 - same)).sum()
    tree = spanning_tree(rows, 20)
    assert np.count_nonzero(tree.deltas) == 31 + least


def test_a_negated_row_costs_no_difference() -> None:
    row = np.array([1, -1, -1, 1, 1], np.int64)
    tree = spanning_tree(np.stack([row, -row, row]))
    assert [int(np.count_nonzero(d)) for d in tree.deltas] == [5, 0, 0]


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((2, 8), np.int64),  # too few
        np.array([[1, 0], [1, 1], [-1, 1]]),  # ternary
        np.array([[2, 1], [1, 1], [-1, 1]]),
    ],
)
def test_other_rows_are_not_binary(rows: Ints) -> None:
    assert not is_binary(rows)


def traced(rows: Ints, asked: list[Ints] | None = None) -> tuple[float, float]:
    """Return the cost without and with a tree, after comparing 200 random vectors."""
    from da4ml.cmvm import solve
    from da4ml.trace import FixedVariable, HWConfig, comb_trace

    hardware = HWConfig(1, -1, -1)
    x = np.array([FixedVariable(0.0, 1.0, 1.0, hwconf=hardware) for _ in range(rows.shape[1])], object)

    def additions(matrix: Ints, vector: npt.NDArray[np.object_]) -> Pipeline:
        if asked is not None:
            asked.append(matrix)
        return solve(
            np.ascontiguousarray(matrix.T, np.float32),
            qintervals=[(float(v.low), float(v.high), float(v.step)) for v in vector],
            hard_dc=2, adder_size=1, carry_size=-1,
        )  # fmt: skip

    logic = comb_trace(list(x), list(multiply(rows, x, additions)), keep_dead_inputs=True)
    data = np.random.default_rng(0).integers(0, 2, (200, rows.shape[1]))
    got = np.rint(logic.predict(data.astype(np.float64), 1)).astype(np.int64)
    assert np.array_equal(got, data @ rows.T)
    return float(additions(rows, x).cost), float(logic.cost)


def test_random_binary_rows_cost_a_quarter_less() -> None:
    pytest.importorskip("da4ml")
    direct, along = traced(np.random.default_rng(5).choice([-1, 1], (24, 40)).astype(np.int64))
    assert along < 0.75 * direct


def test_equal_rows_are_computed_once() -> None:
    pytest.importorskip("da4ml")
    rows = np.repeat(np.random.default_rng(6).choice([-1, 1], (1, 12)), 5, axis=0).astype(np.int64)
    rows[3] *= -1
    direct, along = traced(rows)
    assert along <= direct + 1  # the negation


@pytest.mark.parametrize("low", [-3, -1])
def test_other_rows_are_asked_for_as_they_are(low: int) -> None:
    pytest.importorskip("da4ml")
    rows = np.random.default_rng(7).integers(low, 2, (12, 16)).astype(np.int64)
    asked: list[Ints] = []
    traced(rows, asked)
    assert len(asked) == 2  # by the circuit and by the comparison
    assert all(np.array_equal(matrix, rows) for matrix in asked)


def test_a_binary_network_with_a_tree_gives_the_golden_integers() -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.read import read_network
    from pared.backends.fpga.simulate import simulate

    network = read_network(binary(np.random.default_rng(11), (24, 20, 5)))
    wire = network.inputs[0]
    codes = {wire.name: 2 * np.random.default_rng(1).integers(0, 2, (500, 24)) - 1}
    circuit = trace(network)
    left = circuit.logic.predict(circuit.enter(network, codes).astype(np.float64), 1)
    got = circuit.leave(network, np.rint(left).astype(np.int64))
    want = simulate(network, codes)
    assert all(np.array_equal(got[name], want[name]) for name in network.outputs)
