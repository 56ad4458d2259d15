"""Equalization keeps the function, evens out the ranges, and says where it cannot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import constant, graph, run

from pared.compiler.ir import walk
from pared.compiler.ir.scaled import FILE, read_scaled
from pared.compiler.pass_api import Context
from pared.passes.quantize.equalize import Equalize
from pared.passes.quantize.pairs import find_pairs, linear_of

EPS = float(np.finfo(np.float32).eps)

CHAINS = {
    "conv relu depthwise relu conv": """g (float[1,3,8,8] x, float[6,3,3,3] a, float[6] ab, float[6,1,3,3] d,
        float[6] db, float[4,6,1,1] c) => (float[n,m,h,w] y) {
        p = Conv(x, a, ab) q = Relu(p) r = Conv<group: int = 6>(q, d, db) s = Relu(r) y = Conv(s, c) }""",
    "conv prelu pool flatten gemm": """g (float[1,3,8,8] x, float[6,3,3,3] a, float[6] ab, float[6,1,1] k,
        float[54,4] c) => (float[n,m] y) {
        p = Conv(x, a, ab) q = PRelu(p, k)
        r = MaxPool<kernel_shape: ints = [2,2], strides: ints = [2,2]>(q)
        s = Flatten(r) y = Gemm(s, c) }""",
    "matmul add leakyrelu matmul": """g (float[1,8] x, float[8,6] a, float[6] ab, float[6,4] c) =>
        (float[n,m] y) { p = MatMul(x, a) q = Add(p, ab) r = LeakyRelu(q) y = MatMul(r, c) }""",
    "grouped conv to grouped conv": """g (float[1,4,6,6] x, float[6,2,3,3] a, float[6] ab, float[4,3,1,1] c)
        => (float[n,m,h,w] y) { p = Conv<group: int = 2>(x, a, ab) q = Relu(p)
        y = Conv<group: int = 2>(q, c) }""",
    "conv transpose to conv transpose": """g (float[1,4,6,6] x, float[4,3,3,3] a, float[6] ab,
        float[6,5,2,2] c) => (float[n,m,h,w] y) { p = ConvTranspose<group: int = 2>(x, a, ab) q = Relu(p)
        y = ConvTranspose(q, c) }""",
    "nothing in between, scalar bias added": """g (float[1,8] x, float[6,8] a, float one, float[4,6] c)
        => (float[n,m] y) { p = Gemm<transB: int = 1>(x, a) q = Add(p, one)
        y = Gemm<transB: int = 1>(q, c) }""",
    "bias added after flattening": """g (float[1,3,8,8] x, float[6,3,3,3] a, float[216] f, float[216,4] c)
        => (float[n,m] y) { p = Conv(x, a) q = Flatten(p) r = Add(q, f) y = MatMul(r, c) }""",
    "channels moved last": """g (float[1,3,8,8] x, float[6,3,3,3] a, float[6] ab, float[6,4] c)
        => (float[n,h,w,m] y) { p = Conv(x, a, ab) q = Relu(p) r = Transpose<perm: ints = [0,2,3,1]>(q)
        y = MatMul(r, c) }""",
}


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Sizes of the declared inputs but x."""
    declared = text[text.index("(") + 1 : text.index("=>")].strip().rstrip(")")
    found: dict[str, tuple[int, ...]] = {}
    for part in declared.split("float")[1:]:
        dims, name = part.split("]") if "]" in part else ("", part)
        found[name.strip(" ,\n)")] = tuple(int(d) for d in dims.strip("[ ").split(",") if d)
    found.pop("x")
    return found


def chain(name: str, spread: float = 3.0, seed: int = 0) -> ir.Model:
    """A chain whose channels differ in range by powers of ten."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for key, shape in shapes(CHAINS[name]).items():
        array = rng.normal(size=shape)
        if key in ("a", "d"):
            axis = 1 if "MatMul(x" in CHAINS[name] else 0
            array *= (10 ** rng.uniform(-spread, 0, shape[axis])).reshape(
                [-1 if i == axis else 1 for i in range(len(shape))]
            )
        arrays[key] = np.asarray(array, np.float32)
    return graph(CHAINS[name], **arrays)


def feed(model: ir.Model) -> dict[str, np.ndarray]:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return {"x": np.random.default_rng(9).normal(size=[int(d) for d in shape]).astype(np.float32)}


def magnitude(model: ir.Model) -> ir.Model:
    """The model with all constants replaced by their magnitudes: bounds the sums of products."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.abs(value.const_value.numpy()), name=value.name)
    return copy


