"""eliminate: no-ops go, chains of data movement shorten, constant conditions are decided."""

from __future__ import annotations

import numpy as np
import pytest
from canon import assert_exact, graph, ints, ops, reasons, run, same_graph

from pared.passes.canonicalize.eliminate import Eliminate

PLAIN = "g (float[2,3,4] x) => (float[2,3,4] y)"
WEIGHTS = {
    "zero": np.zeros(1, np.float32), "minus_zero": -np.zeros(1, np.float32), "one": np.ones(1, np.float32),
    "two": np.full(1, 2, np.float32), "ones": np.ones((2, 3, 4), np.float32), "off": np.array(False),
    "shape": ints([2, 3, 4]), "flat": ints([24]), "axis": ints([0]), "starts": ints([0, 0]),
    "ends": ints([3, 2**60]), "axes": ints([1, 2]), "some": ints([1]), "five": ints([5]),
    "nothing": ints([0] * 6), "once": ints([1, 1, 1]), "ratio": np.array(0.5, np.float32),
    "inf": np.array(np.inf, np.float32), "six": np.array(6, np.float32), "nought": np.array(0, np.float32),
    "back": ints([-1]), "least": ints([-(2**60)]), "last": ints([2]),
}  # fmt: skip


def used(text: str) -> dict[str, np.ndarray]:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in WEIGHTS.items() if name in words}


@pytest.mark.parametrize(
    "step",
    [
        "Identity(a)",
        "Dropout(a)",
        "Dropout(a, ratio, off)",
        "Cast<to = 1>(a)",
        "CastLike(a, x)",
        "Relu(a)",
        "Clip(a)",
        "Clip(a, , inf)",
        "Reshape(a, shape)",
        "Expand(a, shape)",
        "Expand(a, once)",
        "Transpose<perm = [0,1,2]>(a)",
        "Slice(a, starts, ends, axes)",
        "Concat<axis = 0>(a)",
        "Sum(a)",
        "Max(a)",
        "Pad(a, nothing)",
        "Tile(a, once)",
        "Split<num_outputs = 1, axis = 0>(a)",
        "Mul(a, one)",
        "Mul(ones, a)",
        "Div(a, one)",
        "Add(a, minus_zero)",
        "Sub(a, zero)",
    ],
)
def test_a_no_op_goes(step: str) -> None:
    before = graph(f"{PLAIN} {{ a = Relu(x)  b = {step}  y = Neg(b) }}", **used(step))
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Relu", "Neg"]
    assert_exact(before, after)


@pytest.mark.parametrize(
    "step",
    [
        "Dropout(a, ratio, training)",
        "Cast<to = 11>(a)",
        "Clip(a, nought, six)",
        "Transpose<perm = [1,0,2]>(a)",
        "Slice(a, some, ends2, axis)",
        "Slice(a, back, least, last, back)",
        "Concat<axis = 0>(a, a)",
        "Mul(a, two)",
        "Div(one, a)",
        "Add(a, zero)",
        "Sub(zero, a)",
    ],
)
def test_what_does_something_stays(step: str) -> None:
    extra = {"ends2": ints([2])} if "ends2" in step else {}
    extra |= {"training": np.array(True)} if "training" in step else {}
    before = graph(f"g (float[2,3,4] x) => (float[q,r,s] y)"
                   f" {{ a = Neg(x)  b = {step}  c = Cast<to = 1>(b)  y = Neg(c) }}",
                   **used(step), **extra)  # fmt: skip
    after, _ = run(before, Eliminate())
    assert step.split("(")[0].split("<")[0] in ops(after)


def test_multiplying_by_a_bigger_array_of_ones_stays_for_it_broadcasts() -> None:
    before = graph("g (float[4] x) => (float[2,3,4] y) { y = Mul(x, ones) }", **used("ones"))
    assert run(before, Eliminate())[1].changed == 0


def test_relu_of_what_may_be_negative_stays() -> None:
    assert run(graph(f"{PLAIN} {{ a = Neg(x)  y = Relu(a) }}"), Eliminate())[1].changed == 0


def test_relu_after_max_pool_of_relu_goes() -> None:
    before = graph(
        "g (float[1,2,4,4] x) => (float[1,2,2,2] y)"
        " { a = Relu(x)  b = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)  y = Relu(b) }"
    )
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Relu", "MaxPool"]
    assert_exact(before, after)


def test_clip_twice_at_the_same_bounds_is_once() -> None:
    text = f"{PLAIN} {{ a = Clip(x, nought, six)  b = Clip(a, nought, six)  y = Neg(b) }}"
    after, _ = run(graph(text, **used(text)), Eliminate())
    assert ops(after) == ["Clip", "Neg"]


def test_dropout_whose_mask_is_used_is_refused() -> None:
    before = graph("g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout(x) }")
    _, stats = run(before, Eliminate())
    assert (stats.changed, reasons(stats)) == (0, ["its mask is used"])


def test_dropout_of_an_unknown_mode_is_refused() -> None:
    before = graph(
        "g (float[2] x, bool t) => (float[2] y) { y = Dropout(x, r, t) }", r=np.array(0.5, np.float32)
    )
    _, stats = run(before, Eliminate())
    assert (stats.changed, reasons(stats)) == (0, ["training_mode is not constant"])


