"""fold-shapes: known sizes are constants, partly known ones simplify Reshape."""

from __future__ import annotations

import numpy as np
import pytest
from canon import assert_exact, graph, ints, ops, run, same_graph

from pared.passes.canonicalize.fold_shapes import FoldShapes

PARTS = {
    "zero": ints([0]),
    "one": ints([1]),
    "scalar0": np.array(0, np.int64),
    "rest": ints([-1]),
    "k": ints([784]),
}


def parts(text: str) -> dict[str, np.ndarray]:
    return {
        name: array
        for name, array in PARTS.items()
        if name in text.replace(",", " ").replace(")", " ").split()
    }


FLATTEN = """{ s = Shape(x)  n = Gather<axis = 0>(s, scalar0)  u = Unsqueeze(n, zero)
               t = Concat<axis = 0>(u, rest)  y = Reshape(x, t) }"""
KEEPS = {"scalar0": PARTS["scalar0"], "zero": PARTS["zero"], "rest": PARTS["rest"]}


def test_a_shape_subgraph_of_static_sizes_becomes_a_constant() -> None:
    before = graph(f"g (float[2,3,4] x) => (float[2,12] y) {FLATTEN}", **KEEPS)
    after, _ = run(before, FoldShapes())
    same_graph(after, graph("g (float[2,3,4] x) => (float[2,12] y) { y = Reshape(x, t) }", t=ints([2, -1])))
    assert_exact(before, after)


def test_a_symbolic_size_is_copied_by_the_reshape() -> None:
    before = graph(f"g (float[n,3,4] x) => (float[n,12] y) {FLATTEN}", **KEEPS)
    after, _ = run(before, FoldShapes())
    assert ops(after) == ["Reshape"]
    assert list(after.graph[0].inputs[1].const_value.numpy()) == [0, -1]
    assert_exact(before, after, dynamic=5)


def test_a_size_that_moves_to_another_place_is_inferred_by_the_reshape() -> None:
    before = graph(
        "g (float[3,n] x) => (float[n,3] y)"
        " { s = Shape<start = 1>(x)  t = Concat<axis = 0>(s, three)  y = Reshape(x, t) }",
        three=ints([3]),
    )  # fmt: skip
    after, _ = run(before, FoldShapes())
    assert ops(after) == ["Reshape"]
    assert_exact(before, after, dynamic=5)


def test_two_unknown_sizes_stay_computed() -> None:
    before = graph(
        """g (float[n,m,4] x) => (float[q,r] y)
        { s = Shape(x)  a = Slice(s, one, two)  b = Slice(s, zero, one)  t = Concat<axis = 0>(a, b, rest)
          z = Reshape(x, t)  y = Flatten(z) }""",
        one=ints([1]), two=ints([2]), zero=ints([0]), rest=ints([-1]),
    )  # fmt: skip
    after, stats = run(before, FoldShapes())
    assert "Concat" in ops(after)
    assert stats.changed == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Shape<start = 1, end = 3>(x)", [3, 4]),
        ("Size(x)", 120),
        ("Slice(s, one, three)", [3, 4]),
        ("Slice(s, minus, far)", [5]),
        ("Cast<to = 6>(s)", [2, 3, 4, 5]),
        ("Mul(s, s)", [4, 9, 16, 25]),
        ("Add(s, one)", [3, 4, 5, 6]),
        ("Sub(s, one)", [1, 2, 3, 4]),
        ("Div(s, two)", [1, 1, 2, 2]),
        ("Gather<axis = 0>(s, minus)", [5]),
        ("Concat<axis = 0>(s, one)", [2, 3, 4, 5, 1]),
    ],
)
def test_arithmetic_on_sizes(text: str, value: object) -> None:
    weights = {
        "one": ints([1]),
        "two": ints([2]),
        "three": ints([3]),
        "minus": ints([-1]),
        "far": ints([2**60]),
    }
    kept = {name: array for name, array in weights.items() if name in text}
    dtype = "int32" if "Cast" in text else "int64"
    dims = "" if np.ndim(value) == 0 else f"[{np.size(value)}]"
    before = graph(
        f"g (float[2,3,4,5] x, {dtype}{dims} k) => ({dtype}{dims} y)"
        f" {{ s = Shape(x)  r = {text}  y = Add(r, k) }}",
        **kept,
    )
    after, _ = run(before, FoldShapes())
    assert ops(after) == ["Add"]
    np.testing.assert_array_equal(after.graph[0].inputs[0].const_value.numpy(), value)
    assert_exact(before, after)


def test_a_shape_that_is_an_output_stays() -> None:
    before = graph("g (float[2,3] x) => (int64[2] y) { y = Shape(x) }")
    assert run(before, FoldShapes())[1].changed == 0


def test_a_symbolic_shape_stays() -> None:
    before = graph("g (float[n,3] x) => (int64[2] y) { s = Shape(x)  y = Neg(s) }")
    assert run(before, FoldShapes())[1].changed == 0


def test_arithmetic_on_data_is_no_business_of_it() -> None:
    before = graph("g (int64[2] x) => (int64[2] y) { y = Add(x, one) }", one=ints([1]))
    assert run(before, FoldShapes())[1].changed == 0


def test_shapes_inside_bodies_see_outer_values() -> None:
    before = graph(
        """g (bool c, float[2,3] x) => (float[6] y) {
            y = If(c) <then_branch = t () => (float[6] u) { s = Size(x)  q = Reshape(s, one)
               u = Reshape(x, q) },
                       else_branch = e () => (float[6] v) { v = Reshape(x, rest) }>
        }""",
        one=ints([1]), rest=ints([-1]),
    )  # fmt: skip
    after, _ = run(before, FoldShapes())
    assert [node.op_type for node in after.graph.all_nodes()] == ["If", "Reshape", "Reshape"]
    assert_exact(before, after)