@pytest.mark.parametrize("name", CHAINS)
def test_outputs_stay_within_the_rounding_of_scaled_weights(name: str) -> None:
    model = chain(name)
    x = feed(model)
    # Each product has 2 weights and 2 biases that were rounded once more, sums have at most 54 terms and are
    # ordered alike: (2 + 2 + 54) half ulps of the sum of magnitudes bound the difference.
    bound = 58 * EPS * run(magnitude(model), {"x": np.abs(x["x"])})["y"].max()
    before = run(model, x)["y"]
    stats = Equalize().apply(model, Context())
    assert stats.changed > 0
    np.testing.assert_allclose(run(model, x)["y"], before, rtol=0, atol=bound)


@pytest.mark.parametrize("name", CHAINS)
def test_powers_of_two_keep_every_bit(name: str) -> None:
    model = chain(name)
    before = run(model, feed(model))["y"]
    stats = Equalize(exact=True).apply(model, Context())
    assert stats.changed > 0
    np.testing.assert_array_equal(run(model, feed(model))["y"], before)


@pytest.mark.parametrize("name", CHAINS)
def test_ranges_of_a_pair_are_equal_afterwards(name: str) -> None:
    model = chain(name, spread=1.0)
    Equalize(iterations=200).apply(model, Context())
    for pair in find_pairs(model, []):
        second = np.zeros(pair.first.rows)
        np.maximum.at(second, pair.channel_of, pair.second.column_ranges())
        np.testing.assert_allclose(pair.first.row_ranges(), second, rtol=0.01)


def per_tensor_sqnr_db(model: ir.Model) -> float:
    """Output SQNR with every weight rounded to int8 with one scale per tensor."""
    x = feed(model)
    before = run(model, x)["y"]
    rounded = model.clone()
    for value in rounded.graph.initializers.values():
        assert value.const_value is not None
        w = value.const_value.numpy()
        if w.ndim >= 2:
            scale = np.abs(w).max() / 127
            value.const_value = ir.tensor((np.rint(w / scale) * scale).astype(np.float32), name=value.name)
    noise = run(rounded, x)["y"] - before
    return float(10 * np.log10(np.square(before).sum() / np.square(noise).sum()))


@pytest.mark.parametrize("name", ["conv relu depthwise relu conv", "conv prelu pool flatten gemm"])
def test_int8_weights_with_one_scale_gain_10_db_on_badly_scaled_channels(name: str) -> None:
    rng = np.random.default_rng(1)
    model = chain(name, spread=0.0, seed=1)
    pairs = find_pairs(model, [])
    for pair in pairs[:1]:
        # A function-preserving factor per channel makes the ranges differ by up to 1000.
        pair.scale(10 ** rng.uniform(-1.5, 1.5, pair.first.rows))
        pair.rewrite_between(model, pair.first.divide)
        pair.first.rewrite(model)
        pair.second.rewrite(model)
    spoiled = per_tensor_sqnr_db(model)
    Equalize().apply(model, Context())
    assert per_tensor_sqnr_db(model) > spoiled + 10


def test_values_between_the_layers_lose_their_names() -> None:
    model = chain("matmul add leakyrelu matmul")
    Equalize().apply(model, Context())
    names = [node.outputs[0].name for node in model.graph]
    assert names == ["p_equalized", "q_equalized", "r_equalized", "y"]


@pytest.mark.parametrize("name", CHAINS)
def test_the_account_leads_back_to_the_original_values(name: str) -> None:
    model = chain(name)
    x = feed(model)
    values = [str(node.outputs[0].name) for node in model.graph][:-1]
    want = run(model, x, values)
    # Twice, since one pass may scale what another has scaled; powers of two keep every bit.
    first = Equalize(iterations=1, exact=True).apply(model, Context())
    second = Equalize(exact=True).apply(model, Context(attachments=first.attachments))
    found = read_scaled(second.attachments[FILE])
    assert sorted(entry.of for entry in found.values()) == sorted(values)
    got = run(model, x, list(found))
    for name, entry in found.items():
        np.testing.assert_array_equal(got[name] * entry.divisor, want[entry.of])


