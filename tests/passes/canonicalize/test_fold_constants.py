"""fold-constants: what is computed, what is left and why."""

from __future__ import annotations

import numpy as np
import pytest
from canon import assert_exact, graph, ints, ops, rand, reasons, run, same_graph, size_of

from pared.passes.canonicalize.fold_constants import FoldConstants


def test_a_chain_of_constants_becomes_one_constant() -> None:
    before = graph(
        """g (float[2,3] x) => (float[2,3] y) <float[3] a = {1.0, 2.0, 3.0}, float[3] b = {4.0, 5.0, 6.0}>
        { s = Add(a, b)  r = Sqrt(s)  y = Mul(x, r) }"""
    )
    after, stats = run(before, FoldConstants())
    assert (ops(after), stats.changed) == (["Mul"], 2)
    assert_exact(before, after)


def test_the_constant_has_the_name_of_what_it_replaces() -> None:
    before = graph("g (float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}> { s = Exp(a)  y = Mul(x, s) }")
    after, _ = run(before, FoldConstants())
    assert list(after.graph.initializers) == ["s"]


def test_constant_nodes_become_initializers() -> None:
    before = graph("g (float[2] x) => (float[2] y) { c = Constant<value = float[1] {3.0}>()  y = Mul(x, c) }")
    after, _ = run(before, FoldConstants())
    same_graph(after, graph("g (float[2] x) => (float[2] y) <float[1] c = {3.0}> { y = Mul(x, c) }"))


def test_a_constant_that_is_a_graph_output_keeps_its_name() -> None:
    before = graph(
        "g (float[2] x) => (float[2] y, float[2] s) <float[2] a = {1.0, 2.0}> { s = Exp(a)  y = Mul(x, s) }"
    )
    after, _ = run(before, FoldConstants())
    assert_exact(before, after)


def test_values_that_only_bodies_read_are_folded() -> None:
    before = graph(
        """g (bool c, float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}> {
            s = Exp(a)
            y = If(c) <then_branch = t () => (float[2] u) { u = Add(x, s) },
                       else_branch = e () => (float[2] v) { v = Sub(x, s) }>
        }"""
    )
    after, stats = run(before, FoldConstants())
    assert (ops(after), stats.changed) == (["If"], 1)
    assert_exact(before, after)


