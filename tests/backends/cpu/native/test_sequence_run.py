"""Tensors of any rank through lowering, code generation and the engine, against the reference."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_lower_read import with_constants
from test_lower_run import ISA, assert_as_reference, executable

from pared.backends.cpu.native.compile import _check_per_sample
from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import lower, supported
from pared.backends.cpu.native.reader import bind_batch
from pared.bench.encoder import encoder
from pared.compiler.errors import DataError

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def graph(body, inputs, outputs, arrays=None):
    """Return a model of the body's operators; `arrays` are its constants."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return with_constants(text, arrays or {})


def families(model):
    return [step.family for step in lower(model, ISA).steps]


ELEMENTWISE = [
    "a = Div(x, c)\n b = Erf(a)\n y = Mul(b, x)",
    "a = Sub(c, x)\n b = Exp(a)\n d = Add(b, row)\n y = Sqrt(d)",
    "a = Tanh(x)\n b = Sigmoid(x)\n d = Max(a, b)\n y = Min(d, row)",
    "a = Abs(x)\n b = Reciprocal(a)\n y = Where(mask, b, x)",
    "a = Floor(x)\n b = Neg(a)\n d = Sin(x)\n y = PRelu(d, b)",
    "a = LeakyRelu<alpha=0.2>(x)\n b = Elu(x)\n d = HardSigmoid(x)\n e = Add(a, b)\n y = Mul(e, d)",
]


@pytest.mark.parametrize("body", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(2, 3, 37), (1, 4, 2, 5, 3)])
def test_chains_of_any_rank_equal_the_reference(body, shape, tmp_path):
    sizes = ",".join(map(str, shape))
    last = shape[-1]
    arrays = {"c": np.array(1.7, np.float32), "row": np.abs(array(last)) + 1, "mask": array(last) > 0}
    used = {name: a for name, a in arrays.items() if f"({name}," in body or f", {name})" in body}
    model = graph(body, f"float[{sizes}] x", f"float[{sizes}] y", used)
    assert families(model) == ["chain_f32", "chain_f32"]  # one for all operators, one writes the output
    assert_as_reference(model, {"x": array(*shape)}, tmp_path)


@pytest.mark.parametrize(
    ("body", "out"),
    [
        ("y = Transpose<perm=[2,0,1]>(x)", (37, 2, 6)),
        (
            "a = Transpose<perm=[1,2,0]>(x)\n s = Constant<value_ints=[3,74,2]>()\n y = Reshape(a, s)",
            (3, 74, 2),
        ),
        ("y, z = Split<axis=2, num_outputs=2>(x)", (2, 6, 19)),
        ("p = Constant<value_ints=[0,1,2,0,-1,3]>()\n y = Pad(x, p)", (2, 6, 42)),
        ("i = Constant<value_ints=[5,-1,0,0]>()\n y = Gather<axis=1>(x, i)", (2, 4, 37)),
        ("i = Constant<value_int=-2>()\n y = Gather<axis=1>(x, i)", (2, 37)),
        ("r = Constant<value_ints=[2,1,3]>()\n y = Tile(x, r)", (4, 6, 111)),
        ("a = Transpose<perm=[0,2,1]>(x)\n b = Softmax(a)\n y = Transpose<perm=[0,2,1]>(b)", (2, 6, 37)),
        ("y = Concat<axis=1>(x, x)", (2, 12, 37)),
        ("y = LogSoftmax<axis=-1>(x)", (2, 6, 37)),
        ("a = Constant<value_ints=[0,2]>()\n y = ReduceMax<keepdims=0>(x, a)", (6,)),
        ("a = Constant<value_ints=[1]>()\n y = ReduceL2(x, a)", (2, 1, 37)),
        ("a = Constant<value_ints=[0,1,2]>()\n y = ReduceSum(x, a)", (1, 1, 1)),
        ("y = LpNormalization(x)", (2, 6, 37)),
    ],
)
def test_moves_and_rows_equal_the_reference(body, out, tmp_path):
    sizes = ",".join(map(str, out))
    model = graph(body, "float[2,6,37] x", f"float[{sizes}] y")
    assert_as_reference(model, {"x": array(2, 6, 37)}, tmp_path)