def test_an_output_keeps_its_name_type_and_shape() -> None:
    before = graph("g (float[n,3] x) => (float[n,3] y) { a = Relu(x)  y = Identity(a) }")
    after, _ = run(before, Eliminate())
    same_graph(after, graph("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }"))
    assert_exact(before, after)


def test_an_input_handed_through_stays_an_identity() -> None:
    before = graph("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    assert run(before, Eliminate())[1].changed == 0


def test_another_no_op_between_input_and_output_becomes_an_identity() -> None:
    before = graph("g (float[2] x) => (float[2] y) { y = Dropout(x) }")
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Identity"]
    assert_exact(before, after)


def test_one_value_under_two_output_names_keeps_an_identity() -> None:
    before = graph("g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x)  z = Identity(y) }")
    after, stats = run(before, Eliminate())
    assert (ops(after), stats.changed) == (["Neg", "Identity"], 0)


def test_symbolic_sizes_of_one_name_are_equal() -> None:
    before = graph("g (float[n,3] x) => (float[n,3] y)"
                   " { a = Relu(x)  b = Unsqueeze(a, z)  c = Squeeze(b, z)  y = Neg(c) }",
                   z=ints([0]))  # fmt: skip
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Relu", "Neg"]
    assert_exact(before, after)


def test_a_reshape_between_unknown_sizes_stays() -> None:
    before = graph("g (float[n,3] x, int64[2] s) => (float[m,k] y) { y = Reshape(x, s) }")
    assert run(before, Eliminate())[1].changed == 0


def test_transposes_that_undo_each_other_go() -> None:
    before = graph(
        f"{PLAIN} {{ a = Transpose<perm = [1,2,0]>(x)  b = Transpose<perm = [2,0,1]>(a)  y = Neg(b) }}"
    )
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Neg"]
    assert_exact(before, after)


def test_two_transposes_become_one() -> None:
    before = graph(
        "g (float[2,3,4] x) => (float[4,3,2] y)"
        " { a = Transpose<perm = [1,2,0]>(x)  y = Transpose<perm = [1,0,2]>(a) }"
    )
    after, _ = run(before, Eliminate())
    same_graph(after, graph("g (float[2,3,4] x) => (float[4,3,2] y) { y = Transpose<perm = [2,1,0]>(x) }"))
    assert_exact(before, after)


def test_an_inner_transpose_with_other_readers_stays() -> None:
    before = graph(
        """g (float[2,3,4] x) => (float[2,4,3] y, float[3,4,2] z)
        { a = Transpose<perm = [1,2,0]>(x)  y = Transpose<perm = [2,1,0]>(a)  z = Neg(a) }"""
    )
    assert run(before, Eliminate())[1].changed == 0


def test_a_transpose_that_moves_ones_only_is_a_reshape() -> None:
    before = graph("g (float[1,3,1,4] x) => (float[3,1,4,1] y) { y = Transpose<perm = [1,0,3,2]>(x) }")
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Reshape"]
    assert_exact(before, after)


def test_reshapes_after_each_other_become_one() -> None:
    before = graph(
        "g (float[2,3,4] x) => (float[6,4] y)"
        " { a = Reshape(x, flat)  b = Unsqueeze(a, axis)  y = Reshape(b, s) }",
        **used("flat axis"), s=ints([6, 4]),
    )  # fmt: skip
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Reshape"]
    assert_exact(before, after)


def test_reshapes_with_one_symbolic_size_become_one() -> None:
    before = graph(
        "g (float[n,3,4] x) => (float[n,6,2] y) { a = Flatten<axis = 1>(x)  y = Reshape(a, s) }",
        s=ints([0, 6, 2]),
    )
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Reshape"]
    assert_exact(before, after, dynamic=5)


def test_slices_along_different_axes_become_one() -> None:
    before = graph(
        "g (float[2,8,8] x) => (float[2,4,2] y) { a = Slice(x, o, e, p, t)  y = Slice(a, f, e, q, u) }",
        o=ints([0]), e=ints([2**60]), p=ints([1]), t=ints([2]), f=ints([1]), q=ints([-1]), u=ints([4]),
    )  # fmt: skip
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Slice"]
    assert_exact(before, after)


def test_slices_along_one_axis_stay() -> None:
    before = graph(
        "g (float[2,8,8] x) => (float[2,2,8] y) { a = Slice(x, o, e, p, t)  y = Slice(a, o, e, p, t) }",
        o=ints([0]), e=ints([2**60]), p=ints([1]), t=ints([2]),
    )  # fmt: skip
    assert run(before, Eliminate())[1].changed == 0


def test_a_sum_of_two_becomes_an_add() -> None:
    before = graph(f"{PLAIN} {{ a = Sigmoid(x) y = Sum(a, x) }}")
    after, _ = run(before, Eliminate())
    assert ops(after) == ["Sigmoid", "Add"]
    assert_exact(before, after)


def test_a_sum_of_three_stays() -> None:
    before = graph(f"{PLAIN} {{ a = Sigmoid(x) b = Relu(x) y = Sum(a, b, x) }}")
    same_graph(run(before, Eliminate())[0], before)
