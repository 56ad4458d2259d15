import numpy as np
import onnx_ir as ir
import pytest
from binary_graphs import Graph
from hypothesis import given, settings
from hypothesis import strategies as st
from popcount_oracle import isa

from pared.backends.cpu.native import codegen
from pared.backends.cpu.native.engine import load
from pared.backends.cpu.native.kernels.bits import Code
from pared.backends.cpu.native.lower import lower, supported
from pared.backends.cpu.native.planner import plan
from pared.backends.cpu.native.weights_binary import bases_of
from pared.backends.reference import evaluate

FEW = settings(deadline=None, max_examples=3)


def run(model, x, folder):
    """Compile a model, load it and run it once; also returns the kernels' families."""
    program = lower(model, isa())
    for name, content in codegen.build(program, plan(program), isa()).items():
        (folder / name).write_bytes(content)
    executable = load(folder, {"isa": " ".join([isa().arch, *isa().features]), "batched": False}, 1)
    try:
        (result,) = executable.run({"x": x}).values()
    finally:
        executable.close()
    return result, [step.family for step in program.steps]


def assert_exact(graph, y, shape, folder):
    """Compare with the reference to the last bit; returns the kernels' families."""
    model, x = graph.model(y, shape), graph.input()
    (want,) = evaluate(model, {"x": x}).values()
    got, families = run(model, x, folder)
    np.testing.assert_array_equal(got, want)
    return families