def test_slices_with_steps_equal_the_reference(tmp_path):
    body = (
        "s = Constant<value_ints=[35,1]>()\n e = Constant<value_ints=[-1000,6]>()\n"
        "a = Constant<value_ints=[2,1]>()\n t = Constant<value_ints=[-3,2]>()\n"
        "b = Slice(x, s, e, a, t)\n y = Relu(b)"
    )
    model = graph(body, "float[2,6,37] x", "float[2,3,12] y")
    assert_as_reference(model, {"x": array(2, 6, 37)}, tmp_path)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_of_an_image_equals_the_reference(mode, tmp_path):
    body = f'c = Conv(x, w)\n y = DepthToSpace<blocksize=2, mode="{mode}">(c)'
    model = graph(body, "float[1,3,5,4] x", "float[1,3,10,8] y", {"w": array(12, 3, 1, 1)})
    assert_as_reference(model, {"x": array(1, 3, 5, 4)}, tmp_path)


def test_padded_and_sliced_channels_of_images_equal_the_reference(tmp_path):
    body = (
        "c = Conv(x, w)\n p = Constant<value_ints=[0,3,0,0,0,2,0,0]>()\n b = Pad(c, p)\n d = Sigmoid(b)\n"
        "y = Conv(d, v)"
    )
    arrays = {"w": array(12, 3, 1, 1), "v": array(4, 17, 1, 1, seed=1)}
    model = graph(body, "float[1,3,6,6] x", "float[1,4,6,6] y", arrays)
    assert_as_reference(model, {"x": array(1, 3, 6, 6)}, tmp_path)


@pytest.mark.parametrize(
    "how",
    [
        'mode="linear", coordinate_transformation_mode="half_pixel"',
        'mode="linear", coordinate_transformation_mode="align_corners"',
        'mode="linear", coordinate_transformation_mode="asymmetric"',
        'mode="nearest", coordinate_transformation_mode="half_pixel"',
        'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
    ],
)
def test_resized_images_equal_the_reference(how, tmp_path):
    body = f"c = Conv(x, w)\n d = Resize<{how}>(c, , s)\n y = Relu(d)"
    arrays = {"w": array(5, 3, 1, 1), "s": np.array([1, 1, 2, 3], np.float32)}
    model = graph(body, "float[1,3,4,5] x", "float[1,5,8,15] y", arrays)
    assert_as_reference(model, {"x": array(1, 3, 4, 5)}, tmp_path)


def test_nearest_by_an_uneven_factor_is_refused():
    arrays = {"s": np.array([1, 1, 1.5, 1], np.float32)}
    model = graph('y = Resize<mode="nearest">(x, , s)', "float[1,3,4,5] x", "float[1,3,6,5] y", arrays)
    assert ["unevenly" in reason for _, reason in supported(model, ISA)] == [True]