def test_constants_inside_bodies_are_folded() -> None:
    before = graph(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <then_branch = t () => (float[2] u)
                           { k = Constant<value = float[1] {2.0}>()  q = Sqrt(k)  u = Add(x, q) },
                       else_branch = e () => (float[2] v) { v = Neg(x) }>
        }"""
    )
    after, _ = run(before, FoldConstants())
    assert [node.op_type for node in after.graph.all_nodes()] == ["If", "Add", "Neg"]
    assert_exact(before, after)


def test_what_depends_on_an_input_stays() -> None:
    before = graph("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    after, stats = run(before, FoldConstants())
    assert (ops(after), stats.changed) == (["Exp"], 0)


def test_a_quantized_weight_stays_quantized() -> None:
    before = graph(
        """g (float[2,3] x) => (float[2,4] y) <float s = {0.5}, int8 z = {0}>
        { w = DequantizeLinear(q, s, z)  y = MatMul(x, w) }""",
        q=np.arange(12, dtype=np.int8).reshape(3, 4),
    )
    after, stats = run(before, FoldConstants())
    assert stats.changed == 0
    assert ops(after) == ["DequantizeLinear", "MatMul"]


def test_a_float_weight_before_a_quantizer_is_quantized() -> None:
    before = graph(
        """g (float[2,3] x) => (float[2,4] y) <float s = {0.5}, int8 z = {0}>
        { q = QuantizeLinear(f, s, z)  w = DequantizeLinear(q, s, z)  y = MatMul(x, w) }""",
        f=rand(3, 4),
    )
    after, _ = run(before, FoldConstants())
    assert ops(after) == ["DequantizeLinear", "MatMul"]
    assert_exact(before, after)


def test_random_operators_stay() -> None:
    before = graph("g (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>()  y = Add(x, r) }")
    _, stats = run(before, FoldConstants())
    assert (stats.changed, reasons(stats)) == (0, ["random operator"])


def test_ten_to_the_eighth_elements_are_never_made() -> None:
    before = graph(
        """g (float[1] x) => (float y) <int64[2] shape = {10000, 10000}>
        { z = ConstantOfShape<value = float[1] {1.0}>(shape)  s = ReduceSum<keepdims = 0>(z)
          y0 = Add(x, s)  y = ReduceSum<keepdims = 0>(y0) }"""
    )
    after, stats = run(before, FoldConstants())
    assert "ConstantOfShape" in ops(after)
    assert any("400000000 bytes" in reason for reason in reasons(stats))


def test_a_size_that_the_file_states_is_not_believed() -> None:
    # The shape of z is computed, so that only evaluation tells it; the declared one is not looked at.
    before = graph(
        """g (float[1] x) => (float[m,n] y) <int64[2] half = {10000, 5000}, int64[1] two = {2}>
        { size = Mul(half, two)  z = Expand(one, size)  y = Add(x, z) }""",
        one=np.ones((1, 1), np.float32),
    )
    after, stats = run(before, FoldConstants())
    assert ops(after) == ["Expand", "Add"]
    assert any("800000000 bytes" in reason for reason in reasons(stats))


@pytest.mark.parametrize(
    "huge",
    [
        "Expand(one, sizes)",
        "Tile(one, sizes)",
        "Pad(one, pads)",
        "EyeLike(wide)",
        "OneHot<axis = 0>(zero, depth, pair)",
        'Resize<mode = "nearest">(one, , , sizes)',
        "CenterCropPad(one, sizes)",
    ],
)
def test_no_operator_makes_ten_to_the_eighth_elements(huge: str) -> None:
    weights = {
        "one": np.ones((1, 1), np.float32), "sizes": ints([10000, 10000]), "zero": ints([0]),
        "pads": ints([0, 0, 10000, 10000]), "depth": np.array(10**8), "pair": np.zeros(2, np.float32),
    }  # fmt: skip
    kept = {name: array for name, array in weights.items() if name in huge}
    wide = "wide = Expand(one, sizes)" if "wide" in huge else ""
    kept |= {name: weights[name] for name in ("one", "sizes") if wide}
    before = graph(f"g (float[1,1] x) => (float[m,n] y) {{ {wide} h = {huge}  y = Mul(x, h) }}", **kept)
    _, stats = run(before, FoldConstants())
    assert stats.changed == 0
    assert "times the constants" in reasons(stats)[0]


def test_doubling_step_by_step_hits_the_same_limit() -> None:
    doublings = "  ".join(f"d{i + 1} = Concat<axis = 1>(d{i}, d{i})" for i in range(24))
    before = graph(f"g (float[1] x) => (float[m,n] y) {{ {doublings}  y = Add(x, d24) }}", d0=rand(4, 4))
    after, _ = run(before, FoldConstants())
    assert size_of(after) < size_of(before) + 16 * 1024


def test_small_growth_is_folded() -> None:
    before = graph(
        """g (float[8,8] x) => (float[8,8] y) <int64[2] shape = {8, 8}>
        { z = ConstantOfShape<value = float[1] {2.5}>(shape)  y = Add(x, z) }"""
    )
    after, _ = run(before, FoldConstants())
    assert ops(after) == ["Add"]
    assert_exact(before, after)


def test_an_operator_that_onnxruntime_lacks_is_refused_and_others_still_fold() -> None:
    before = graph(
        """g (float[2] x) => (float[2] y) <double[2] a = {1.0, 2.0}, float[2] b = {1.0, 4.0}>
        { n = Hardmax(a)  f = Cast<to = 1>(n)  r = Sqrt(b)  s = Add(x, r)  y = Add(s, f) }"""
    )
    after, stats = run(before, FoldConstants())
    assert "Sqrt" not in ops(after)
    assert any(reason.startswith("onnxruntime cannot evaluate it") for reason in reasons(stats))


def test_shared_results_are_computed_once() -> None:
    before = graph(
        """g (float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}>
        { s = Exp(a)  u = Mul(x, s)  y = Add(u, s) }"""
    )
    after, _ = run(before, FoldConstants())
    assert list(after.graph.initializers) == ["s"]
    assert_exact(before, after)


def test_a_constant_permutation_of_weights_is_exact() -> None:
    before = graph("g (float[2,3] x) => (float[2,4] y) { t = Transpose(w)  y = MatMul(x, t) }", w=rand(4, 3))
    after, _ = run(before, FoldConstants())
    assert ops(after) == ["MatMul"]
    assert_exact(before, after)


def test_an_index_that_only_data_tells_is_folded() -> None:
    before = graph(
        "g (float[2] x) => (float[n] y) { i = NonZero(m)  j = Squeeze(i, z)  y = Gather(x, j) }",
        m=np.array([1.0, 0.0], np.float32), z=ints([0]),
    )  # fmt: skip
    after, _ = run(before, FoldConstants())
    assert ops(after) == ["Gather"]