def test_a_second_run_changes_nothing() -> None:
    model = chain("conv relu depthwise relu conv")
    Equalize(iterations=500, exact=True).apply(model, Context())
    first = {name: constant(model, name) for name in model.graph.initializers}
    Equalize(iterations=500, exact=True).apply(model, Context())
    ratios = [
        np.abs(np.log2(np.abs(constant(model, n)) / np.abs(a))).max()
        for n, a in first.items()
        if n in model.graph.initializers
    ]
    assert max(ratios, default=0.0) <= 1.0


REFUSED = {
    "y = Relu(p)": "output 'y' is a graph output",
    "q = Sigmoid(p) y = MatMul(q, c)": "Sigmoid 'n1' is not positively homogeneous",
    "q = Clip(p, zero, six) y = MatMul(q, c)": "Clip 'n1' is not positively homogeneous",
    "q = Add(p, p) y = MatMul(q, c)": "output 'p' feeds 2 nodes",
    "q = Relu(p) r = MatMul(q, c) s = MatMul(q, c) y = Add(r, s)": "output 'q' feeds 2 nodes",
    "q = MatMul(c, p) y = Relu(q)": "MatMul 'n1' does not read it as data",
}


@pytest.mark.parametrize("rest", REFUSED)
def test_a_layer_without_partner_is_refused_with_the_reason(rest: str) -> None:
    model = graph(
        "g (float[6,8] x, float[8,6] a, float[6,6] c, float zero, float six) => (float[n,m] y) "
        f"{{ p = MatMul(x, a) {rest} }}",
        a=np.ones((8, 6), np.float32),
        c=np.ones((6, 6), np.float32),
        zero=np.float32(0),
        six=np.float32(6),
    )
    refused: list = []
    assert not [pair for pair in find_pairs(model, refused) if pair.first.node.name == "n0"]
    assert REFUSED[rest] in [r.reason for r in refused if r.node == "n0"]


def test_clip_from_zero_on_counts_as_relu() -> None:
    model = graph(
        "g (float[6,8] x, float[8,6] a, float[6,6] c, float zero) => (float[n,m] y) "
        "{ p = MatMul(x, a) q = Clip(p, zero) y = MatMul(q, c) }",
        a=np.ones((8, 6), np.float32),
        c=np.ones((6, 6), np.float32),
        zero=np.float32(0),
    )
    assert len(find_pairs(model, [])) == 1


def test_a_shared_weight_is_refused() -> None:
    model = graph(
        "g (float[6,6] x, float[6,6] a) => (float[n,m] y) { p = MatMul(x, a) q = Relu(p) y = MatMul(q, a) }",
        a=np.ones((6, 6), np.float32),
    )
    assert linear_of(model.graph[0]) == "weight 'a' is shared"


def test_a_channel_of_zeros_stays_as_it_is() -> None:
    model = graph(
        "g (float[2,3] x, float[3,2] a, float[2,3] c) => (float[n,m] y) "
        "{ p = MatMul(x, a) q = Relu(p) y = MatMul(q, c) }",
        a=np.array([[1, 0], [2, 0], [4, 0]], np.float32),
        c=np.array([[1, 1, 1], [0, 0, 0]], np.float32),
    )
    stats = Equalize().apply(model, Context())
    assert stats.changed == 1
    weight = walk.constant(model.graph[0].inputs[1])
    assert weight is not None
    np.testing.assert_array_equal(weight[:, 1], 0)
    assert np.all(np.isfinite(weight))


def test_arrays_of_the_original_model_are_not_touched() -> None:
    model = chain("conv relu depthwise relu conv")
    copies = {name: constant(model, name).copy() for name in model.graph.initializers}
    draft = model.clone()
    Equalize().apply(draft, Context())
    for name, array in copies.items():
        np.testing.assert_array_equal(constant(model, name), array)
