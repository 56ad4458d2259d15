"""fold-branches: an If whose condition can be told is its branch."""

from __future__ import annotations

import numpy as np
import pytest
from canon import assert_exact, graph, ints, ops, rand, run

from pared.passes.canonicalize.dead_code import DeadCode
from pared.passes.canonicalize.fold_branches import FoldBranches

IF = """g (float[2] x) => (float[2] y) {
    s = Exp(x)
    y = If(c) <then_branch = t () => (float[2] u) { i = Add(s, w)  u = Neg(i) },
               else_branch = e () => (float[2] v) { v = Abs(x) }>
}"""


@pytest.mark.parametrize(("condition", "left"), [(True, ["Exp", "Add", "Neg"]), (False, ["Abs"])])
def test_a_constant_condition_leaves_its_branch(condition: bool, left: list[str]) -> None:
    before = graph(IF, c=np.array(condition), w=rand(2))
    after, stats = run(before, FoldBranches())
    assert (ops(after), stats.details["branches_inlined"]) == (left, 1)
    assert_exact(before, after)
    assert run(after, DeadCode())[0].graph.initializers.keys() <= {"w"}


def test_an_if_in_a_taken_branch_is_decided_too() -> None:
    before = graph(
        """g (float[2] x) => (float[2] y) {
            y = If(c) <then_branch = t () => (float[2] u) {
                           u = If(c) <then_branch = t2 () => (float[2] p) { p = Neg(x) },
                                      else_branch = e2 () => (float[2] q) { q = Exp(x) }> },
                       else_branch = e () => (float[2] v) { v = Abs(x) }>
        }""",
        c=np.array(True),
    )
    after, _ = run(before, FoldBranches())
    assert ops(after) == ["Neg"]
    assert_exact(before, after)


def test_a_branch_that_only_hands_on_an_outer_value() -> None:
    before = graph(
        """g (float[2] x) => (float[2] y) {
            s = Exp(x)
            r = If(c) <then_branch = t () => (float[2] u) { u = Identity(s) },
                       else_branch = e () => (float[2] v) { v = Abs(x) }>
            y = Neg(r)
        }""",
        c=np.array(True),
    )
    after, _ = run(before, FoldBranches())
    assert ops(after) == ["Exp", "Identity", "Neg"]
    assert_exact(before, after)


def test_a_condition_from_an_input_stays() -> None:
    before = graph(IF.replace("float[2] x)", "float[2] x, bool c)", 1), w=rand(2))
    assert run(before, FoldBranches())[1].changed == 0


def test_the_shape_of_one_branch_decides_the_next() -> None:
    before = graph(
        """g (float[2,3] x) => (float[2,3] y) {
            s0 = Shape(x)  r0 = Size(s0)  e0 = Equal(r0, two)
            u = If(e0) <then_branch = t0 () => (float[a,b,c] p0) { p0 = Unsqueeze(x, axis) },
                        else_branch = f0 () => (float[d,e] q0) { q0 = Neg(x) }>
            s1 = Shape(u)  r1 = Size(s1)  e1 = Equal(r1, two)
            v = If(e1) <then_branch = t1 () => (float[f,h] p1) { p1 = Neg(u) },
                        else_branch = f1 () => (float[i,j] q1) { q1 = Squeeze(u, axis) }>
            y = Abs(v)
        }""",
        two=np.array(2), axis=ints([0]),
    )  # fmt: skip
    after, stats = run(before, FoldBranches())
    assert (ops(after), stats.details["branches_inlined"]) == (["Unsqueeze", "Squeeze", "Abs"], 2)
    assert_exact(before, after)


def test_models_without_if_are_left_to_other_passes() -> None:
    before = graph("g (float[2] x) => (float[2] y) { s = Exp(a)  y = Mul(x, s) }", a=rand(2))
    assert run(before, FoldBranches())[1].changed == 0
