"""dead-code, dedupe-constants and the table of passes."""

from __future__ import annotations

import numpy as np
from canon import assert_exact, graph, ops, rand, run, same_graph

import pared.passes.canonicalize as orders
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES
from pared.passes.canonicalize.dead_code import DeadCode
from pared.passes.canonicalize.dedupe_constants import DedupeConstants


def test_nodes_and_constants_without_readers_go() -> None:
    before = graph("g (float[2] x) => (float[2] y) { u = Exp(x)  v = Add(u, w)  y = Neg(x) }", w=rand(2))
    after, stats = run(before, DeadCode())
    same_graph(after, graph("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    assert stats.details == {"nodes_removed": 2, "constants_removed": 1, "functions_removed": 0}


def test_what_a_body_reads_is_alive() -> None:
    before = graph(
        """g (bool c, float[2] x) => (float[2] y) {
            s = Exp(x)
            y = If(c) <then_branch = t () => (float[2] u) { u = Add(s, w) },
                       else_branch = e () => (float[2] v) { v = Neg(x) }>
        }""",
        w=rand(2),
    )
    _, stats = run(before, DeadCode())
    assert stats.changed == 0


def test_an_unused_if_frees_what_its_bodies_read() -> None:
    before = graph(
        """g (bool c, float[2] x) => (float[2] y) {
            s = Exp(x)
            n = If(c) <then_branch = t () => (float[2] u) { u = Add(s, w) },
                       else_branch = e () => (float[2] v) { v = Neg(x) }>
            y = Abs(x)
        }""",
        w=rand(2),
    )
    after, _ = run(before, DeadCode())
    assert ops(after) == ["Abs"]
    assert not after.graph.initializers


def test_unused_inputs_stay() -> None:
    before = graph("g (float[2] x, float[2] z) => (float[2] y) { y = Neg(x) }")
    after, stats = run(before, DeadCode())
    assert [value.name for value in after.graph.inputs] == ["x", "z"]
    assert stats.changed == 0


def test_equal_constants_become_one() -> None:
    before = graph("g (float[2] x) => (float[2] y) { u = Add(x, a)  y = Mul(u, b) }", a=rand(2), b=rand(2))
    after, stats = run(before, DedupeConstants())
    assert list(after.graph.initializers) == ["a"]
    assert stats.changed == 1
    assert_exact(before, after)


def test_constants_of_other_shape_stay_apart() -> None:
    before = graph(
        "g (float[2,2] x) => (float[2,2] y) { u = Add(x, a)  y = Mul(u, b) }",
        a=np.ones(2, np.float32), b=np.ones((1, 2), np.float32),
    )  # fmt: skip
    assert run(before, DedupeConstants())[1].changed == 0


def test_constants_of_other_type_stay_apart() -> None:
    before = graph(
        "g (float[2] x) => (float[2] y) { c = Cast<to = 1>(a)  u = Add(x, c)  y = Mul(u, b) }",
        a=np.zeros(2, np.int32), b=np.zeros(2, np.float32),
    )  # fmt: skip
    assert run(before, DedupeConstants())[1].changed == 0


def test_minus_zero_is_not_zero() -> None:
    before = graph(
        "g (float[1] x) => (float[1] y) { u = Div(x, a)  y = Max(u, b) }",
        a=np.zeros(1, np.float32), b=-np.zeros(1, np.float32),
    )  # fmt: skip
    assert run(before, DedupeConstants())[1].changed == 0


def test_big_constants_that_differ_late_stay_apart() -> None:
    one = rand(100_000)
    other = one.copy()
    other[-1] += 1
    before = graph(
        "g (float[100000] x) => (float[100000] y) { u = Add(x, a)  y = Mul(u, b) }", a=one, b=other
    )
    assert run(before, DedupeConstants())[1].changed == 0


def test_every_pass_of_the_orders_is_registered_under_its_name() -> None:
    for name in (*orders.ORDER, *orders.EXACT_ORDER, *orders.PAYLOAD_ORDER):
        assert PASSES[name]().name == name


def test_the_macros_are_the_orders() -> None:
    assert MACROS["canonicalize"] == ",".join(orders.ORDER)
    assert MACROS["canonicalize-exact"] == ",".join(orders.EXACT_ORDER)
    assert len(parse_pipeline("canonicalize", PASSES, MACROS)) == len(orders.ORDER)
