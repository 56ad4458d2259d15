"""compact: the payload in fewer bytes, the function and the signature as they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from pared.compiler.ir.compact import compact
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ort import make_session, run_session

TEXT = """<ir_version: 10, opset_import: ["" : 21, "com.example.unused" : 1], producer_name: "someone",
           metadata_props: ["note" : "a long comment"]>
long_graph_name (float[1,1,6,6] image, bool flag) => (float[1,2,6,6] scores) {
    [first_layer] hidden_activation_value = Conv<kernel_shape = [3,3], pads = [1,1,1,1], strides = [1,1],
        dilations = [1,1], group = 1, auto_pad = "NOTSET">(image, weight_of_first, bias_of_first)
    [second_layer] other_value = Add(hidden_activation_value, offset_a)
    [third_layer] third_value = If(flag) <
        then_branch = then_graph () => (float[1,2,6,6] inner_then)
            { scaled = Mul(other_value, offset_b)  inner_then = Relu(scaled) },
        else_branch = else_graph () => (float[1,2,6,6] inner_else) { inner_else = Neg(other_value) }>
    [last_layer] scores = Mul(third_value, offset_b)
}"""


def model() -> ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    weights = {
        "weight_of_first": np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3) / 18,
        "bias_of_first": np.ones(2, np.float32),
        "offset_a": np.full((2, 1, 1), 0.5, np.float32),
        "offset_b": np.full((2, 1, 1), 0.5, np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    for node in proto.graph.node:
        node.doc_string = "exported from a framework"
    return import_model(proto).model


def compacted() -> tuple[onnx.ModelProto, dict[str, str]]:
    draft = model().clone()
    names = compact(draft)
    return onnx.load_from_string(to_bytes(draft)), names


def test_outputs_stay_the_same_bit_for_bit() -> None:
    proto, _ = compacted()
    image = np.random.default_rng(0).normal(size=(1, 1, 6, 6)).astype(np.float32)
    for flag in (True, False):
        feeds = {"image": image, "flag": np.array(flag)}
        want = run_session(make_session(model(), optimize="none"), feeds)
        got = run_session(make_session(proto.SerializeToString(), optimize="none"), feeds)
        np.testing.assert_array_equal(got["scores"], want["scores"])


def test_inputs_and_outputs_keep_names_types_and_shapes() -> None:
    proto, _ = compacted()
    full = onnx.load_from_string(to_bytes(model()))
    assert list(proto.graph.input) == list(full.graph.input)
    assert list(proto.graph.output) == list(full.graph.output)


def test_it_is_valid_and_shapes_can_be_inferred_again() -> None:
    proto, _ = compacted()
    onnx.checker.check_model(proto, full_check=True)


def test_inner_names_are_one_letter_and_map_back() -> None:
    proto, names = compacted()
    inner = [name for node in proto.graph.node for name in node.output if name != "scores"]
    assert {len(name) for name in inner} == {1}
    assert [names[name] for name in inner] == ["hidden_activation_value", "other_value", "third_value"]
    assert {"inner_then", "scaled", "inner_else", "weight_of_first"} <= set(names.values())


def test_no_two_values_share_a_name_even_across_bodies() -> None:
    draft = model().clone()
    compact(draft)
    names = [value.name for node in draft.graph.all_nodes() for value in node.outputs]
    assert len(set(names)) == len(names)


def test_comments_names_of_nodes_and_inner_shapes_go() -> None:
    proto, _ = compacted()
    assert not any(node.name or node.doc_string for node in proto.graph.node)
    assert not proto.graph.value_info
    assert not proto.metadata_props
    assert [entry.domain for entry in proto.opset_import] == [""]


def test_attributes_at_their_defaults_go_and_others_stay() -> None:
    proto, _ = compacted()
    assert [attr.name for attr in proto.graph.node[0].attribute] == ["pads"]


def test_a_window_that_the_weights_do_not_tell_stays() -> None:
    pool = import_model(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 21]>
            g (float[1,1,6,6] x) => (float[1,1,5,5] y)
               { y = MaxPool<kernel_shape = [2,2], strides = [1,1]>(x) }"""
        )
    ).model
    compact(pool)
    assert list(pool.graph[0].attributes) == ["kernel_shape"]


def test_equal_constants_are_stored_once() -> None:
    proto, _ = compacted()
    assert len(proto.graph.initializer) == 3


def test_a_clone_is_all_that_changes() -> None:
    original = model()
    before = to_bytes(original)
    compact(original.clone())
    assert to_bytes(original) == before


def test_short_names_avoid_those_of_inputs() -> None:
    taken = import_model(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 21]>
            g (float[2] a, float[2] b) => (float[2] c) { long_name = Add(a, b)  c = Neg(long_name) }"""
        )
    ).model
    assert list(compact(taken)) == ["d"]


def test_many_values_get_distinct_names() -> None:
    chain = "  ".join(f"value_{i + 1} = Neg(value_{i})" for i in range(200))
    long = import_model(
        onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 21]>
            g (float[2] value_0) => (float[2] value_200) {{ {chain} }}"""
        )
    ).model
    names = compact(long)
    assert len(names) == 199
    assert max(map(len, names)) == 2
