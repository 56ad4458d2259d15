"""Functions are inlined: numerics, names, attributes, bodies, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ir_models import body, floats, node, proto, run, value
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from pared.compiler.errors import ModelError
from pared.compiler.ir.export import to_bytes
from pared.compiler.ir.importer import import_model


def function(
    name: str,
    nodes: Sequence[NodeProto],
    inputs: str = "a",
    outputs: str = "b",
    attributes: Sequence[str] = (),
) -> FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function(
        "local", name, inputs.split(), outputs.split(), list(nodes), imports, list(attributes)
    )


def calling(nodes: Sequence[NodeProto], functions: Sequence[FunctionProto], **options: object) -> ModelProto:
    model = proto(nodes, domains={"local": 1}, **options)
    model.functions.extend(functions)
    return model


def same(model: ModelProto, **extra: np.ndarray) -> ir.Model:
    """The inlined model computes in onnxruntime what the model with functions computes."""
    imported = import_model(model).model
    feeds = {"x": floats(1, 4)} | extra
    np.testing.assert_array_equal(run(to_bytes(imported), feeds)[0], run(model, feeds)[0])
    assert not imported.functions
    return imported


def test_a_function_called_twice() -> None:
    halve = function("Halve", [node("Constant", "", "c", value_float=0.5), node("Mul", "a c", "b")])
    model = same(calling([node("Halve", "x", "h", "local"), node("Halve", "h", "y", "local")], [halve]))
    assert [one.op_type for one in model.graph] == ["Constant", "Mul"] * 2
    assert [out.name for one in model.graph for out in one.outputs] == ["n_h/c", "h", "n_y/c", "y"]


def test_calls_that_share_a_node_name() -> None:
    inner = function("Inner", [node("Neg", "a", "t"), node("Exp", "t", "b")])
    calls = [node("Inner", "x", "h", "local"), node("Inner", "h", "y", "local")]
    want = run(calling(calls, [inner]), {"x": floats(1, 4)})[0]
    # onnxruntime refuses nodes of one name; ONNX itself does not.
    calls[1].name = calls[0].name
    got = run(to_bytes(import_model(calling(calls, [inner])).model), {"x": floats(1, 4)})[0]
    np.testing.assert_array_equal(got, want)


def test_functions_that_call_functions() -> None:
    inner = function("Inner", [node("Neg", "a", "b")])
    outer = function(
        "Outer", [node("Inner", "a", "t", "local"), node("Inner", "t", "u", "local"), node("Exp", "u", "b")]
    )
    model = same(calling([node("Outer", "x", "y", "local")], [outer, inner]))
    assert [one.op_type for one in model.graph] == ["Neg", "Neg", "Exp"]


def leaky(default: float | None) -> FunctionProto:
    made = helper.make_node("LeakyRelu", ["a"], ["b"])
    made.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    if default is None:
        return function("Leaky", [made], attributes=["slope"])
    one = function("Leaky", [made])
    one.attribute_proto.append(helper.make_attribute("slope", default))
    return one


@pytest.mark.parametrize(
    ("default", "given", "want"),
    [(None, 0.25, 0.25), (0.5, 0.25, 0.25), (0.5, None, 0.5), (None, None, None)],
)
def test_attributes_are_passed_on(default: float | None, given: float | None, want: float | None) -> None:
    call = node("Leaky", "x", "y", "local", **({} if given is None else {"slope": given}))
    model = same(calling([call], [leaky(default)]))
    assert model.graph[0].attributes.get_float("alpha") == want


def test_inputs_that_are_left_out() -> None:
    clip = function("Limit", [node("Clip", "a lo hi", "b")], inputs="a lo hi")
    call = node("Limit", "x _ top", "y", "local")
    same(calling([call], [clip], constants={"top": np.float32(0.25)}))


def test_outputs_that_are_not_taken() -> None:
    both = function("Both", [node("Neg", "a", "b"), node("Abs", "a", "c")], outputs="b c")
    model = import_model(calling([node("Both", "x", "y", "local")], [both])).model
    # onnxruntime refuses such a call, so the expected value stands here.
    np.testing.assert_array_equal(run(to_bytes(model), {"x": floats(1, 4)})[0], -floats(1, 4))


def test_an_inlined_name_that_the_model_has_already_is_refused() -> None:
    inner = function("Inner", [node("Neg", "a", "t"), node("Relu", "t", "b")])
    nodes = [node("Abs", "x", "n_y/t"), node("Inner", "n_y/t", "y", "local")]
    with pytest.raises(ModelError) as caught:
        import_model(calling(nodes, [inner]))
    assert caught.value.reason == "duplicate-name"


def test_a_function_with_a_body() -> None:
    then = body("t", [node("Neg", "a", "yt")], [], [value("yt")])
    other = body("e", [node("Inner", "a", "ye", "local")], [], [value("ye")])
    choose = function("Choose", [node("If", "c", "b", then_branch=then, else_branch=other)], inputs="a c")
    inner = function("Inner", [node("Exp", "a", "b")])
    model = calling(
        [node("Choose", "x c", "h", "local"), node("Choose", "h c", "y", "local")],
        [choose, inner],
        inputs=[value("x"), value("c", (), TensorProto.BOOL)],
    )
    for flag in (True, False):
        same(model, c=np.array(flag))


def test_a_call_in_a_body() -> None:
    then = body("t", [node("Inner", "x", "yt", "local")], [], [value("yt")])
    other = body("e", [node("Inner", "x", "ye", "local")], [], [value("ye")])
    model = calling(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [function("Inner", [node("Exp", "a", "t"), node("Neg", "t", "b")])],
        inputs=[value("x"), value("c", (), TensorProto.BOOL)],
    )
    same(model, c=np.array(True))


def test_a_function_that_returns_its_input_leaves_names_alone() -> None:
    model = import_model(
        calling([node("Pass", "x", "y", "local")], [function("Pass", [], outputs="a")])
    ).model
    assert [one.name for one in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]


def test_an_ir_model_with_functions_is_inlined() -> None:
    model = calling([node("Inner", "x", "y", "local")], [function("Inner", [node("Neg", "a", "b")])])
    assert [one.op_type for one in import_model(ir.from_proto(model)).model.graph] == ["Neg"]


def test_thousands_of_calls_are_linear() -> None:
    inner = function("Inner", [node("Neg", "a", "t"), node("Relu", "t", "b")])
    calls = [node("Inner", "x" if i == 0 else f"v{i}", f"v{i + 1}", "local") for i in range(3000)]
    model = import_model(calling([*calls, node("Neg", "v3000", "y")], [inner])).model
    assert len(model.graph) == 6001


def test_a_function_of_another_opset_is_refused() -> None:
    model = calling([node("Inner", "x", "y", "local")], [function("Inner", [node("Neg", "a", "b")])])
    model.functions[0].opset_import[0].version = 13
    with pytest.raises(ModelError) as caught:
        import_model(model)
    assert caught.value.reason == "function-opset"


def test_a_call_with_too_many_inputs_is_refused() -> None:
    model = calling([node("Inner", "x x", "y", "local")], [function("Inner", [node("Neg", "a", "b")])])
    with pytest.raises(ModelError) as caught:
        import_model(model)
    assert caught.value.reason == "function-call"