@settings(deadline=None, max_examples=5)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.sampled_from([1, 5, 16, 33, 48]),
    st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_products_of_activations_equal_the_reference(
    tmp_path_factory, batch, rows, depth, columns, turned, seed
):
    right = f"{columns},{depth}" if turned else f"{depth},{columns}"
    body = "r = Transpose<perm=[0,2,1]>(b)\n" if turned else "r = Identity(b)\n"
    body += "p = MatMul(a, r)\n q = Mul(p, c)\n y = Add(q, m)"
    model = graph(
        body, f"float[{batch},{rows},{depth}] a, float[{batch},{right}] b",
        f"float[{batch},{rows},{columns}] y", {"c": np.array(0.3, np.float32), "m": array(columns)},
    )  # fmt: skip
    assert families(model)[0] == "matmul_f32"
    inputs = {"a": array(batch, rows, depth, seed=seed),
              "b": array(batch, *map(int, right.split(",")), seed=seed + 1)}  # fmt: skip
    assert_as_reference(model, inputs, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("depth", [20, 32])
@pytest.mark.parametrize("function", ["y = Gelu(b)", 'y = Gelu<approximate="tanh">(b)', "y = Add(b, z)"])
def test_dense_layers_take_bias_function_and_residual(depth, function, tmp_path):
    body = f"a = MatMul(x, w)\n b = Add(a, c)\n {function}"
    inputs = f"float[2,5,{depth}] x, float[2,5,18] z" if "z" in function else f"float[2,5,{depth}] x"
    model = graph(body, inputs, "float[2,5,18] y", {"w": array(depth, 18), "c": array(18, seed=1)})
    assert families(model).count("gemm_f32") == 1
    assert not any("y" in step.covers for step in lower(model, ISA).steps if step.family == "chain_f32")
    feeds = {"x": array(2, 5, depth), "z": array(2, 5, 18, seed=2)}
    assert_as_reference(model, {name: feeds[name] for name in ("x", "z") if name in inputs}, tmp_path)


LAYER_NORM = (
    "m = ReduceMean(x, a)\n d = Sub(x, m)\n p = Pow(d, two)\n v = ReduceMean(p, a)\n e = Add(v, eps)\n"
    "r = Sqrt(e)\n q = Div(d, r)\n s = Mul(q, g)\n y = Add(s, b)"
)
RMS_NORM = (
    "p = Mul(x, x)\n v = ReduceMean(p, a)\n e = Add(v, eps)\n r = Sqrt(e)\n i = Div(one, r)\n"
    "q = Mul(x, i)\n y = Mul(q, g)"
)


def normalization(body, outputs="float[2,3,37] y"):
    found = {
        "a": np.array([-1]), "two": np.array(2, np.float32), "one": np.array(1, np.float32),
        "eps": np.array(1e-5, np.float32), "g": array(37, seed=3), "b": array(37, seed=4),
    }  # fmt: skip
    names = {name: value for name, value in found.items() if f", {name})" in body or f"({name}," in body}
    return graph(body, "float[2,3,37] x", outputs, names)


@pytest.mark.parametrize("body", [LAYER_NORM, RMS_NORM])
def test_written_out_normalizations_are_one_step(body, tmp_path):
    model = normalization(body)
    assert families(model)[0] == "rows_f32"
    assert len(families(model)) == 2
    assert_as_reference(model, {"x": array(2, 3, 37)}, tmp_path)


@pytest.mark.parametrize("body", [LAYER_NORM, RMS_NORM])
def test_a_normalization_whose_inner_value_is_read_elsewhere_stays_written_out(body, tmp_path):
    model = normalization(body, "float[2,3,37] y, float[2,3,1] r")
    assert "rows_f32" not in families(model)
    assert_as_reference(model, {"x": array(2, 3, 37)}, tmp_path)


def table_model(batch=1):
    body = "a = Gather<axis=0>(w, i)\n y = Relu(a)"
    return graph(body, f"int64[{batch},4] i", f"float[{batch},4,24] y", {"w": array(10, 24)})


def test_an_embedding_equals_the_reference(tmp_path):
    assert_as_reference(table_model(), {"i": np.array([[3, -1, 0, -10]])}, tmp_path)


def test_samples_of_an_embedding_are_independent():
    one, two = (lower(table_model(batch), ISA) for batch in (1, 2))
    _check_per_sample(one, two)


@pytest.mark.parametrize("bad", [10, -11, 2**40])
def test_an_index_outside_the_table_is_an_error(bad, tmp_path):
    model = executable(table_model(), tmp_path)
    with pytest.raises(DataError) as caught:
        model.run({"i": np.array([[0, 1, bad, 2]])})
    assert caught.value.reason == "index-out-of-range"
    model.run({"i": np.array([[0, 1, 2, 3]])})  # the next run is not disturbed


def test_a_small_encoder_equals_the_reference_at_the_bound_of_memory(tmp_path):
    model = bind_batch(ir.from_proto(encoder(layers=1, width=32, heads=2, positions=20)))
    assert supported(model, ISA) == []
    assert families(model).count("chain_f32") == 2  # rows of 20 scores are copied; the output is
    assert_as_reference(model, {"x": array(1, 20, 32)}, tmp_path)
