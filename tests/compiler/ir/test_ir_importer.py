"""What import guarantees on good models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ir_models import body, floats, if_model, node, proto, run, value
from onnx import TensorProto

from pared.compiler.errors import ModelError
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model
from pared.compiler.ir.text import fingerprint

QUANT = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(4)}


def small() -> onnx.ModelProto:
    return proto([node("MatMul", "x w", "y")], constants={"w": floats(4, 4)})


def test_all_kinds_of_sources_give_one_model(tmp_path: Path) -> None:
    data = small().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    sources = [data, tmp_path / "m.onnx", str(tmp_path / "m.onnx"), small(), ir.from_proto(small())]
    assert len({fingerprint(import_model(source).model) for source in sources}) == 1


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(small().SerializeToString())
    want = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert import_model(tmp_path / "m.onnx").sha256 == want


def test_the_given_proto_is_not_changed() -> None:
    model = proto([node("Softmax", "x", "y", axis=0)], opset=9)
    before = model.SerializeToString()
    import_model(model)
    assert model.SerializeToString() == before


def test_the_given_ir_model_is_not_changed() -> None:
    model = ir.from_proto(proto([node("Softmax", "x", "y", axis=0)], opset=9))
    before = ir.to_onnx_text(model)
    import_model(model)
    assert ir.to_onnx_text(model) == before


def test_every_value_has_dtype_and_shape() -> None:
    imported = import_model(if_model()).model
    values = [out for one in imported.graph.all_nodes() for out in one.outputs]
    assert all(one.dtype is not None and one.shape is not None for one in values)


def test_weights_are_frozen() -> None:
    array = import_model(small()).model.graph.initializers["w"].const_value.numpy()
    assert not array.flags.writeable


def test_nodes_without_names_get_the_same_names_every_time() -> None:
    model = small()
    model.graph.node[0].name = ""
    names = [import_model(model).model.graph[0].name for _ in range(2)]
    assert names == ["MatMul_y", "MatMul_y"]


def test_nodes_that_share_a_name_are_renamed_and_noted() -> None:
    model = proto([node("Relu", "x", "a"), node("Neg", "a", "y")])
    model.graph.node[0].name = model.graph.node[1].name = "same"
    imported = import_model(model)
    assert [one.name for one in imported.model.graph] == ["same", "same_1"]
    assert any("renamed" in note for note in imported.notes)


def test_inputs_with_defaults_are_constants_and_noted() -> None:
    model = small()
    model.graph.input.append(value("w", (4, 4)))
    imported = import_model(model)
    assert [one.name for one in imported.model.graph.inputs] == ["x"]
    assert any("default" in note for note in imported.notes)


def test_a_wrong_stored_shape_is_replaced() -> None:
    model = proto([node("Relu", "x", "a"), node("Neg", "a", "y")])
    model.graph.value_info.append(value("a", (7, 7)))
    assert list(import_model(model).model.graph[0].outputs[0].shape) == [1, 4]


def test_a_wrong_declared_dtype_of_an_output_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        import_model(proto([node("Relu", "x", "y")], outputs=[value("y", (1, 4), TensorProto.INT32)]))
    assert caught.value.reason == "shape-inference"


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError) as caught:
        import_model(proto([node("MatMul", "x w", "y")], constants={"w": floats(5, 4)}))
    assert caught.value.reason == "shape-inference"


def test_a_body_that_returns_an_outer_value_runs() -> None:
    then = body("t", [], [], [value("h")])
    other = body("e", [node("Abs", "h", "ye")], [], [value("ye")])
    model = proto(
        [node("Neg", "x", "h"), node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("x"), value("c", (), TensorProto.BOOL)],
    )
    x = floats(1, 4)
    got = run(to_bytes(import_model(model).model), {"x": x, "c": np.array(True)})
    np.testing.assert_array_equal(got[0], -x)


def test_loop_and_scan_bodies_get_types() -> None:
    step = body("s", [node("Add", "st xt", "st2"), node("Identity", "st2", "out")],
                [value("st", (4,)), value("xt", (4,))], [value("st2", (4,)), value("out", (4,))])  # fmt: skip
    model = proto(
        [node("Scan", "h x", "hn y", body=step, num_scan_inputs=1)],
        [value("h", (4,)), value("x", (3, 4))],
        [value("hn", (4,)), value("y", (3, 4))],
    )
    imported = import_model(model).model
    graph = next(imported.graph.subgraphs())
    assert [list(one.shape) for one in (*graph.inputs, *(node.outputs[0] for node in graph))] == [[4]] * 4


# --- domains ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "domain",
    ["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.channels_last"],
)
def test_every_spelling_of_the_qonnx_domain(domain: str) -> None:
    made = node("Quant", "x s z b", "y", domain, signed=1, narrow=0, rounding_mode="ROUND")
    imported = import_model(proto([made], constants=QUANT, domains={domain: 1})).model
    assert imported.graph[0].domain == "qonnx.custom_op.general"
    assert imported.opset_imports == {"": 21, "qonnx.custom_op.general": 1}


def test_a_domain_that_is_used_but_not_imported() -> None:
    made = node("Quant", "x s z b", "y", "onnx.brevitas", signed=1, narrow=0, rounding_mode="ROUND")
    assert import_model(proto([made], constants=QUANT)).model.graph[0].outputs[0].dtype == ir.DataType.FLOAT


def test_multithreshold_goes_to_the_finn_domain() -> None:
    made = node("MultiThreshold", "x t", "y", "qonnx.custom_op.general", out_dtype="UINT2")
    model = proto(
        [made], constants={"t": np.zeros((1, 3), np.float32)}, domains={"qonnx.custom_op.general": 1}
    )
    assert import_model(model).model.graph[0].domain == "finn.custom_op.general"


def test_the_long_name_of_the_onnx_domain() -> None:
    model = proto([node("Relu", "x", "y", "ai.onnx")])
    model.opset_import[0].domain = "ai.onnx"
    imported = import_model(model).model
    assert (imported.graph[0].domain, imported.opset_imports) == ("", {"": 21})


def test_a_model_of_ml_operators_alone() -> None:
    model = proto([node("Scaler", "x", "y", "ai.onnx.ml", offset=[1.0], scale=[2.0])])
    del model.opset_import[:]
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    x = floats(1, 4)
    np.testing.assert_array_equal(run(to_bytes(import_model(model).model), {"x": x})[0], (x - 1) * 2)


# --- annotations ------------------------------------------------------------------------------------


def annotated(key: str, content: str) -> onnx.ModelProto:
    model = small()
    entry = model.graph.quantization_annotation.add(tensor_name="w")
    entry.quant_parameter_tensor_names.add(key=key, value=content)
    return model


def test_annotations_of_data_types_survive_a_rename_and_the_way_out() -> None:
    model = import_model(annotated("finn_datatype", "INT4")).model
    model.graph.initializers["w"].name = "renamed"
    written = onnx.ModelProto.FromString(to_bytes(model)).graph.quantization_annotation
    assert [(one.tensor_name, one.quant_parameter_tensor_names[0].value) for one in written] == [
        ("renamed", "INT4")
    ]


def test_annotations_that_name_tensors_are_dropped_and_noted() -> None:
    imported = import_model(annotated("SCALE_TENSOR", "s"))
    assert not onnx.ModelProto.FromString(to_bytes(imported.model)).graph.quantization_annotation
    assert any("annotation" in note for note in imported.notes)


# --- binding sizes ----------------------------------------------------------------------------------


def dynamic() -> onnx.ModelProto:
    inputs = [value("x", ("n", "c")), value("z", ("n", 4))]
    return proto([node("Add", "x z", "y")], inputs, [value("y", ("n", 4))])


def shapes_of(model: ir.Model) -> list[list[object]]:
    ports = (*model.graph.inputs, *model.graph.outputs)
    return [[dim if isinstance(dim, int) else dim.value for dim in port.shape] for port in ports]


def test_symbolic_sizes_stay_symbolic() -> None:
    assert shapes_of(import_model(dynamic()).model)[1] == ["n", 4]


def test_a_bound_symbol_is_bound_wherever_it_stands() -> None:
    assert shapes_of(import_model(dynamic(), {"x": [2, 4]}).model) == [[2, 4], [2, 4], [2, 4]]


def test_a_symbol_can_be_kept_by_name() -> None:
    assert shapes_of(import_model(dynamic(), {"x": ["batch", 4]}).model) == [["batch", 4]] * 3


def test_sizes_stored_for_other_inputs_are_forgotten() -> None:
    # The size of NonZero's result depends on data, so inference cannot replace a stored one.
    nodes = [node("NonZero", "x", "i"), node("Cast", "i", "y", to=TensorProto.FLOAT)]
    model = proto(nodes, [value("x", ("n", 4))], [value("y", (2, "n"))])
    model.graph.value_info.append(value("i", (2, 4), TensorProto.INT64))
    assert list(import_model(model).model.graph[0].outputs[0].shape) == [2, 4]
    bound = import_model(model, {"x": [3, 4]}).model
    assert bound.graph[0].outputs[0].shape.is_static(0)
    assert not bound.graph[0].outputs[0].shape.is_static(1)
    assert shapes_of(bound)[1] == [2, 3]


def test_an_output_of_unknown_rank() -> None:
    inputs = [value("x"), value("s", ("k",), TensorProto.INT64)]
    model = proto([node("Reshape", "x s", "y")], inputs, [value("y", None)])
    imported = import_model(model).model
    assert imported.graph.outputs[0].shape is None
    feeds = {"x": floats(1, 4), "s": np.array([2, 2])}
    assert run(to_bytes(imported), feeds)[0].shape == (2, 2)


def test_constants_of_ir_version_3_have_types() -> None:
    nodes = [node("Unsqueeze", "w", "u", axes=[0]), node("Add", "x u", "y")]
    model = proto(nodes, constants={"w": floats(4)}, opset=9, ir_version=3)
    model.graph.input.append(value("w", (4,)))
    assert import_model(model).model.graph[0].outputs[0].dtype == ir.DataType.FLOAT


def test_a_graph_without_nodes() -> None:
    model = proto([], [value("x")], [value("x")])
    imported = import_model(model).model
    x = floats(1, 4)
    np.testing.assert_array_equal(run(to_bytes(imported), {"x": x})[0], x)


def test_a_constant_as_output() -> None:
    model = proto([node("Relu", "x", "y")], [value("x")], [value("y"), value("w", (4,))], {"w": floats(4)})
    np.testing.assert_array_equal(run(to_bytes(import_model(model).model), {"x": floats(1, 4)})[1], floats(4))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"xx": [1, 4]}, "unknown-input"),
        ({"x": [1]}, "shape-conflict"),
        ({"z": [2, 5]}, "shape-conflict"),
        ({"x": [2, 4], "z": [3, 4]}, "shape-conflict"),
        ({"x": [0, 4]}, "bad-shape"),
        ({"x": [-1, 4]}, "bad-shape"),
        ({"x": [2, 5]}, "shape-inference"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, list[int]], reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(dynamic(), shapes)
    assert caught.value.reason == reason


def test_an_unknown_input_names_the_closest() -> None:
    with pytest.raises(ModelError, match="did you mean image"):
        import_model(proto([node("Relu", "image", "y")], [value("image")]), {"imag": [1, 4]})


def test_symbols_named_like_made_up_ones_stay() -> None:
    imported = import_model(
        proto([node("Relu", "x", "y")], [value("x", ("unk__7", 4))], [value("y", None)])
    ).model
    assert shapes_of(imported) == [["unk__7", 4], ["unk__7", 4]]
