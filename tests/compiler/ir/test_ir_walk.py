from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from ir_models import if_model, parsed

from pared.compiler.ir import walk
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.verifier import verify_graph

CHAIN = """<ir_version: 10, opset_import: ["" : 21]>
g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
    a = Add(x, w)
    b = Identity(a)
    y = Relu(b)
}"""


def by_op(model: ir.Model, op: str) -> ir.Node:
    return next(node for node in walk.all_nodes(model) if node.op_type == op)


def test_all_nodes_reaches_bodies() -> None:
    model = import_model(if_model()).model
    assert [node.op_type for node in walk.all_nodes(model)] == ["Relu", "If", "Abs", "Neg"]


def test_all_graphs_gives_outer_before_inner() -> None:
    model = import_model(if_model()).model
    assert [graph.name for graph in walk.all_graphs(model)] == ["g", "e", "t"]


def test_constant_reads_an_initializer() -> None:
    model = parsed(CHAIN)
    np.testing.assert_array_equal(walk.constant(by_op(model, "Add").inputs[1]), [1, 2, 3, 4])


def test_constant_of_an_input_is_none() -> None:
    assert walk.constant(parsed(CHAIN).graph.inputs[0]) is None


@pytest.mark.parametrize(
    ("attribute", "want"),
    [
        ("value_int = 3", np.int64(3)),
        ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
        ("value_float = 0.5", np.float32(0.5)),
        ("value_floats = [0.5, 1.5]", np.array([0.5, 1.5], np.float32)),
        ("value = float[2] {1, 2}", np.array([1, 2], np.float32)),
    ],
)
def test_constant_reads_every_form_of_constant_node(attribute: str, want: np.ndarray) -> None:
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 21]>
    g () => (float[N] c) {{ c = Constant <{attribute}> () }}""")
    got = walk.constant(model.graph[0].outputs[0])
    assert got is not None
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_constants_cannot_be_written_to() -> None:
    array = walk.constant(by_op(parsed(CHAIN), "Add").inputs[1])
    assert array is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 9


def test_unique_name_avoids_names_in_bodies() -> None:
    model = import_model(if_model()).model
    assert walk.unique_name(model, "yt") == "yt_1"


def test_unique_name_never_repeats() -> None:
    model = parsed(CHAIN)
    assert [walk.unique_name(model, "new") for _ in range(3)] == ["new", "new_1", "new_2"]


def test_replacing_by_a_new_value_hands_over_the_name() -> None:
    model = parsed(CHAIN)
    old = by_op(model, "Identity").outputs[0]
    made = ir.node("Neg", [by_op(model, "Add").outputs[0]], name="n")
    model.graph.insert_after(by_op(model, "Add"), made)
    made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
    walk.replace_value(old, made.outputs[0])
    walk.remove_chain(by_op(model, "Identity"))
    assert made.outputs[0].name == "b"
    assert by_op(model, "Relu").inputs[0] is made.outputs[0]
    verify_graph(model)


def test_replacing_reaches_bodies_that_capture_the_value() -> None:
    model = import_model(if_model()).model
    relu = by_op(model, "Relu")
    walk.replace_value(relu.outputs[0], model.graph.inputs[0], take_name=False)
    walk.remove_chain(relu)
    assert by_op(model, "Neg").inputs[0] is model.graph.inputs[0]
    verify_graph(model)


def test_replacing_an_output_keeps_its_name() -> None:
    model = parsed(CHAIN)
    walk.replace_value(model.graph.outputs[0], by_op(model, "Add").outputs[0], take_name=False)
    walk.remove_chain(by_op(model, "Relu"))
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert by_op(model, "Add").outputs[0].name == "y"
    verify_graph(model)


def test_an_output_replaced_by_an_input_goes_through_identity() -> None:
    model = parsed(CHAIN)
    walk.replace_value(model.graph.outputs[0], model.graph.inputs[0])
    walk.remove_chain(by_op(model, "Relu"))
    assert model.graph.inputs[0].name == "x"
    assert [node.op_type for node in model.graph] == ["Identity"]
    verify_graph(model)


def test_a_value_may_be_replaced_by_one_computed_from_it() -> None:
    model = parsed(CHAIN)
    old = by_op(model, "Add").outputs[0]
    made = ir.node("Neg", [old], name="n")
    model.graph.insert_after(by_op(model, "Add"), made)
    made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
    walk.replace_value(old, made.outputs[0])
    assert made.inputs[0] is old
    assert (old.name, made.outputs[0].name) == ("a_replaced", "a")
    verify_graph(model)


def test_renaming_leaves_the_shared_tensor_alone() -> None:
    model = parsed(CHAIN)
    copy = model.clone()
    walk.rename(copy.graph.initializers["w"], "other")
    assert model.graph.initializers["w"].const_value.name == "w"
    assert "other" in copy.graph.initializers


def test_a_used_node_is_not_removed() -> None:
    model = parsed(CHAIN)
    assert walk.remove_chain(by_op(model, "Add")) == 0
    assert len(model.graph) == 3


def test_removing_a_chain_takes_constants_along() -> None:
    model = parsed(CHAIN)
    walk.replace_value(model.graph.outputs[0], model.graph.inputs[0])
    assert walk.remove_chain(by_op(model, "Relu")) == 3
    assert not model.graph.initializers


def test_removing_an_if_frees_what_its_bodies_captured() -> None:
    model = import_model(if_model()).model
    walk.replace_value(model.graph.outputs[0], model.graph.inputs[0])
    walk.remove_chain(by_op(model, "If"))
    assert [node.op_type for node in model.graph] == ["Identity"]
    verify_graph(model)


def test_only_user_is_none_for_a_graph_output() -> None:
    model = parsed(CHAIN)
    assert walk.only_user(model.graph.outputs[0]) is None
    assert walk.only_user(by_op(model, "Add").outputs[0]) is by_op(model, "Identity")