@FEW
@given(
    st.sampled_from(["binary", "sign", "ternary", "uint2", "int2"]), st.integers(1, 3), st.integers(1, 70),
    st.integers(0, 999),
)  # fmt: skip
def test_bits_go_from_layer_to_layer_through_batch_norm_and_pooling(
    tmp_path_factory, code, batch, channels, seed
):
    graph = Graph(seed, (batch, 5, 9, 7))
    x = graph.code("x", code)
    x = graph.conv(x, 5, channels)
    x = graph.code(graph.normalize(x, channels), code)
    x = graph.node("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
    x = graph.conv(x, channels, 33, strides=[2, 1])
    x = graph.normalize(x, 33)
    families = assert_exact(graph, x, (batch, 33, 3, 4), tmp_path_factory.mktemp("bits"))
    assert {"binarize", "conv_binary", "pool_binary"} <= set(families)
    assert "unpack_bits" not in families
    assert "conv_f32" not in families


@FEW
@given(st.sampled_from(["binary", "ternary", "uint2"]), st.sampled_from([16, 48, 64]), st.integers(0, 999))
def test_a_real_valued_stream_around_binary_layers_is_exact(tmp_path_factory, code, channels, seed):
    graph = Graph(seed, (1, channels, 6, 15))
    x = "x"
    for _ in range(2):
        y = graph.normalize(graph.conv(graph.code(x, code), channels, channels), channels)
        x = graph.node("Add", y, x) if graph.rng.random() < 0.5 else graph.node("Add", x, y)
    families = assert_exact(graph, x, (1, channels, 6, 15), tmp_path_factory.mktemp("stream"))
    # With whole words a layer's result is binarized where it is made.
    assert families.count("binarize") == (1 if channels == 64 else 2)
    assert families.count("conv_binary") == 2


@FEW
@given(st.integers(0, 999))
def test_int8_first_and_last_layers_join_binary_ones(tmp_path_factory, seed):
    graph = Graph(seed, (1, 3, 12, 12))
    weight = graph.quant(graph.constant(graph.rng.standard_normal((32, 3, 3, 3))), 2**-5, 8.0)
    x = graph.node("Conv", graph.quant("x", 2**-4, 8.0), weight, pads=[1] * 4, strides=[2, 2])
    x = graph.quant(graph.node("Relu", x), 2**-3, 8.0, signed=0)
    x = graph.node("Sub", x, graph.constant(1.0))
    x = graph.normalize(graph.conv(graph.code(x, "binary"), 32, 40), 40)
    x = graph.quant(graph.node("Flatten", graph.node("GlobalMaxPool", x)), 2**-3, 8.0)
    last = graph.quant(graph.constant(graph.rng.standard_normal((7, 40))), 2**-6, 8.0)
    y = graph.node("Gemm", x, last, transB=1)
    families = assert_exact(graph, y, (1, 7), tmp_path_factory.mktemp("int8"))
    assert {"conv_int8", "binarize", "conv_binary", "gemm_int8"} <= set(families)


@FEW
@given(st.integers(2, 3), st.booleans(), st.integers(0, 999))
def test_weights_that_are_a_sum_of_bases_take_one_pass_each(tmp_path_factory, count, wide, seed):
    graph = Graph(seed, (1, 32 if wide else 20, 5, 8))
    inputs = graph.shape[1]
    # Scales that are sums of few powers of two: the reference's own weights are exact then.
    terms = []
    for k in range(count):
        signs = graph.constant(graph.rng.standard_normal((32, inputs, 3, 3)))
        base = graph.node("BipolarQuant", signs, graph.constant(1.0), domain="qonnx.custom_op.general")
        scale = graph.rng.integers(1, 8, (32, 1, 1, 1)) * 2.0 ** -(k + 3)
        terms.append(graph.node("Mul", base, graph.constant(scale)))
    weight = terms[0]
    for term in terms[1:]:
        weight = graph.node("Add", weight, term)
    x = graph.conv(graph.code("x", "binary"), inputs, 32, weight=weight)
    x = graph.code(graph.normalize(x, 32), "binary", 1.0)
    y = graph.conv(x, 32, 8, 1)
    families = assert_exact(graph, y, (1, 8, 5, 8), tmp_path_factory.mktemp("bases"))
    assert families.count("conv_binary") == count + 1
    assert families.count("binarize") == 1  # that of the input; the sum is compared in its last pass


def test_bytes_stay_bytes_between_an_int8_layer_and_a_sign(tmp_path):
    graph = Graph(8, (1, 5, 9, 8))
    x = graph.node("MaxPool", graph.quant("x", 0.25, 8.0), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = graph.node("Add", graph.code(graph.normalize(x, 5), "ternary"), x)
    families = assert_exact(graph, y, (1, 5, 5, 4), tmp_path)
    assert {"pool_int8", "binarize"} <= set(families)
    assert "pool_f32" not in families


def test_bases_on_other_data_than_bits_are_plain_weights(tmp_path):
    graph = Graph(9, (1, 8, 5, 5))
    weight = graph.node("Add", graph.signs((4, 8, 3, 3), 0), graph.signs((4, 8, 3, 3), 0))
    y = graph.conv("x", 8, 4, weight=weight)
    model, x = graph.model(y, (1, 4, 5, 5)), graph.input()
    got, families = run(model, x, tmp_path)
    assert "conv_f32" in families
    # 72 terms; the weights below 2, the data below 9 in magnitude.
    np.testing.assert_allclose(got, evaluate(model, {"x": x})[y], rtol=0, atol=72 * 18 * 2.0**-24)


def test_bits_are_unpacked_for_layers_that_compute_in_float(tmp_path):
    for code in ("binary", "ternary", "uint2", "int2"):
        graph = Graph(3, (2, 37, 3, 4))
        x = graph.code("x", code, 0.3)
        y = graph.node("GlobalMaxPool", graph.node("Add", x, graph.node("Relu", "x")))
        folder = tmp_path / code
        folder.mkdir()
        assert "unpack_bits" in assert_exact(graph, y, (2, 37, 1, 1), folder)


def test_flattened_bits_are_read_in_the_order_of_their_image(tmp_path):
    graph = Graph(4, (1, 35, 4, 3))
    x = graph.node("Flatten", graph.code("x", "binary"))
    weight = graph.node("Transpose", graph.signs((50, 35 * 12), 0), perm=[1, 0])
    x = graph.code(graph.node("MatMul", x, weight), "ternary")
    y = graph.node("Gemm", x, graph.signs((9, 50), 0), graph.constant(graph.rng.standard_normal(9)), transB=1)
    families = assert_exact(graph, y, (1, 9), tmp_path)
    assert families == ["move", "binarize", "conv_binary", "dense_binary", "move"]


def test_a_scale_behind_a_quantizer_changes_no_bits(tmp_path):
    graph = Graph(5, (1, 32, 4, 4))
    x = graph.node("Mul", graph.code("x", "binary", 1.0), graph.constant(0.125))
    families = assert_exact(graph, graph.conv(x, 32, 16), (1, 16, 4, 4), tmp_path)
    assert families.count("conv_binary") == 1
    assert "unpack_bits" not in families


@pytest.mark.parametrize("change", ["group", "scale", "values"])
def test_products_that_popcounts_do_not_compute_run_in_float(change, tmp_path):
    graph = Graph(6, (1, 16, 5, 5))
    x = graph.code("x", "binary")
    if change == "group":
        y = graph.conv(x, 8, 16, group=2)
    else:
        array = graph.rng.choice([-0.5, 0.5], (16, 16, 3, 3))
        array[3, 2, 1, 1] *= 2 if change == "scale" else 0.3
        y = graph.conv(x, 16, 16, weight=graph.constant(array))
    model = graph.model(y, (1, 16, 5, 5))
    assert supported(model, isa()) == []
    families = [step.family for step in lower(model, isa()).steps]
    assert "conv_binary" not in families
    assert "unpack_bits" in families


def weight_of(text):
    """Return the value `w` of a graph."""
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[1] x) => (float[1] x2) <float[2,2] a = {{-3.0, 3.0, 0.5, 0.5}},
        float[2,2] b = {{0.0, 0.25, -0.25, 0.0}}, float[2,1] k = {{2.0, 4.0}}>
        {{ {text} x2 = Identity(x) }}""")
    (node,) = [node for node in model.graph if "w" in [value.name for value in node.outputs]]
    return node.outputs[0], model


def test_bases_have_the_smallest_code_and_the_scales_of_all_factors():
    value, _ = weight_of("m = Mul(a, k) w = Add(m, b)")
    first, second = bases_of(value, 0, 0.5)
    assert (first.code, second.code) == (Code.BINARY, Code.TERNARY)
    assert first.codes.tolist() == [[-1, 1], [1, 1]]
    assert first.scale.tolist() == [3.0, 1.0]
    assert second.codes.tolist() == [[0, 1], [-1, 0]]
    assert second.scale.tolist() == [0.125, 0.125]


def test_a_transposed_base_has_its_output_channels_first():
    value, _ = weight_of("m = Mul(a, k) w = Transpose<perm=[1,0]>(m)")
    (base,) = bases_of(value, 1, 1.0)
    assert base.codes.tolist() == [[-1, 1], [1, 1]]
    assert base.scale.tolist() == [6.0, 2.0]


def test_weights_stored_as_a_table_and_indices_are_read():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[1] x) => (float[1] y) <float[2] t = {-0.5, 0.5}, uint8[2,2] i = {0, 1, 1, 1}> {
        c = Cast<to=6>(i) w = Gather(t, c) y = Identity(x) }""")
    (base,) = bases_of(model.graph.node(1).outputs[0], 0, 1.0)
    assert base.codes.tolist() == [[-1, 1], [1, 1]]
    assert base.scale.tolist() == [0.5, 0.5]
